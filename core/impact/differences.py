"""Chosen - rejected features as a matrix in the coordinates in which the head is penalised, with fast block products.

In these coordinates (u_i = s_i w_i, core.rewards.head) the objective is  mean loss(D u) + l2/2 |u|^2.  D is built once; plans
change only the sign and the weight of its rows, so many plans are refitted side by side and share every pass over D.
"""

from __future__ import annotations

import itertools
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


class SparseRows:
    """A CSR matrix in few bytes with products on every core; blocks are [n or m, plans].

    Args:
        ptr: int64 [n + 1]; columns: uint16 or int32 [entries] (`narrowest`); values: float32 [entries].
        m: columns of the matrix.
    """

    def __init__(self, ptr: np.ndarray, columns: np.ndarray, values: np.ndarray, m: int) -> None:
        self.ptr, self.columns, self.values, self.m = ptr, columns, values, m

    @classmethod
    def of(cls, matrix: sp.csr_matrix) -> SparseRows:
        """The same matrix, copied."""
        m = matrix.shape[1]
        columns, values = matrix.indices.astype(narrowest(m)), matrix.data.astype(np.float32)
        return cls(matrix.indptr.astype(np.int64), columns, values, m)

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def times(self, vectors: np.ndarray) -> np.ndarray:
        """The matrix times `vectors` [m, plans], float64 [n, plans]."""
        vectors = np.ascontiguousarray(_flat(vectors), np.float64)
        out = np.empty((len(self), *vectors.shape[1:]))
        run = kernels.row_product if vectors.ndim == 1 else kernels.row_products
        self._share(lambda begin, stop: run(*self._csr, vectors, out, begin, stop))
        return out.reshape(len(self), -1)

    def transposed_times(self, factors: np.ndarray) -> np.ndarray:
        """The transposed matrix times `factors` [n, plans], float64 [m, plans]."""
        factors = np.ascontiguousarray(_flat(factors), np.float64)
        run = kernels.transposed_product if factors.ndim == 1 else kernels.transposed_products

        def part(begin: int, stop: int) -> np.ndarray:
            out = np.zeros((self.m, *factors.shape[1:]))
            run(*self._csr, factors, out, begin, stop)
            return out

        return _sum(self._share(part)).reshape(self.m, -1)

    def hessian_times(self, curvature: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """A' (curvature * (A vectors)) in float32 [m, plans]; curvature [n, plans]."""
        curvature = np.ascontiguousarray(_flat(curvature), np.float32)
        vectors = np.ascontiguousarray(_flat(vectors), np.float32)
        run = kernels.hessian_product if vectors.ndim == 1 else kernels.hessian_products

        def part(begin: int, stop: int) -> np.ndarray:
            out = np.zeros_like(vectors)
            run(*self._csr, curvature, vectors, out, begin, stop)
            return out

        return _sum(self._share(part)).reshape(self.m, -1)

    @property
    def _csr(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.ptr, self.columns, self.values

    def _share(self, work: Callable[[int, int], T]) -> list[T]:
        """Runs `work(begin, stop)` on every core, rows shared out by their entries; results in row order."""
        cores = available_cores()
        edges = np.searchsorted(self.ptr, np.linspace(0, self.ptr[-1], cores + 1))
        edges[0], edges[-1] = 0, len(self)
        spans = [(int(a), int(b)) for a, b in itertools.pairwise(edges) if b > a]
        if len(spans) < 2:
            return [work(0, len(self))]
        return list(_pool(cores).map(lambda span: work(*span), spans))


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
        narrow = narrowest(latents)
        order = np.zeros(latents, narrow)
        order[self._columns] = np.arange(len(self._columns))
        counts = np.empty(len(comparisons), np.int64)
        kernels.count_differences(ptr, columns, comparisons.chosen, comparisons.rejected, counts)
        rows = np.concatenate([[0], np.cumsum(counts)])
        index, value = np.empty(rows[-1], narrow), np.empty(rows[-1], np.float32)
        kernels.fill_differences(
            ptr, columns, values, comparisons.chosen, comparisons.rejected, order, rows, index, value
        )
        self._rows = SparseRows(rows, index, value, len(self._columns))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._rows), len(self._columns)

    @property
    def entries(self) -> int:
        """Stored differences."""
        return len(self._rows.values)

    def unit(self, weights: np.ndarray) -> np.ndarray:
        found = weights[self._columns] * self.scale
        found[~self._live] = 0.0
        return found

    def weights(self, u: np.ndarray) -> np.ndarray:
        found = np.zeros((self._latents, *u.shape[1:]))
        found[self._columns] = (u.T * self._live / self.scale).T
        return found

    def margins(self, u: np.ndarray) -> np.ndarray:
        return self._rows.times(u / self.scale)

    def transposed(self, factors: np.ndarray) -> np.ndarray:
        return self._rows.transposed_times(factors) / self.scale

    def hessian(self, curvature: np.ndarray, u: np.ndarray) -> np.ndarray:
        return self._rows.hessian_times(np.asarray(curvature, np.float32) / np.float32(self.scale**2), u)


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


def differences_of(features: sp.csr_matrix | np.ndarray, comparisons: Comparisons) -> Differences:
    """D for pooled activations (sparse) or states (dense, each axis standardised)."""
    if isinstance(features, np.ndarray):
        return DenseDifferences(features, comparisons)
    return SparseDifferences(features, comparisons)


def narrowest(columns: int) -> type[np.uint16] | type[np.int32]:
    """The smallest type that numbers so many columns: what a product waits for is memory."""
    return np.uint16 if columns <= 1 << 16 else np.int32


def _flat(block: np.ndarray) -> np.ndarray:
    """A block of one plan as a vector: the loops for one are several times as fast."""
    return block[:, 0] if block.ndim == 2 and block.shape[1] == 1 else block


def _sum(parts: list[np.ndarray]) -> np.ndarray:
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


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
