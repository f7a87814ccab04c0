"""What a task says on its way, before it has its result: from the process (dashboard/worker_process.py) to who asked."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True)
class Said:
    """One message of a task at work."""

    value: Any


_pipe: Connection | None = None


def say_through(pipe: Connection) -> None:
    """Sends what is said from now on into this pipe; for the process itself."""
    global _pipe
    _pipe = pipe


def say(value: Any) -> None:
    """Tells whoever asked for the task at work; where nobody can hear (a test, a script), nothing happens."""
    if _pipe is not None:
        _pipe.send(Said(value))
