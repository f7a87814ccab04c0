"""Small stores of pooled activations for the tests of salience, dense and easy to check by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from core.store.arrays import RunArrays

POOLS = ("last", "mean", "max", "boundary_sum")


def arrays_of(dense: np.ndarray) -> RunArrays:
    """Arrays whose four poolings are all `dense` [n_responses, M]; zeros are not stored."""
    response, feature = np.nonzero(dense)
    values = dense[response, feature].astype(np.float32)
    empty = np.empty(0)
    return RunArrays(
        token_start=np.arange(len(dense) + 1), token_ids=empty, token_char=empty, token_boundary=empty,
        token_features=empty, token_values=empty, truncated=np.zeros(len(dense), bool),
        pooled_ptr=np.searchsorted(response, np.arange(len(dense) + 1)).astype(np.int64),
        pooled_features=feature.astype(np.uint32), last=values, mean=values, max=values, boundary_sum=values,
        states=None, latents=dense.shape[1],
    )  # fmt: skip


def frames_of(
    prompts: Sequence[str],
    sides: Sequence[tuple[int, int]] | None = None,
    *,
    n_tokens: Sequence[int] | None = None,
    n_boundary: Sequence[int] | None = None,
    labels: Sequence[dict[str, Any]] | None = None,
    **columns: Sequence[Any],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Frames of pairs and of answers.

    Args:
        prompts: the prompt of each pair.
        sides: (chosen, rejected) answers of each pair; one each when None.
        columns: split, domain or category of each pair.
    """
    n = len(prompts)
    sides = sides or [(1, 1)] * n
    pairs = pl.DataFrame(
        {
            "pair_id": [f"pair-{i}" for i in range(n)],
            "prompt_id": list(prompts),
            "split": columns.get("split", ["train"] * n),
            "domain": columns.get("domain", ["chat"] * n),
            "category": pl.Series(columns.get("category", [None] * n), dtype=pl.String),
            "labels": [json.dumps(row) for row in labels or [{}] * n],
        }
    )
    owner = [i for i, (c, r) in enumerate(sides) for _ in range(c + r)]
    responses = pl.DataFrame(
        {
            "response_id": range(len(owner)),
            "pair_id": [f"pair-{i}" for i in owner],
            "side": [side for c, r in sides for side in ["chosen"] * c + ["rejected"] * r],
            "n_tokens": list(n_tokens or [20] * len(owner)),
            "n_boundary": list(n_boundary or [2] * len(owner)),
        }
    )
    return pairs, responses


def real_shaped(rng: np.random.Generator, n_prompts: int, latents: int) -> tuple[np.ndarray, list[str]]:
    """Answers of 1 to 4 pairs a prompt with activations as real ones are: densities of a power law, heavy tails, some
    columns of few distinct values and some where one answer outweighs all others.

    Returns:
        dense [n_responses, latents], and each pair's prompt.
    """
    prompts = [f"prompt {g}" for g in range(n_prompts) for _ in range(rng.integers(1, 5))]
    density = np.minimum(0.9, 8.0 / (1 + np.arange(latents)) ** 0.7)
    active = rng.random((2 * len(prompts), latents)) < density
    values = rng.gamma(0.5, 1.0, active.shape) + 0.01
    values[:, ::5] = rng.integers(1, 4, values[:, ::5].shape)  # discrete
    values[:, 1::5] = np.exp(2.5 * rng.normal(size=values[:, 1::5].shape))  # heavy
    values[rng.integers(0, len(values), latents // 5), np.arange(0, latents, 5)[: latents // 5] + 2] *= 1000
    return np.where(active, values, 0.0), prompts
