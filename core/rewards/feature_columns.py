"""Columns of the pooled activations: one feature over all answers, read when first asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from core.store.arrays import Pool, RunArrays

DENSE_SHARE = 0.5
"""Columns active in a larger share of the answers are kept dense: adding them is then faster."""
SCAN = 1 << 22
"""Stored activations looked at together when columns are read."""
ROWS = 4096
"""Answers looked at together when rows are read."""


@dataclass(frozen=True)
class Column:
    """One feature's pooled activations.

    Attributes:
        rows: int64 [nnz] ascending, the answers in which it is not 0; None where `values` holds every answer.
        values: float64 [nnz] or [n_responses].
    """

    rows: np.ndarray | None
    values: np.ndarray

    def add_to(self, rewards: np.ndarray, factor: float) -> None:
        """rewards += factor * z, in place."""
        if self.rows is None:
            rewards += factor * self.values
        else:
            rewards[self.rows] += factor * self.values  # rows are distinct


class FeatureColumns:
    """The columns of a pooled matrix, read when first asked for and kept. Sessions may share one."""

    def __init__(self, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, shape: tuple[int, int]) -> None:
        """From the arrays of a CSR matrix, memory-mapped or not; only the columns asked for are copied."""
        self._indptr, self._indices, self._data = indptr, indices, data
        self.n, self.latents = shape
        self._columns: dict[int, Column] = {}

    @classmethod
    def of_arrays(cls, arrays: RunArrays, pooling: Pool) -> FeatureColumns:
        """Of a run's activations, without making a matrix of them."""
        shape = (arrays.n_responses, arrays.latents)
        return cls(arrays.pooled_ptr, arrays.pooled_features, getattr(arrays, pooling), shape)

    @classmethod
    def of_matrix(cls, pooled: sp.csr_matrix | sp.csc_matrix) -> FeatureColumns:
        """Of a sparse [n_responses, M] matrix."""
        rows = pooled if pooled.format == "csr" else pooled.tocsr()
        return cls(rows.indptr, rows.indices, rows.data, rows.shape)

    def sums(self, rows: np.ndarray) -> np.ndarray:
        """Sums of positive activations over some answers, float64 [M]: what salience is made of (SARM RQ2, SAFER section 3)."""
        total = np.zeros(self.latents)
        for _, features, values in self._entries(rows):
            total += np.bincount(features, weights=np.maximum(values, 0.0), minlength=self.latents)
        return total

    def dense(self, features: Sequence[int], rows: np.ndarray) -> np.ndarray:
        """The activations of some features in some answers, float64 [rows, features]; nothing of it is kept."""
        place = np.full(self.latents, -1)
        place[list(features)] = np.arange(len(features))
        found = np.zeros((len(rows), len(features)))
        for at, features_of, values in self._entries(rows):
            wanted = place[features_of] >= 0
            np.add.at(found, (at[wanted], place[features_of[wanted]]), values[wanted])
        return found

    def _entries(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The stored activations of some answers, some thousand answers at a time: place in `rows`, feature, value."""
        for begin in range(0, len(rows), ROWS):
            some = rows[begin : begin + ROWS]
            first = np.asarray(self._indptr)[some].astype(np.int64)
            count = np.asarray(self._indptr)[some + 1] - first
            at = np.repeat(np.arange(len(some)), count)
            entry = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
            yield begin + at, self._indices[entry], np.asarray(self._data[entry], np.float64)

    def __getitem__(self, feature: int) -> Column:
        if feature not in self._columns:
            self.load([feature])
        return self._columns[feature]

    def load(self, features: Iterable[int]) -> None:
        """Reads the columns of several features in one pass over the activations."""
        missing = [int(feature) for feature in dict.fromkeys(features) if feature not in self._columns]
        if not missing:
            return
        wanted = np.zeros(self.latents, bool)
        wanted[missing] = True
        found = [
            begin + np.flatnonzero(wanted[self._indices[begin : begin + SCAN]])
            for begin in range(0, len(self._indices), SCAN)
        ]
        at = np.concatenate(found) if found else np.zeros(0, np.int64)
        feature_of, values = np.asarray(self._indices)[at], np.asarray(self._data)[at]
        row_of = np.searchsorted(self._indptr, at, side="right") - 1
        for feature in missing:
            mine = np.flatnonzero(feature_of == feature)
            self._columns[feature] = self._column(row_of[mine], values[mine])

    def _column(self, rows: np.ndarray, values: np.ndarray) -> Column:
        some = values != 0
        rows, values = rows[some].astype(np.int64), values[some].astype(np.float64)
        if len(np.unique(rows)) != len(rows) or len(rows) > DENSE_SHARE * self.n:  # repeated entries add up
            return Column(None, np.bincount(rows, weights=values, minlength=self.n))
        return Column(rows, values)
