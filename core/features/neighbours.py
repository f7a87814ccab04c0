"""Related features: those that point the same way in the SAE's decoder, and those active in the same places."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import scipy.sparse as sp

from core.features.entries import feature_counts
from core.store.arrays import RunArrays

MIN_ANSWERS = 5
"""A feature active in fewer answers has no co-active neighbours and is none: one shared answer would decide."""
MAX_SHARE = 0.5
"""Nor has a feature active in more than this share of the answers: it goes with everything."""
MAX_TOKENS = 200_000
"""Tokens, evenly spaced over the run, from which the correlation of activity is taken at most."""
BLOCK = 256

Nearest = tuple[np.ndarray, np.ndarray]
"""int64 and float64 [features, m]: other features, nearest first (the lower id among equals), and how near they are."""


def neighbour_table(decoder: np.ndarray, arrays: RunArrays, n: int) -> pl.DataFrame:
    """The table `neighbour`: the n nearest features of each feature, of both kinds, nearest first.

    Features that are never active have no neighbours and are none.

    Args:
        decoder: float32 [d, M], one column a feature.
    """
    active = feature_counts(arrays)
    alive = np.flatnonzero(active)
    usual = np.flatnonzero((active >= MIN_ANSWERS) & (active <= MAX_SHARE * arrays.n_responses))
    decoders = _frame("decoder", alive, *cosine_neighbours(decoder, alive, n))
    coactive = _frame("coactive", usual, *coactive_neighbours(arrays, usual, n)).filter(pl.col("score") > 0)
    kind = pl.col("kind").replace_strict({"decoder": 0, "coactive": 1})
    return pl.concat([decoders, coactive]).sort("feature_id", kind, "rank")


def cosine_neighbours(decoder: np.ndarray, features: np.ndarray, n: int) -> Nearest:
    """The n features nearest by the cosine of their decoder columns, among `features` and for each of them."""
    return _nearest(features, _cosines(decoder, features), n)


def coactive_neighbours(arrays: RunArrays, features: np.ndarray, n: int) -> Nearest:
    """Likewise by the Jaccard index of the answers in which two features are active, |A and B| / |A or B|."""
    incidence = arrays.pooled("max").astype(np.float32)
    incidence.data[:] = 1
    incidence = sp.csr_matrix(incidence[:, features])
    transposed = sp.csr_matrix(incidence.T)
    size = np.diff(transposed.indptr).astype(np.float64)

    def jaccard(rows: slice) -> np.ndarray:
        both = (transposed[rows] @ incidence).toarray()
        return both / np.maximum(size[rows, None] + size - both, 1)

    return _nearest(features, jaccard, n)


def kindred_neighbours(decoder: np.ndarray, arrays: RunArrays, features: np.ndarray, n: int) -> Nearest:
    """Likewise by the larger of two likenesses: the decoder cosine, and the correlation of activity over tokens.

    The correlation is Pearson's between "active" and "not active" (phi). It speaks where little training has left the
    decoder's directions close to orthogonal, the cosine where like features take turns.
    """
    n_tokens, k = arrays.token_features.shape
    sample = np.unique(np.linspace(0, n_tokens - 1, min(n_tokens, MAX_TOKENS)).astype(np.int64))
    active = arrays.token_features[sample].reshape(-1).astype(np.int32)
    pointer = np.arange(0, len(active) + 1, k)
    used = (arrays.token_values[sample].reshape(-1) != 0).astype(np.float32)  # an unused place holds 0
    incidence = sp.csr_matrix((used, active, pointer), (len(sample), arrays.latents))
    incidence.eliminate_zeros()
    incidence = sp.csr_matrix(incidence[:, features])
    transposed = sp.csr_matrix(incidence.T)
    share = np.diff(transposed.indptr) / len(sample)
    spread = np.sqrt(share * (1 - share))
    cosines = _cosines(decoder, features)

    def likeness(rows: slice) -> np.ndarray:
        both = (transposed[rows] @ incidence).toarray() / len(sample)
        both -= share[rows, None] * share
        both /= np.maximum(spread[rows, None] * spread, 1e-12)
        return np.maximum(both, cosines(rows))

    return _nearest(features, likeness, n)


def _cosines(decoder: np.ndarray, features: np.ndarray) -> Callable[[slice], np.ndarray]:
    unit = np.ascontiguousarray(decoder[:, features].T, dtype=np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return lambda rows: np.clip(unit[rows] @ unit.T, -1, 1)


def _nearest(features: np.ndarray, likeness: Callable[[slice], np.ndarray], n: int) -> Nearest:
    """The n features most like each one of `features`, itself left out; fewer where there are not so many.

    Args:
        likeness: gives some rows of the matrix [features, features] of likenesses.
    """
    count = min(n, len(features) - 1)
    if count < 1:
        return np.empty((len(features), 0), np.int64), np.empty((len(features), 0))
    others, scores = [], []
    for first in range(0, len(features), BLOCK):
        score = likeness(slice(first, first + BLOCK))
        own = np.arange(len(score))
        score[own, first + own] = -np.inf
        column, largest = _largest(score, count)
        others.append(features[column])
        scores.append(largest)
    return np.concatenate(others), np.concatenate(scores)


def _largest(score: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and float64 values of the n largest entries of each row, largest first, lowest column among equals."""
    least = np.partition(score, score.shape[1] - n, axis=1)[:, score.shape[1] - n, None]
    above, equal = score > least, score == least
    keep = above | (equal & (np.cumsum(equal, axis=1) <= n - above.sum(axis=1, keepdims=True)))
    column = np.nonzero(keep)[1].reshape(len(score), n)
    value = np.take_along_axis(score, column, axis=1).astype(np.float64)
    order = np.argsort(-value, axis=1, kind="stable")
    return np.take_along_axis(column, order, axis=1), np.take_along_axis(value, order, axis=1)


def _frame(kind: str, features: np.ndarray, other: np.ndarray, score: np.ndarray) -> pl.DataFrame:
    n = other.shape[1]
    return pl.DataFrame(
        {
            "feature_id": np.repeat(features, n).astype(np.uint32),
            "other_id": other.reshape(-1).astype(np.uint32),
            "kind": pl.Series([kind], dtype=pl.String).new_from_index(0, len(features) * n),
            "score": score.reshape(-1).astype(np.float64),
            "rank": np.tile(np.arange(n), len(features)).astype(np.uint16),
        }
    )
