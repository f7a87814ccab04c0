"""Synthetic hidden states: sparse sums of known directions, so that a test knows what an SAE should find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Planted:
    """A VectorSource: each vector is a positive mix of `active` of `atoms` directions, plus noise, plus `offset` times
    one direction all vectors share (as real hidden states do, which is what kills latents early)."""

    d: int = 32
    atoms: int = 48
    active: int = 3
    batch: int = 512
    noise: float = 0.02
    offset: float = 0.0
    key: str = "planted"
    position: None = None

    @property
    def directions(self) -> Tensor:
        """Unit directions [atoms, d] with zero mean, which standardisation leaves alone."""
        found = torch.randn(self.atoms, self.d, generator=torch.Generator().manual_seed(11))
        found -= found.mean(1, keepdim=True)
        return found / found.norm(dim=1, keepdim=True)

    def vectors(self, n: int, seed: int) -> Tensor:
        """n vectors [n, d] float32."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.rand(n, self.atoms, generator=generator).topk(self.active, dim=1).indices
        weights = torch.rand(n, self.active, generator=generator) + 0.5
        code = torch.zeros(n, self.atoms).scatter_(1, chosen, weights)
        common = self.offset * torch.linspace(-1, 1, self.d) / self.d**0.5
        return 5 * code @ self.directions + common + self.noise * torch.randn(n, self.d, generator=generator) + 2

    def batches(self, first_step: int, position: Any = None) -> Iterator[Tensor]:
        step = first_step
        while True:
            yield self.vectors(self.batch, step)
            step += 1
