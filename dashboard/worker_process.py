"""The other end of dashboard/worker.py: does one job after the other, and ends when the server does."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from core.errors import RewardscopeError
from dashboard.worker_said import say_through

log = logging.getLogger("rewardscope.dashboard")

NICENESS = 5
"""So that the server answers first where they share a core."""


def answer(task: Any, args: tuple[Any, ...]) -> tuple[Any, str]:
    """What the task returns and, when it fails, why."""
    try:
        return task(*args), ""
    except RewardscopeError as error:
        return None, str(error)
    except Exception as error:
        log.exception("a task failed")
        return None, f"{type(error).__name__}: {error}"


def main(pipe: Connection) -> None:
    """Serves until the pipe ends, which it does when the server is gone, in whatever way it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's business
    with suppress(OSError):
        os.nice(NICENESS)
    say_through(pipe)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task, args = pipe.recv()
            pipe.send(answer(task, args))


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s")
    main(Connection(int(sys.argv[1])))
