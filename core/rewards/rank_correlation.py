"""Spearman's rank correlation with a bootstrap interval: does attribution order features as ablation does?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho.

    Attributes:
        rho: None below 3 values or where one side is constant.
        low, high: 95 % percentile bootstrap interval over the values; None where rho is.
        n: values behind it.
    """

    rho: float | None
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.rho is None or self.low is None or self.high is None:
            return f"not defined (n = {self.n})"
        return f"{self.rho:+.3f} [{self.low:+.3f}, {self.high:+.3f}], n = {self.n}"


def rank_correlation(first: np.ndarray, second: np.ndarray, *, draws: int = 2000, seed: int = 0) -> RankCorrelation:
    """Spearman's rho of two columns, ties ranked by their mean; rows with a missing value are left out.

    Args:
        first, second: float64 [n].
        draws: bootstrap samples; a sample in which one side is constant says nothing and is left out.
    """
    both = np.isfinite(first) & np.isfinite(second)
    a, b = first[both], second[both]
    n = len(a)
    if n < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return RankCorrelation(None, None, None, n)
    picked = np.random.default_rng(seed).integers(0, n, (draws, n))
    rho = _rho(a[picked], b[picked])
    low, high = np.nanquantile(rho, [0.025, 0.975])
    return RankCorrelation(float(_rho(a[None], b[None])[0]), float(low), float(high), n)


def _rho(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rho of each row, NaN where a row is constant."""
    ranks = [stats.rankdata(x, axis=1) for x in (a, b)]
    x, y = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
