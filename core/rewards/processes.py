"""Training in several processes (`torchrun`, `accelerate launch`): who this one is, and waiting for the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from core.models.backbone import pick_device

WAIT = timedelta(hours=24)
"""Others wait while the first one reads pairs or trains an SAE."""


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def own_device(wanted: str) -> torch.device:
    """`pick_device`, and of several accelerators the one that is this process's.

    Raises:
        ModelError: the named device is not there.
    """
    device = pick_device(wanted)
    if world() > 1 and device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


def wait(device: torch.device) -> None:
    """Returns when every process has come here."""
    if world() > 1:
        _state(device).wait_for_everyone()


@contextmanager
def main_first(device: torch.device) -> Iterator[None]:
    """The main process goes through the block alone, the others after it: they find what it has left on disk."""
    if world() == 1:
        yield
        return
    with _state(device).main_process_first():
        yield


def _state(device: torch.device) -> Any:
    from accelerate import PartialState

    return PartialState(cpu=device.type == "cpu", timeout=WAIT)
