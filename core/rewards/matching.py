"""Random features that are like a given one: matched on density and on the size of the head weight."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree


def nearest(
    density: np.ndarray, weights: np.ndarray, features: np.ndarray, candidates: np.ndarray, k: int
) -> list[np.ndarray]:
    """The candidates most like each feature in density and |weight|: distance in (log density, log |weight|).

    Args:
        density, weights: float64 [M].
        features, candidates: int64 ids; a feature is never its own neighbour.
        k: how many; fewer where there are no more candidates.

    Returns:
        For each feature its neighbours, nearest first.
    """
    if len(candidates) == 0 or len(features) == 0:
        return [np.empty(0, np.int64) for _ in features]
    place = _place(density, weights)
    tree = KDTree(place[candidates])
    wanted = min(k + 1, len(candidates))
    found = candidates[tree.query(place[features], wanted)[1].reshape(len(features), wanted)]
    return [row[row != feature][:k] for row, feature in zip(found, features, strict=True)]


def within_factor(
    density: np.ndarray, weights: np.ndarray, feature: int, candidates: np.ndarray, factor: float
) -> np.ndarray:
    """bool [n]: the candidates whose density and |weight| both are within a factor of the feature's."""
    place = _place(density, weights)
    return (np.abs(place[candidates] - place[feature]) <= np.log(factor)).all(axis=1)


def null_range(effects: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of random features' effects; with fewer than 40 of them that is their whole range."""
    if len(effects) == 0:
        return np.nan, np.nan
    low = np.quantile(effects, 0.025, method="lower")
    return float(low), float(np.quantile(effects, 0.975, method="higher"))


def _place(density: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Where features stand for matching: (log density, log |weight|), float64 [M, 2]; zeros far below everything else."""
    columns = []
    for values in (density, np.abs(weights)):
        smallest = values[values > 0].min(initial=np.inf)
        floor = smallest * 1e-3 if np.isfinite(smallest) else 1.0
        columns.append(np.log(np.maximum(values, floor)))
    return np.stack(columns, axis=1)
