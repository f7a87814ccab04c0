"""Safety sets from salience thresholds and from ratings (SAFER section 3)."""

from __future__ import annotations

from typing import Any

import polars as pl

from core.config import ImpactConfig, SalienceConfig
from core.errors import DataError
from core.store.reader import RunReader
from core.store.sets import FeatureSet

DEFAULT_NAME = "top by |s|"
DEFAULT_SLICE, DEFAULT_POOLING = "split=train", "boundary_sum"
"""Where sets are taken from when nothing else is said: the pairs a plan may change, and SAFER's sums."""


def set_by_salience(
    salience: pl.DataFrame,
    *,
    name: str,
    sae: str,
    size: int | None = None,
    order: str = "s",
    max_q: float | None = None,
    min_effect_size: float | None = None,
    length_adjusted: bool = False,
    slice: str = "split=train",
    pooling: str = "boundary_sum",
) -> FeatureSet:
    """A set from salience thresholds: S+ where the sign is positive, S- where it is negative.

    Args:
        salience: rows of one slice and pooling of the table `salience`.
        size: keep the `size` largest |order|; None keeps all that pass.
        order: 's' (SAFER ranks by |s| before it splits by sign), 'effect_size' or 'effect'.
        max_q: only features with q at most this; those not tested are left out.
        min_effect_size: only features with |effect_size| at least this.
        length_adjusted: judge q and the sign by the length-adjusted effect.

    Raises:
        DataError: no feature passes.
    """
    q, sign = ("q_adjusted", "effect_length_adjusted") if length_adjusted else ("q", order)
    rows = salience.filter(pl.col(order).is_not_null() & pl.col(sign).is_not_null() & (pl.col(sign) != 0))
    if max_q is not None:
        rows = rows.filter(pl.col(q).is_not_null() & (pl.col(q) <= max_q))
    if min_effect_size is not None:
        rows = rows.filter(pl.col("effect_size").abs() >= min_effect_size)
    rows = rows.sort(pl.col(order).abs(), "feature_id", descending=[True, False])
    if size is not None:
        rows = rows.head(size)
    if rows.is_empty():
        raise DataError(f"No feature of slice {slice!r} passes these thresholds; loosen them.")
    how = {
        "method": "salience",
        "slice": slice,
        "pooling": pooling,
        "order": order,
        "size": size,
        "max_q": max_q,
        "min_effect_size": min_effect_size,
        "length_adjusted": length_adjusted,
    }
    return _by_sign(rows, sign, name, sae, how)


def default_set(salience: pl.DataFrame, *, sae: str, size: int = 32) -> FeatureSet:
    """The set a run shows before anyone makes one: SAFER's `size` highest |s| on the training pairs, without ratings.

    Args:
        salience: the table `salience`, or any part of it with the slice 'split=train'.

    Raises:
        DataError: salience has no such slice (a run whose pairs are all held out).
    """
    rows = salience.filter(slice=DEFAULT_SLICE)
    poolings = rows["pooling"].unique().to_list()
    pooling = DEFAULT_POOLING if DEFAULT_POOLING in poolings or not poolings else sorted(poolings)[0]
    rows = rows.filter(pooling=pooling)
    return set_by_salience(rows, name=DEFAULT_NAME, sae=sae, size=size, slice=DEFAULT_SLICE, pooling=pooling)


def default_set_of(reader: RunReader) -> FeatureSet:
    """`default_set` of a finished run, with the size its configuration gives: one set for build, page and command line.

    Raises:
        DataError: the run stores no salience of its training pairs.
    """
    size = int(reader.manifest.config.get("impact", {}).get("set_size", ImpactConfig().set_size))
    others = sorted(set(SalienceConfig().poolings) - {DEFAULT_POOLING})
    for pooling in (DEFAULT_POOLING, *others):
        rows = reader.salience(DEFAULT_SLICE, pooling)
        if len(rows):
            return default_set(rows, sae=str(reader.manifest.sae["sha256"]), size=size)
    raise DataError("This run stores no salience of training pairs; build it again to get some.")


def set_by_rating(
    salience: pl.DataFrame,
    ratings: pl.DataFrame,
    *,
    name: str,
    sae: str,
    min_rating: int = 5,
    candidates: int = 256,
    size: int | None = 32,
    slice: str = "split=train",
    pooling: str = "boundary_sum",
) -> FeatureSet:
    """SAFER's set: of the `candidates` highest |s|, those rated `min_rating` or more; the first `size` of them by |s|.

    A feature without a rating is left out: missing is never a rating (the public code keeps such features).

    Args:
        salience: rows of one slice and pooling.
        ratings: feature_id, safety_rating (NULL = missing).

    Raises:
        DataError: no rated feature passes.
    """
    rated = ratings.filter(pl.col("safety_rating").is_not_null() & (pl.col("safety_rating") >= min_rating))
    ranked = salience.filter(pl.col("s").is_not_null() & (pl.col("s") != 0))
    ranked = ranked.sort(pl.col("s").abs(), "feature_id", descending=[True, False]).head(candidates)
    rows = ranked.join(rated.select("feature_id").unique(), on="feature_id", how="semi", maintain_order="left")
    if size is not None:
        rows = rows.head(size)
    if rows.is_empty():
        raise DataError(
            f"None of the {candidates} most salient features has a safety rating of {min_rating} or more; "
            "rate them with `rewardscope label`, lower the rating, or choose the set by salience."
        )
    how = {
        "method": "rating",
        "slice": slice,
        "pooling": pooling,
        "min_rating": min_rating,
        "candidates": candidates,
        "size": size,
        "rated": int(ratings["safety_rating"].is_not_null().sum()),
    }
    return _by_sign(rows, "s", name, sae, how)


def _by_sign(rows: pl.DataFrame, column: str, name: str, sae: str, how: dict[str, Any]) -> FeatureSet:
    ids, positive = rows["feature_id"].to_list(), (rows[column] > 0).to_list()
    plus = [f for f, up in zip(ids, positive, strict=True) if up]
    minus = [f for f, up in zip(ids, positive, strict=True) if not up]
    return FeatureSet(name, tuple(plus), tuple(minus), sae, how)
