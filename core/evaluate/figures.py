"""A benchmark's figures: a value, what is behind it, and a 95 % bootstrap interval over prompts."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

DRAWS = 2000
SEED = 0
BLOCK = 2_000_000


@dataclass(frozen=True)
class Figure:
    """One cell of a benchmark's table.

    Attributes:
        name: 'Chat', 'alpacaeval-easy', 'overall', ... as the benchmark calls it.
        kind: 'overall', 'section' or 'subset'.
        value: 0..1 (Ties of RewardBench 2: up to 1.01); None = missing, never 0.
        low, high: 95 % interval; None where it cannot be given (a single prompt, or a figure that is missing).
        n: items behind it (for a difficulty of RM-Bench: comparisons).
        n_prompts: distinct prompts behind it, the units of the bootstrap.
        note: what one must know to read it, '' = nothing.
    """

    name: str
    kind: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    n_prompts: int
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def missing(name: str, kind: str, note: str) -> Figure:
    """A figure that there is none of."""
    return Figure(name, kind, None, None, None, 0, 0, note)


def figure(name: str, kind: str, value: float, draws: np.ndarray, n: int, n_prompts: int, note: str = "") -> Figure:
    """A figure with the percentile interval of its bootstrap draws (float64 [draws]; NaN draws are left out)."""
    if not np.isfinite(value):
        return missing(name, kind, note or "nothing to compare")
    known = draws[np.isfinite(draws)]
    if n_prompts < 2 or not len(known):
        return Figure(name, kind, float(value), None, None, n, n_prompts, note)
    low, high = np.quantile(known, [0.025, 0.975])
    return Figure(name, kind, float(value), float(low), float(high), n, n_prompts, note)


class Prompts:
    """Bootstrap over prompts: whole prompts are drawn with replacement, because items that share one are not independent.

    Attributes:
        n: distinct prompts.
        where: int64 [items], each item's prompt, 0..n-1.
        weights: uint8 [draws, n], how often each prompt was drawn.
    """

    def __init__(self, prompt: Sequence[str], name: str, *, draws: int = DRAWS, seed: int = SEED) -> None:
        """`name` sets the random stream: a figure has the same interval whatever other figures there are."""
        names, self.where = np.unique(np.asarray(prompt, dtype=str), return_inverse=True)
        self.n = len(names)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        self.weights = np.empty((draws, self.n), np.uint8)  # a count is at most n, and far below 256 where n is large
        for rows in self._blocks():
            picked = rng.integers(0, self.n, (rows.stop - rows.start, self.n))
            picked += np.arange(len(picked))[:, None] * self.n
            self.weights[rows] = np.bincount(picked.reshape(-1), minlength=picked.size).reshape(picked.shape)

    def _blocks(self) -> Iterator[slice]:
        """Draws that are worked on together, to bound the memory."""
        step = max(1, BLOCK // max(self.n, 1))
        for begin in range(0, len(self.weights), step):
            yield slice(begin, min(begin + step, len(self.weights)))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums of `values` (float [items]) over the items of each draw: float64 [draws]."""
        own = np.bincount(self.where, weights=np.asarray(values, np.float64), minlength=self.n)
        return np.concatenate([self.weights[rows].astype(np.float64) @ own for rows in self._blocks()])

    def means(self, values: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
        """Means over the items of each draw, or over those marked True in `counted`: float64 [draws], NaN for none."""
        counted = np.ones(len(self.where), bool) if counted is None else counted
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sums(np.where(counted, values, 0.0)) / self.sums(counted)
