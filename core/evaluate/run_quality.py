"""What a run is worth: held-out accuracy, what the SAE loses against the raw states, baselines, health."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from core.config import HeadConfig
from core.features.extract import Answer, activations_of
from core.models.backbone import Backbone
from core.rewards.accuracy import Estimate, cluster_bootstrap, pair_outcome
from core.rewards.decomposition import reward_scale
from core.rewards.head import all_comparisons, choose_l2
from core.sae.topk import TopKSAE
from core.store.arrays import RunArrays
from core.store.pooling import pool_answer

EVALUATION_SCHEMA = {
    "benchmark": pl.String,
    "subset": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.UInt64,
    "note": pl.String,
}


@dataclass(frozen=True)
class PairTable:
    """What the figures need to know of the pairs, as arrays.

    Attributes:
        response_pair: int64 [n_responses], pair of each answer.
        chosen: bool [n_responses].
        prompt: int64 [n_pairs], which prompt.
        train: bool [n_pairs].
        domain: str [n_pairs].
    """

    response_pair: np.ndarray
    chosen: np.ndarray
    prompt: np.ndarray
    train: np.ndarray
    domain: np.ndarray

    @classmethod
    def of(cls, pairs: pl.DataFrame, responses: pl.DataFrame) -> PairTable:
        return cls(
            response_pair=responses["pair_index"].to_numpy().astype(np.int64),
            chosen=(responses["side"] == "chosen").to_numpy(),
            prompt=np.unique(pairs["prompt_id"].to_numpy(), return_inverse=True)[1],
            train=(pairs["split"] == "train").to_numpy(),
            domain=pairs["domain"].to_numpy(),
        )


def accuracy_rows(rewards: np.ndarray, table: PairTable, config: HeadConfig, prefix: str = "") -> list[dict[str, Any]]:
    """Pair accuracy and mean margin, held-out and on the training pairs, over all and per domain.

    Args:
        prefix: put before the benchmark's name, for rewards that are not those of the head on features.
    """
    correct, margin = pair_outcome(rewards, table.response_pair, table.chosen)
    rows = []
    for benchmark, split in (("held-out", ~table.train), ("train", table.train)):
        for domain in ("all", *sorted(set(table.domain))):
            keep = split if domain == "all" else split & (table.domain == domain)
            for metric, values in (("accuracy", correct), ("mean_margin", margin)):
                estimate = cluster_bootstrap(values[keep], table.prompt[keep], draws=config.bootstrap, seed=config.seed)
                note = f"lowest chosen above highest rejected; bootstrap over {estimate.clusters} prompts"
                rows.append(_row(prefix + benchmark, domain, metric, estimate, note))
    return rows


def baseline_rows(n_tokens: np.ndarray, table: PairTable, config: HeadConfig) -> list[dict[str, Any]]:
    """Held-out accuracy of "the longer answer is better", the baseline every figure stands beside."""
    held = ~table.train
    longer, _ = pair_outcome(n_tokens.astype(np.float64), table.response_pair, table.chosen)
    estimate = cluster_bootstrap(longer[held], table.prompt[held], draws=config.bootstrap, seed=config.seed)
    return [
        _row("length", "all", "accuracy", estimate, "the longer answer (tokens) wins; equal lengths count as wrong")
    ]


def probe_rows(arrays: RunArrays, table: PairTable, config: HeadConfig) -> list[dict[str, Any]]:
    """What the SAE loses: the same kind of head on raw states, then on the SAE's reconstruction of them."""
    if arrays.states is None:
        return []
    which = 0 if config.pooling == "last" else 1
    raw, rebuilt = np.asarray(arrays.states[:, which]), np.asarray(arrays.states[:, 2 + which])
    comparisons = all_comparisons(table.response_pair, table.chosen).of(table.train)
    probe = choose_l2(
        raw,
        comparisons,
        table.prompt,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        standardise=True,
        tolerance=config.tolerance,
    )
    held = ~table.train
    on_raw, _ = pair_outcome(raw @ probe.weights, table.response_pair, table.chosen)
    on_rebuilt, _ = pair_outcome(rebuilt @ probe.weights, table.response_pair, table.chosen)
    rows = []
    for metric, values, note in (
        (
            "accuracy_raw",
            on_raw,
            f"linear head on raw states of the same layer, pooling {config.pooling}, l2 {probe.l2:g}",
        ),
        ("accuracy_reconstruction", on_rebuilt, "the same head on the SAE's reconstruction of those states"),
        ("accuracy_lost", on_raw.astype(float) - on_rebuilt, "raw minus reconstruction, paired by pair"),
    ):
        estimate = cluster_bootstrap(values[held], table.prompt[held], draws=config.bootstrap, seed=config.seed)
        rows.append(_row("probe", "all", metric, estimate, note))
    return rows


def batch_spread_rows(
    groups: Sequence[Sequence[Answer]],
    backbone: Backbone,
    sae: TopKSAE,
    weights: np.ndarray,
    pooling: str,
    tokens_per_batch: int,
    scale_of: np.ndarray,
    prompts: int = 24,
) -> list[dict[str, Any]]:
    """How much an answer's reward depends on what it is batched with (0 in exact arithmetic).

    The answers to `prompts` prompts, spread over the run, are scored in batches of the run's size, in small
    batches, in reverse order, and each alone.

    Args:
        weights: float64 [M] head weights.
        scale_of: rewards whose standard deviation is the unit.
    """
    step = max(1, len(groups) // prompts)
    sample = [list(group) for group in groups[::step][:prompts]]
    alone = [[answer] for group in sample for answer in group]
    arrangements = [
        (sample, tokens_per_batch),
        (sample, max(64, tokens_per_batch // 8)),
        (sample[::-1], tokens_per_batch),
        (alone, 1),
    ]
    column = {"last": 0, "mean": 1}[pooling]
    seen: dict[int, list[float]] = {}
    for arrangement, size in arrangements:
        for answer in activations_of(arrangement, backbone, sae, size):
            features, pooled = pool_answer(answer)
            seen.setdefault(answer.response_id, []).append(float(pooled[column].astype(np.float64) @ weights[features]))
    spread = np.array([max(values) - min(values) for values in seen.values()]) / reward_scale(scale_of)
    note = (
        f"{len(arrangements)} batch arrangements, {backbone.dtype}".replace("torch.", "")
        + "; unit: standard deviation of the reward"
    )
    return [
        _row("health", "all", "batch_spread_max", Estimate(float(spread.max()), None, None, len(spread), 0), note),
        _row("health", "all", "batch_spread_mean", Estimate(float(spread.mean()), None, None, len(spread), 0), note),
    ]


def storage_rows(arrays: RunArrays, sae: TopKSAE) -> list[dict[str, Any]]:
    """How many answer tokens may have lost features, for an SAE whose number of active latents varies; else nothing."""
    if not sae.varies:
        return []
    full = np.all(np.asarray(arrays.token_values) != 0, axis=1)
    note = f"answer tokens on which all {sae.k} stored places are used: smaller activations may be left out"
    return [figure_row("sae", "full_tokens", float(full.mean()), len(full), note)]


def evaluation_frame(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Rows of the `evaluation` table."""
    return pl.DataFrame(list(rows), schema=EVALUATION_SCHEMA, orient="row")


def figure_row(benchmark: str, metric: str, value: float | None, n: int, note: str) -> dict[str, Any]:
    """A row for a plain figure without an interval (a census, not a sample)."""
    return _row(benchmark, "all", metric, Estimate(value, None, None, n, 0), note)


def _row(benchmark: str, subset: str, metric: str, estimate: Estimate, note: str) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "subset": subset,
        "metric": metric,
        "value": estimate.value,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
        "n": estimate.n,
        "note": note,
    }
