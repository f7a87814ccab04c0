"""Chosen - rejected features as a matrix in the coordinates in which the head is penalised, with fast block products.

In these coordinates (u_i = s_i w_i, core.rewards.head) the objective is  mean loss(D u) + l2/2 |u|^2.  D is built once; plans
change only the sign and the weight of its rows, so many plans are refitted side by side and share every pass over D.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Protocol, TypeVar

import numpy as np
import scipy.sparse as sp

from core.impact import kernels
from core.rewards.head import Comparisons

T = TypeVar("T")

LIVE = 1e-12
"""Features with a smaller standard deviation carry no weight, as in core.rewards.head."""


class Differences(Protocol):
    """D [n comparisons, m], one row a comparison. Blocks are [n or m, plans]."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def unit(self, weights: np.ndarray) -> np.ndarray:
        """Head weights [features] or [features, plans] in D's coordinates, float64."""
        ...

    def weights(self, u: np.ndarray) -> np.ndarray:
        """The other way, float64 [features, plans]; 0 for features that are not live."""
        ...

    def margins(self, u: np.ndarray) -> np.ndarray:
        """D u in float64."""
        ...

    def transposed(self, factors: np.ndarray) -> np.ndarray:
        """D' factors in float64."""
        ...

    def hessian(self, curvature: np.ndarray, u: np.ndarray) -> np.ndarray:
        """D' (curvature * (D u)) in float32: for directions, never for results."""
        ...

    def squares(self, weights: np.ndarray) -> np.ndarray:
        """Diagonal of D' diag(weights) D, float64 [m]."""
        ...


class SparseDifferences:
    """D from pooled SAE activations: all features share one scale, the median standard deviation of the live ones.

    Columns are kept from the most to the least frequent, which keeps what is read most often in the cache.

    Args:
        features: [n_responses, M] float32, columns ascending in each row.
        comparisons: what is fitted on.
    """

    def __init__(self, features: sp.csr_matrix, comparisons: Comparisons) -> None:
        ptr, columns, values = features.indptr, features.indices, np.asarray(features.data, np.float32)
        latents = features.shape[1]
        used = np.unique(np.concatenate([comparisons.chosen, comparisons.rejected]))
        count, total, square = np.zeros(latents, np.int64), np.zeros(latents), np.zeros(latents)
        kernels.column_moments(ptr, columns, values, used, count, total, square)
        deviation = np.sqrt(np.maximum(square / len(used) - (total / len(used)) ** 2, 0.0))
        live = deviation > LIVE
        self.scale = float(np.median(deviation[live])) if live.any() else 1.0
        # Features that are equal in all answers cancel in every difference; they stay, with weight 0.
        self._columns = np.argsort(-count, kind="stable")[: int((count > 0).sum())]
        self._live = live[self._columns]
        self._latents = latents
        narrow = np.uint16 if len(self._columns) <= 1 << 16 else np.int32
        order = np.zeros(latents, narrow)
        order[self._columns] = np.arange(len(self._columns))
        counts = np.empty(len(comparisons), np.int64)
        kernels.count_differences(ptr, columns, comparisons.chosen, comparisons.rejected, counts)
        self._ptr = np.concatenate([[0], np.cumsum(counts)])
        self._index = np.empty(self._ptr[-1], narrow)
        self._value = np.empty(self._ptr[-1], np.float32)
        kernels.fill_differences(
            ptr, columns, values, comparisons.chosen, comparisons.rejected, order, self._ptr, self._index, self._value
        )

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._ptr) - 1, len(self._columns)

    @property
    def entries(self) -> int:
        """Stored differences."""
        return len(self._value)

    def unit(self, weights: np.ndarray) -> np.ndarray:
        found = weights[self._columns] * self.scale
        found[~self._live] = 0.0
        return found

    def weights(self, u: np.ndarray) -> np.ndarray:
        found = np.zeros((self._latents, *u.shape[1:]))
        found[self._columns] = u / self.scale
        return found

    def margins(self, u: np.ndarray) -> np.ndarray:
        out = np.empty((self.shape[0], u.shape[1]))
        vectors = np.ascontiguousarray(u, np.float64) / self.scale
        self._share(lambda begin, stop: kernels.row_products(*self._csr, vectors, out, begin, stop))
        return out

    def transposed(self, factors: np.ndarray) -> np.ndarray:
        factors = np.ascontiguousarray(factors, np.float64)

        def part(begin: int, stop: int) -> np.ndarray:
            out = np.zeros((self.shape[1], factors.shape[1]))
            kernels.transposed_products(*self._csr, factors, out, begin, stop)
            return out

        return sum(self._share(part)) / self.scale

    def hessian(self, curvature: np.ndarray, u: np.ndarray) -> np.ndarray:
        curvature = np.asarray(curvature, np.float32) / np.float32(self.scale**2)
        single = u.shape[1] == 1
        vectors = np.ascontiguousarray(u[:, 0] if single else u, np.float32)
        curvature = np.ascontiguousarray(curvature[:, 0] if single else curvature)
        run = kernels.hessian_product if single else kernels.hessian_products

        def part(begin: int, stop: int) -> np.ndarray:
            out = np.zeros_like(vectors)
            run(*self._csr, curvature, vectors, out, begin, stop)
            return out

        return sum(self._share(part)).reshape(u.shape)

    def squares(self, weights: np.ndarray) -> np.ndarray:
        def part(begin: int, stop: int) -> np.ndarray:
            out = np.zeros(self.shape[1])
            kernels.weighted_squares(*self._csr, weights, out, begin, stop)
            return out

        return sum(self._share(part)) / self.scale**2

    @property
    def _csr(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._ptr, self._index, self._value

    def _share(self, work: Callable[[int, int], T]) -> list[T]:
        """Runs `work(begin, stop)` on every core, rows shared out by their entries; results in row order."""
        cores = available_cores()
        targets = np.linspace(0, self._ptr[-1], cores + 1)
        edges = np.searchsorted(self._ptr, targets)
        edges[0], edges[-1] = 0, self.shape[0]
        spans = [(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a] or [(0, self.shape[0])]
        if len(spans) == 1:
            return [work(*spans[0])]
        return list(_pool(cores).map(lambda span: work(*span), spans))


class DenseDifferences:
    """D from dense states (the final state of an ordinary reward model): each axis in units of its own spread.

    Args:
        features: [n_responses, d] float.
        comparisons: what is fitted on.
    """

    def __init__(self, features: np.ndarray, comparisons: Comparisons) -> None:
        used = np.unique(np.concatenate([comparisons.chosen, comparisons.rejected]))
        self.scale = np.std(features[used], axis=0, dtype=np.float64)
        self._live = np.flatnonzero(self.scale > LIVE)
        self._d = features.shape[1]
        difference = features[comparisons.chosen] - features[comparisons.rejected]
        self._exact = difference[:, self._live].astype(np.float64) / self.scale[self._live]
        self._fast = self._exact.astype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        return self._exact.shape[0], self._exact.shape[1]

    def unit(self, weights: np.ndarray) -> np.ndarray:
        return (weights.T * self.scale).T[self._live]

    def weights(self, u: np.ndarray) -> np.ndarray:
        found = np.zeros((self._d, *u.shape[1:]))
        found[self._live] = (u.T / self.scale[self._live]).T
        return found

    def margins(self, u: np.ndarray) -> np.ndarray:
        return self._exact @ u

    def transposed(self, factors: np.ndarray) -> np.ndarray:
        return self._exact.T @ factors

    def hessian(self, curvature: np.ndarray, u: np.ndarray) -> np.ndarray:
        product = self._fast @ u.astype(np.float32)
        return self._fast.T @ (product * curvature.astype(np.float32))

    def squares(self, weights: np.ndarray) -> np.ndarray:
        return np.einsum("ij,ij,i->j", self._exact, self._exact, weights)


def differences_of(features: sp.csr_matrix | np.ndarray, comparisons: Comparisons) -> Differences:
    """D for pooled activations (sparse) or states (dense, each axis standardised)."""
    if isinstance(features, np.ndarray):
        return DenseDifferences(features, comparisons)
    return SparseDifferences(features, comparisons)


def available_cores(most: int = 8) -> int:
    """Cores this process may use, at most `most`: every further one needs a block of its own to add into."""
    try:
        found = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        found = os.cpu_count() or 1
    return max(1, min(found, most))


@cache
def _pool(cores: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores, thread_name_prefix="refit")
