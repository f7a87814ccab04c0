"""The exceptions users see: one sentence that says what is wrong and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RewardscopeError(Exception):
    """Base of every expected failure. The command line prints it and exits 1; a view shows it as its state."""


class ConfigError(RewardscopeError):
    """The configuration file or a command-line value is not usable."""


class DataError(RewardscopeError):
    """Preference data or text is not usable; the message names file and row."""


class ModelError(RewardscopeError):
    """Model weights, a tokenizer or a checkpoint are missing or do not fit."""


class RunError(RewardscopeError):
    """A run folder is missing, unfinished, damaged or of another version."""


class EndpointError(RewardscopeError):
    """A model served elsewhere cannot be used at all: not reached, key refused, no such model."""


class DiskFullError(RewardscopeError):
    """No room was left while writing; what was there before is untouched."""


@contextmanager
def disk_full_is_said(where: Path) -> Iterator[None]:
    """Turns "no space left" from the operating system or DuckDB into one sentence.

    Args:
        where: the folder being written, named in the message.

    Raises:
        DiskFullError: when the block failed for lack of room; anything else passes through.
    """
    try:
        yield
    except Exception as error:
        code = getattr(error, "errno", None)
        text = str(error).lower()
        if code in (errno.ENOSPC, errno.EDQUOT) or "no space left" in text or "disk quota" in text:
            raise DiskFullError(
                f"The disk that holds {where} is full; free some room and run the same command again: "
                "finished parts are kept, and the last published run is untouched."
            ) from error
        raise
