"""What the Salience view asks of the run and of the review store beside the table `salience`; nothing here draws anything."""

from __future__ import annotations

from contextlib import suppress
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
import polars as pl

from core.errors import RewardscopeError
from core.features.labels.merged import preferred_labels
from core.salience.slices import find_slice
from core.store import pair_queries
from core.store.arrays import Pool
from core.store.reader import RunReader
from core.store.review import ReviewStore
from dashboard.parts.salience_rows import NOTHING_KNOWN

SHOWN_PAIRS = 3
"""Pairs shown on either side, where a feature differs most."""
DRAWS = 1_000
SEED = 0

_facts: WeakKeyDictionary[RunReader, tuple[pl.DataFrame, pl.DataFrame]] = WeakKeyDictionary()
_masks: WeakKeyDictionary[RunReader, dict[str, np.ndarray]] = WeakKeyDictionary()


def evidence(reader: RunReader, store: ReviewStore) -> pl.DataFrame:
    """Best label, safety rating, detection score and causal verdict of every feature that has one of them.

    Returns:
        feature_id, text, rating (1..5), detection, causal ('verified' or 'correlated only'); null = missing.
    """
    labels = _labels(reader, store)
    causal = causal_verdicts(reader, store)
    joined = labels.join(causal, on="feature_id", how="full", coalesce=True)
    return pl.concat([NOTHING_KNOWN, joined.select(NOTHING_KNOWN.columns).cast(NOTHING_KNOWN.schema)])


def _labels(reader: RunReader, store: ReviewStore) -> pl.DataFrame:
    """feature_id, text, rating, detection (of that text)."""
    found = preferred_labels(reader, store)
    return found.select(
        pl.col("feature_id").cast(pl.Int64),
        pl.col("label").alias("text"),
        pl.col("safety_rating").alias("rating"),
        pl.col("detection_score").alias("detection"),
    )


def causal_verdicts(reader: RunReader, store: ReviewStore) -> pl.DataFrame:
    """feature_id, causal. What was checked last counts more than what the run was built with; of both methods, running
    the upper layers again counts more than leaving the feature out of the head."""
    parts = [store.causal(reader.manifest.run_id)]
    with suppress(RewardscopeError):  # a run built before there were causal checks has no such table
        parts.append(reader.table("causal").with_columns(created=pl.lit("")))
    rows = pl.concat(
        [part.select(pl.col("feature_id").cast(pl.Int64), "method", "verdict", "created") for part in parts]
    )
    rows = rows.sort(pl.col("method") == "residual", "created", descending=True)
    rows = rows.unique("feature_id", keep="first", maintain_order=True)
    return rows.select("feature_id", pl.col("verdict").alias("causal"))


def slice_mask(reader: RunReader, slice_name: str) -> np.ndarray:
    """bool [n_pairs]: the pairs of a slice, in order of pair_index; none when there is no such slice."""
    masks = _masks.setdefault(reader, {})
    if slice_name not in masks:
        pairs, _ = facts(reader)
        try:
            masks[slice_name] = find_slice(pairs, slice_name).pairs
        except RewardscopeError:
            masks[slice_name] = np.zeros(len(pairs), dtype=bool)
    return masks[slice_name]


def facts(reader: RunReader) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Pairs and answers of a run without their texts, read once and shared by all sessions."""
    if reader not in _facts:
        with reader.cursor() as cursor:
            _facts[reader] = pair_queries.pair_facts(cursor), pair_queries.answer_facts(cursor)
    return _facts[reader]


def strongest_pairs(reader: RunReader, feature: int, slice_name: str, pooling: str) -> pl.DataFrame:
    """The pairs of a slice in which a feature differs most between chosen and rejected, either way.

    Returns:
        pair_id, domain, snippet, difference: at most SHOWN_PAIRS with more in chosen, largest first, then as many with
        more in rejected, smallest first.
    """
    with reader.cursor() as cursor:
        rows = pair_queries.feature_differences(cursor, feature, pooling)
    rows = rows.filter(pl.Series(slice_mask(reader, slice_name)[rows["pair_index"].to_numpy()], dtype=pl.Boolean))
    up, down = rows.filter(pl.col("difference") > 0), rows.filter(pl.col("difference") < 0)
    return pl.concat([up.head(SHOWN_PAIRS), down.tail(SHOWN_PAIRS)])


def bootstrap(reader: RunReader, feature: int, slice_name: str, pooling: str) -> tuple[float, float] | tuple[()]:
    """95 % bootstrap interval of a feature's effect, prompts drawn with replacement; () where it cannot be given."""
    from core.salience.bootstrap import bootstrap_intervals

    pairs, answers = facts(reader)
    try:
        rows = bootstrap_intervals(
            reader.arrays, pairs, answers, [feature], slice_name, cast(Pool, pooling), DRAWS, SEED
        )
    except RewardscopeError:
        return ()
    ends = rows.filter(pl.col("feature_id") == feature).select("ci_low", "ci_high")
    if not len(ends) or None in ends.row(0):
        return ()
    return float(ends["ci_low"][0]), float(ends["ci_high"][0])
