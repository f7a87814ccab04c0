"""Marks that are right and marks that are wrong: the question of the fuzzing score."""

from __future__ import annotations

import numpy as np

from core.features.entries import mix, values_at
from core.features.samples import ABSENT, Contexts
from core.store.arrays import RunArrays

MOVED_BEFORE, MOVED_AFTER = 24, 12
"""A moved mark stays within so many tokens of the right one (a stored context, with the default settings)."""
TRIES = 8


def moved_marks(arrays: RunArrays, contexts: Contexts, first_feature: int, seed: int) -> Contexts:
    """The active contexts of each feature: every first one as it is, every second with its mark on a wrong token.

    A wrong token is drawn uniformly from the same answer near the right one, until the feature is not active on it; a
    context in which none was found in TRIES draws is left out. Each context is used once, so right and wrong marks are
    independent samples.

    Args:
        first_feature: the feature of row 0.

    Returns:
        rows: int64 [features, samples]; `active` says in which columns the marks are right.
    """
    rows = contexts.rows[:, contexts.active].copy()
    right = np.arange(rows.shape[1]) % 2 == 0
    feature, column = np.nonzero((rows >= 0) & ~right)
    anchor, feature_id = rows[feature, column], feature + first_feature
    start = np.asarray(arrays.token_start)
    answer = np.searchsorted(start, anchor, side="right") - 1
    low = np.maximum(anchor - MOVED_BEFORE, start[answer])
    high = np.minimum(anchor + MOVED_AFTER, start[answer + 1] - 1)
    drawn = mix(seed + 3, feature_id[:, None], anchor[:, None], np.arange(TRIES))
    moved = low[:, None] + (drawn % (high - low + 1)[:, None].astype(np.uint64)).astype(np.int64)
    value = values_at(arrays, moved.reshape(-1), np.repeat(feature_id, TRIES)).reshape(moved.shape)
    found = (value == 0) & (moved != anchor[:, None])
    first = np.argmax(found, axis=1)
    every = np.arange(len(moved))
    rows[feature, column] = np.where(found.any(axis=1), moved[every, first], ABSENT) if len(moved) else ABSENT
    return Contexts(rows, right)
