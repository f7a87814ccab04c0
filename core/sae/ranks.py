"""The processes that train one SAE together (torchrun), or the one that trains it alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from core.models.backbone import pick_device

PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others: the first one alone hashes weights and measures quality."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size` processes. Every method is called by all of them, in the same order; alone,
    they do nothing."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """The one that writes and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Adds up a tensor over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def least(self, tensor: Tensor) -> Tensor:
        """The smallest value of each entry over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return tensor

    def from_first(self, tensor: Tensor) -> Tensor:
        """Gives every rank the first one's values, in place."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def agree(self, value: Any) -> Any:
        """The first rank's JSON value."""
        if self.size == 1:
            return value
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)
        length = self.from_first(torch.tensor(len(text), device=self.device))
        text = text if self.first else text.new_empty(int(length))
        return json.loads(bytes(self.from_first(text).tolist()))

    def wait(self) -> None:
        """Returns when all have come here."""
        if self.size > 1:
            dist.barrier()


ALONE = Ranks()


def first_process() -> bool:
    """Whether this process prints: it is not one of torchrun's, or the first of them."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Joins the processes torchrun started (NCCL on CUDA, gloo elsewhere); alone when it started none.

    Args:
        device: as `model.device`; of several ranks on CUDA each takes the GPU of its local rank.

    Yields:
        the ranks, and this process's device.

    Raises:
        ModelError: the device is not there.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    where = pick_device(device)
    if size == 1:
        yield ALONE, where
        return
    if where.type == "cuda":
        where = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), str(where)), where
    finally:
        dist.destroy_process_group()
