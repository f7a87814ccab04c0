"""Every label of a run's features: those the run was built with, and those added beside it (endpoints, reviewers)."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from core.store.reader import RunReader
from core.store.review import ReviewStore

OFFLINE, REVIEWER = "offline", "reviewer"
_SCORES = {
    f"{kind}_{name}": dtype
    for kind in ("detection", "fuzzing")
    for name, dtype in (("score", pl.Float64), ("low", pl.Float64), ("high", pl.Float64), ("n", pl.Int64))
}
MERGED_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "feature_id": pl.Int64,
    "source": pl.String,
    "model": pl.String,
    "text": pl.String,
    "safety_rating": pl.Int64,
    "monosemanticity": pl.Int64,
    "problem": pl.String,
    **_SCORES,
    "created": pl.String,
}


def merged_labels(reader: RunReader, store: ReviewStore, features: Sequence[int] | None = None) -> pl.DataFrame:
    """One row for each feature and source; by feature, the run's offline label first, then newest first.

    Args:
        features: only these; None = all.

    Returns:
        MERGED_SCHEMA: source is 'offline', a model's name or 'reviewer'; text, ratings and scores are null where
        missing, and `problem` then says why; created is '' for labels the run was built with.
    """
    rows = _joined(reader.table("label"), store.labels(reader.manifest.sae["sha256"]))
    return rows if features is None else rows.filter(pl.col("feature_id").is_in(list(features)))


def feature_labels(built: pl.DataFrame, reader: RunReader, store: ReviewStore, feature: int) -> pl.DataFrame:
    """`merged_labels` of one feature, from the run's labels of it that the caller has read already (FeatureCard.labels)."""
    added = store.labels(reader.manifest.sae["sha256"]).filter(pl.col("feature_id") == feature)
    return _joined(built.with_columns(feature_id=pl.lit(feature)), added)


def _joined(built: pl.DataFrame, added: pl.DataFrame) -> pl.DataFrame:
    """Labels the run was built with and labels added beside it, in the order of `merged_labels`."""
    rows = [_fitted(built.with_columns(created=pl.lit(""))), _fitted(added.with_columns(model=pl.col("source")))]
    first = pl.col("source") == OFFLINE
    return pl.concat(rows).sort(
        "feature_id", first, "created", "source", descending=[False, True, True, False], maintain_order=True
    )


def preferred_labels(reader: RunReader, store: ReviewStore) -> pl.DataFrame:
    """One row for each feature that has a label or a rating.

    The label is the reviewer's, else the newest of an endpoint, else the offline one; replies that could not be used
    are passed over. The rating is taken in the same order, from the first that has one.

    Returns:
        feature_id, label, source, detection_* and fuzzing_* of that label, safety_rating, monosemanticity,
        rating_source; null where missing.
    """
    rows = merged_labels(reader, store).sort(
        pl.col("feature_id"),
        pl.col("source") != REVIEWER,
        pl.col("source") == OFFLINE,
        pl.col("created"),
        descending=[False, False, False, True],
        maintain_order=True,
    )
    texts = rows.filter(pl.col("text").is_not_null()).unique("feature_id", keep="first", maintain_order=True)
    ratings = rows.filter(pl.col("safety_rating").is_not_null()).unique("feature_id", keep="first", maintain_order=True)
    return (
        texts.select("feature_id", pl.col("text").alias("label"), "source", *_SCORES)
        .join(
            ratings.select("feature_id", "safety_rating", "monosemanticity", pl.col("source").alias("rating_source")),
            on="feature_id",
            how="full",
            coalesce=True,
        )
        .sort("feature_id")
    )


def _fitted(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame in MERGED_SCHEMA; what it does not have is null (runs built by earlier versions have fewer columns)."""
    missing = [pl.lit(None).alias(name) for name in MERGED_SCHEMA if name not in frame.columns]
    return frame.with_columns(missing).select(pl.col(name).cast(dtype) for name, dtype in MERGED_SCHEMA.items())
