"""The contexts on which labels are chosen and scored: tokens where a feature is active, and tokens where it is not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl

from core.features.entries import FeatureEntries, mix, rank_in_group, values_at
from core.store.arrays import RunArrays

SAMPLES = 100
"""Active contexts of a feature, and inactive ones, looked at in each half where there are enough."""
ABSENT = -1


@dataclass(frozen=True)
class Contexts:
    """Token rows of one half at which features are active or not.

    Attributes:
        rows: int64 [features, samples], the anchor's token row; ABSENT fills up.
        active: bool [samples], which columns hold contexts with the feature active.
    """

    rows: np.ndarray
    active: np.ndarray


class Half:
    """The answers to one half of the prompts, and how contexts are drawn from them."""

    def __init__(self, arrays: RunArrays, member: np.ndarray, seed: int) -> None:
        self.arrays, self.member, self.seed = arrays, member, seed
        self.rows = np.flatnonzero(np.repeat(member, np.diff(arrays.token_start)))
        ids = arrays.token_ids[self.rows]
        self.by_token = self.rows[np.argsort(ids, kind="stable")]
        self.first = np.searchsorted(np.sort(ids), np.arange(int(np.max(arrays.token_ids)) + 2))

    def draw(self, block: FeatureEntries, peak_rows: np.ndarray) -> Contexts:
        """Draws up to SAMPLES active and SAMPLES inactive contexts of each feature of the block.

        Active: answers drawn uniformly among those in which the feature is active, at the token where it peaks.
        Inactive: half of them near misses, that is tokens with the ids of the active contexts' tokens, in the same
        proportions, and the rest tokens drawn uniformly; either way tokens at which the feature is not active. So a
        feature that is active at random has active and inactive contexts that look alike.

        Args:
            peak_rows: int64, token row of each entry's peak.
        """
        if not len(self.rows):
            return Contexts(np.full((block.hi - block.lo, 2 * SAMPLES), ABSENT), np.arange(2 * SAMPLES) < SAMPLES)
        own = np.flatnonzero(self.member[block.response])
        own = own[np.lexsort((mix(self.seed, block.feature[own], block.response[own]), block.feature[own]))]
        active = self._table(block, block.feature[own], peak_rows[own], SAMPLES)
        near = self._inactive(block, self._near(block, active), SAMPLES // 2)
        anywhere = self._inactive(block, self._anywhere(block), SAMPLES)
        spare = SAMPLES - np.sum(near >= 0, axis=1, keepdims=True)
        anywhere[np.arange(SAMPLES) >= spare] = ABSENT
        rows = np.concatenate([active, near, anywhere], axis=1)
        return Contexts(rows, np.arange(rows.shape[1]) < SAMPLES)

    def _near(self, block: FeatureEntries, active: np.ndarray) -> np.ndarray:
        """int64 [features, 2 SAMPLES]: token rows with the id of one active context after the other."""
        draw = np.arange(2 * SAMPLES)
        count = np.sum(active >= 0, axis=1, keepdims=True)
        model = np.take_along_axis(active, draw % np.maximum(count, 1), axis=1)
        token_id = self.arrays.token_ids[model]
        alike = self.first[token_id + 1] - self.first[token_id]
        at = mix(self.seed + 1, np.arange(block.lo, block.hi)[:, None], draw) % np.maximum(alike, 1).astype(np.uint64)
        place = np.minimum(self.first[token_id] + at.astype(np.int64), len(self.by_token) - 1)
        return np.where((count > 0) & (alike > 0), self.by_token[place], ABSENT)

    def _anywhere(self, block: FeatureEntries) -> np.ndarray:
        """int64 [features, 2 SAMPLES]: token rows drawn uniformly."""
        features = np.arange(block.lo, block.hi)[:, None]
        draw = mix(self.seed + 2, features, np.arange(2 * SAMPLES)) % np.uint64(len(self.rows))
        return self.rows[draw.astype(np.int64)]

    def _inactive(self, block: FeatureEntries, drawn: np.ndarray, n: int) -> np.ndarray:
        """The first n of the rows drawn for each feature at which it is not active, each once."""
        order = np.argsort(drawn, axis=1, kind="stable")
        again = np.zeros(drawn.shape, bool)
        in_order = np.take_along_axis(drawn, order, axis=1)
        np.put_along_axis(again, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
        feature, column = np.nonzero((drawn >= 0) & ~again)
        row = drawn[feature, column]
        off = values_at(self.arrays, row, feature + block.lo) == 0
        return self._table(block, feature[off] + block.lo, row[off], n)

    @staticmethod
    def _table(block: FeatureEntries, feature: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
        """The first n rows of each feature of the block, side by side."""
        table = np.full((block.hi - block.lo, n), ABSENT, np.int64)
        rank = rank_in_group(feature)
        kept = rank < n
        table[feature[kept] - block.lo, rank[kept]] = rows[kept]
        return table


def choosing_pairs(pairs: pl.DataFrame) -> list[str]:
    """The pairs whose prompt falls in the half that labels are made from; labels are scored on the others.

    Pairs of one prompt stay together.
    """
    rows = pairs.select("pair_id", "prompt_id").iter_rows()
    return [pair_id for pair_id, prompt_id in rows if hashlib.sha256(prompt_id.encode()).digest()[0] % 2 == 0]
