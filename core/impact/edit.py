"""The pairs as a plan leaves them, as a file another trainer can read and nobody can mistake for clean data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from core.data.schema import MESSAGES
from core.errors import ConfigError, DataError, RunError, disk_full_is_said
from core.impact.plans import Plan
from core.store.reader import RunReader

FORMATS = ("parquet", "jsonl")
POISONED = "POISONED"
"""Stands in the file name of every poisoned export; its rows carry `rewardscope_poisoned` = true."""


def edited_pairs(pairs: pl.DataFrame, responses: pl.DataFrame, plan: Plan) -> pl.DataFrame:
    """All pairs after a plan: flipped ones with their sides swapped, dropped ones left out, held-out ones as they were.

    Args:
        pairs: the table `pair`, or a frame in PAIR_SCHEMA.
        responses: the table `response`, or a frame in RESPONSE_SCHEMA.

    Returns:
        pair_id, source, split, domain, category, messages, chosen, rejected (lists of texts), labels (JSON): the generic shape
        that `pairs.source` reads. Then where each row comes from: rewardscope_plan, _direction, _strategy, _ratio,
        _action ('keep' or 'flip'), _pair_id and _split (as in the run), _run, _set ('name@version' or null) and
        rewardscope_poisoned (true in every row of a poisoned data set).

    Raises:
        DataError: the plan names a pair that is not there.
    """
    unknown = [pair_id for pair_id in plan.edits if pair_id not in set(pairs["pair_id"])] if plan.edits else []
    if unknown:
        raise DataError(f"The plan {plan.id} names the pair {unknown[0]!r}, which is not among these pairs.")
    sides = (
        responses.sort("response_id")
        .group_by("pair_index", maintain_order=True)
        .agg(
            pl.col("text").filter(pl.col("side") == "chosen").alias("chosen"),
            pl.col("text").filter(pl.col("side") == "rejected").alias("rejected"),
        )
    )
    action = pl.Series("action", [plan.edits.get(pair_id, "keep") for pair_id in pairs["pair_id"]], dtype=pl.String)
    messages = pl.col("messages")
    if pairs.schema["messages"] == pl.String:
        messages = messages.str.json_decode(MESSAGES)
    flipped = pl.col("action") == "flip"
    set_name = None
    if plan.feature_set is not None:
        set_name = f"{plan.feature_set.get('name')}@{plan.feature_set.get('version')}"
    return (
        pairs.with_columns(action, messages)
        .join(sides, on="pair_index", how="left", maintain_order="left")
        .filter(pl.col("action") != "drop")
        .select(
            "pair_id",
            "source",
            "split",
            "domain",
            "category",
            "messages",
            pl.when(flipped).then("rejected").otherwise("chosen").alias("chosen"),
            pl.when(flipped).then("chosen").otherwise("rejected").alias("rejected"),
            "labels",
            pl.lit(plan.id).alias("rewardscope_plan"),
            pl.lit(plan.direction).alias("rewardscope_direction"),
            pl.lit(plan.strategy).alias("rewardscope_strategy"),
            pl.lit(plan.ratio).alias("rewardscope_ratio"),
            pl.col("action").alias("rewardscope_action"),
            pl.col("pair_id").alias("rewardscope_pair_id"),
            pl.col("split").alias("rewardscope_split"),
            pl.lit(plan.run).alias("rewardscope_run"),
            pl.lit(set_name, dtype=pl.String).alias("rewardscope_set"),
            pl.lit(plan.direction == "poison").alias("rewardscope_poisoned"),
        )
    )


def export_edited(run: RunReader, plan: Plan, target: Path, format: str = "parquet") -> Path:
    """Writes `edited_pairs` of a run.

    Args:
        target: the file; a folder gets a file named after the plan. A poisoned export has POISONED in its name in any case.
        format: 'parquet' or 'jsonl'.

    Returns:
        The file written.

    Raises:
        ConfigError: an unknown format.
        DataError: the plan was made for other pairs.
        RunError: the file is there already, or cannot be written.
    """
    from core.impact.inputs import data_hash

    if format not in FORMATS:
        raise ConfigError(f"Format {format!r} is not known; use parquet or jsonl.")
    pairs, responses = run.table("pair"), run.table("response")
    if data_hash(pairs, responses) != plan.data_sha256:
        raise DataError(f"The plan {plan.id} was made for other pairs than those of {run.name}; make it again.")
    path = target / f"{plan.direction}-{plan.action}-{plan.strategy}-{plan.id}.{format}" if target.is_dir() else target
    if plan.direction == "poison" and POISONED not in path.name:
        path = path.with_name(f"{POISONED}-{path.name}")
    frame = edited_pairs(pairs, responses, plan)
    try:
        with disk_full_is_said(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:  # never over a file that is there
                _write(frame, file, format)
    except FileExistsError:
        raise RunError(f"{path} is there already; give another place or remove it first.") from None
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}).") from None
    return path


def _write(frame: pl.DataFrame, file: Any, format: str) -> None:
    if format == "parquet":
        frame.write_parquet(file, compression="zstd")
    else:
        frame.write_ndjson(file)
