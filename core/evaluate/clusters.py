"""Means over items that belong to prompts, with intervals that respect it; fast enough to be called while a slider moves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Clusters:
    """Items by prompt: int64 [n] place of each item's prompt among those present, and float64 [G] items a prompt."""

    place: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, prompt: np.ndarray) -> Clusters:
        names, place = np.unique(prompt, return_inverse=True)
        return cls(place, np.bincount(place, minlength=len(names)).astype(np.float64))

    @property
    def n(self) -> int:
        return len(self.place)

    def sums(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.place, weights=values, minlength=len(self.count))

    def interval(self, values: np.ndarray, mean: float) -> tuple[float | None, float | None]:
        """The 95 % interval of the mean of `values`; None below two prompts."""
        prompts = len(self.count)
        if prompts < 2:
            return None, None
        error = self.sums(values) - mean * self.count
        half = student(prompts - 1) * np.sqrt(prompts / (prompts - 1) * float(error @ error)) / self.n
        return mean - float(half), mean + float(half)


@lru_cache(maxsize=4096)
def student(freedom: int) -> float:
    """97.5 % point of Student's t."""
    return float(stdtrit(freedom, 0.975))
