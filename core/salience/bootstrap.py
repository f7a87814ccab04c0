"""Bootstrap intervals for the features on screen: slower than the t intervals of the table, without their assumptions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from core.salience.slices import find_slice
from core.store.arrays import Pool, RunArrays

CHUNK = 4_000_000
"""Pooled entries looked at, and prompts drawn, at once. It bounds memory and changes no result."""


def bootstrap_intervals(
    arrays: RunArrays,
    pairs: pl.DataFrame,
    responses: pl.DataFrame,
    features: Sequence[int],
    slice: str = "all",
    pooling: Pool = "mean",
    draws: int = 2000,
    seed: int = 0,
) -> pl.DataFrame:
    """95 % percentile bootstrap intervals of `effect`, whole prompts drawn with replacement.

    Args:
        pairs: the frame or table of pairs; responses: of answers, ordered by response_id.
        features: ids, in the order wanted.

    Returns:
        feature_id, ci_low, ci_high (null where the slice has fewer than two prompts); the same draws for every feature.

    Raises:
        DataError: no pair belongs to the slice.
    """
    chosen = prompt_differences(arrays, pairs, responses, features, slice, pooling)
    n = len(chosen)
    ids = pl.Series("feature_id", list(features), dtype=pl.UInt32)
    if n < 2:
        nothing = pl.Series([None] * len(ids), dtype=pl.Float64)
        return pl.DataFrame({"feature_id": ids, "ci_low": nothing, "ci_high": nothing})
    rng = np.random.default_rng(seed)
    means = np.empty((draws, len(ids)))
    step = max(1, CHUNK // n)
    for begin in range(0, draws, step):
        picked = rng.integers(0, n, (min(step, draws - begin), n))
        picked += np.arange(len(picked))[:, None] * n
        times = np.bincount(picked.reshape(-1), minlength=len(picked) * n).reshape(len(picked), n)
        means[begin : begin + len(picked)] = times @ chosen / n
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return pl.DataFrame({"feature_id": ids, "ci_low": low, "ci_high": high})


def prompt_differences(
    arrays: RunArrays, pairs: pl.DataFrame, responses: pl.DataFrame, features: Sequence[int], slice: str, pooling: Pool
) -> np.ndarray:
    """float64 [n_prompts, len(features)]: u_g of some features, one row for each prompt of the slice.

    The mean over the prompt's pairs in the slice of mean chosen - mean rejected activation.

    Raises:
        DataError: no pair belongs to the slice.
    """
    part = pairs.select("pair_id", "prompt_id").filter(pl.Series(find_slice(pairs, slice).pairs))
    _, prompt = np.unique(part["prompt_id"].to_numpy().astype(str), return_inverse=True)
    per_prompt = np.bincount(prompt)
    known = part.select("pair_id", prompt=pl.Series(prompt.astype(np.int64), dtype=pl.Int64))
    answers = responses.select(
        "pair_id",
        share=pl.when(pl.col("side") == "chosen").then(1.0).otherwise(-1.0) / pl.len().over("pair_id", "side"),
    ).join(known, on="pair_id", how="left", maintain_order="left")
    row = answers["prompt"].fill_null(-1).to_numpy()
    share = np.where(row >= 0, answers["share"].to_numpy() / per_prompt[row], 0.0)

    distinct, column = np.unique(np.asarray(features, np.int64), return_inverse=True)
    place = np.full(arrays.latents, -1, np.int64)
    place[distinct] = np.arange(len(distinct))
    start, values = np.asarray(arrays.pooled_ptr), getattr(arrays, pooling)
    table = np.zeros((len(per_prompt), len(distinct)))
    for first in range(0, len(arrays.pooled_features), CHUNK):
        where = place[arrays.pooled_features[first : first + CHUNK]]
        at = np.flatnonzero(where >= 0)
        answer = np.searchsorted(start, at + first, side="right") - 1
        inside = row[answer] >= 0
        at, answer = at[inside], answer[inside]
        np.add.at(table, (row[answer], where[at]), share[answer] * values[first : first + CHUNK][at])
    return table[:, column]
