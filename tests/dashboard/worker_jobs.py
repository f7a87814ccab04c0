"""What the worker tests have done in the other process; it must be importable there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from core.errors import DataError
from dashboard.worker_said import say


def double(value: int) -> int:
    return 2 * value


def where() -> int:
    return os.getpid()


def refuse() -> None:
    raise DataError("There are no pairs; add some.")


def fail() -> None:
    raise ZeroDivisionError("by zero")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def until(path: str) -> str:
    """Returns once the file is there."""
    for _ in range(2000):
        if Path(path).exists():
            return path
        time.sleep(0.01)
    raise TimeoutError(path)


def die_whatever(*_: object) -> None:
    """Ends the process, whatever it was asked."""
    die()


def count(to: int) -> int:
    """Says 1, 2, ... on its way."""
    for number in range(1, to + 1):
        say(number)
    return to
