"""Causal checks: what taking a feature away does to the margin of pairs, against matched random features.

A pair's margin is here the mean reward of its chosen minus the mean reward of its rejected answers, so that effects add
up. The effect of a feature on a pair is the margin with it minus the margin without it, averaged over the pairs of a
prompt in which the feature is active, then over prompts; its 95 % interval is Student's t over prompts, which is
robust to whatever pairs of one prompt share.

For the head on features, r = sum_i w_i z_i, setting w_i z_i to 0 changes a margin by exactly w_i (z_chosen - z_rejected):
that is `head_ablation`. Everything else here (matching, verdicts, rank correlation) also serves the re-run of a model
(core/rewards/ablation_checks.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp
from scipy import stats

from core.progress import Progress, Silent
from core.rewards.matching import nearest, null_range
from core.rewards.verdict import verdict
from core.store.arrays import Pool, RunArrays

MIN_PROMPTS = 10
"""Features active in the pairs of fewer prompts are not checked: their interval would mean nothing."""
MATCHED = 64
"""Random features beside each feature of a head, where they cost nothing."""

CAUSAL_SCHEMA = {
    "feature_id": pl.UInt32,
    "method": pl.String,
    "n_pairs": pl.UInt32,
    "n_prompts": pl.UInt32,
    "attribution": pl.Float64,
    "effect": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "random_low": pl.Float64,
    "random_high": pl.Float64,
    "n_random": pl.UInt32,
    "verdict": pl.String,
}


@dataclass(frozen=True)
class Sides:
    """Which answers belong to which pair, side and prompt.

    Attributes:
        response_pair: int64 [n_responses], pair of each answer.
        chosen: bool [n_responses].
        prompt: int64 [n_pairs], which prompt.
    """

    response_pair: np.ndarray
    chosen: np.ndarray
    prompt: np.ndarray

    @classmethod
    def of(cls, pairs: pl.DataFrame, responses: pl.DataFrame) -> Sides:
        """From the tables `pair` and `response`, in stored order."""
        return cls(
            response_pair=responses["pair_index"].to_numpy().astype(np.int64),
            chosen=(responses["side"] == "chosen").to_numpy(),
            prompt=np.unique(pairs["prompt_id"].to_numpy(), return_inverse=True)[1],
        )

    @property
    def margin(self) -> sp.csr_matrix:
        """[n_pairs, n_responses]: +1/n for each of a pair's n chosen answers, -1/n for each rejected one."""
        pair, n = self.response_pair, len(self.prompt)
        side = np.where(self.chosen, 0, n)
        count = np.bincount(pair + side, minlength=2 * n)
        value = np.where(self.chosen, 1.0, -1.0) / count[pair + side]
        return sp.csr_matrix((value, (pair, np.arange(len(pair)))), (n, len(pair)))


@dataclass(frozen=True)
class Effects:
    """What was measured of n features.

    Attributes:
        n_pairs, n_prompts: int64 [n], pairs measured, in all of which the feature is active, and their prompts.
        attribution: float64 [n], mean attribution to the margin over these pairs.
        effect: float64 [n], mean margin with the feature minus without it; NaN where n_prompts is 0.
        low, high: float64 [n], its 95 % interval; NaN below two prompts.
        on_reward: float64 [n], mean reward with minus without over the answers in which the feature is active: whether
            the model takes it for good (> 0) or bad (< 0).
    """

    n_pairs: np.ndarray
    n_prompts: np.ndarray
    attribution: np.ndarray
    effect: np.ndarray
    low: np.ndarray
    high: np.ndarray
    on_reward: np.ndarray


def head_effects(pooled: sp.csr_matrix, table: Sides, weights: np.ndarray, *, block: int = 20_000) -> Effects:
    """The effect of every feature of a head, exactly.

    Args:
        pooled: [n_responses, M], activations as the head pools them; a feature is active in an answer where it is not 0.
        weights: float64 [M].
        block: pairs worked on at once, which bounds memory.
    """
    latents = pooled.shape[1]
    n_pairs, n_prompts = np.zeros(latents, np.int64), np.zeros(latents, np.int64)
    total, squares = np.zeros(latents), np.zeros(latents)
    level, active = np.zeros(latents), np.zeros(latents)
    by_prompt = np.argsort(table.prompt, kind="stable")
    margin = table.margin
    for pairs in _whole_prompts(by_prompt, table.prompt, block):
        answers = np.flatnonzero(np.isin(table.response_pair, pairs))
        z = pooled[answers].astype(np.float64)
        z.eliminate_zeros()
        sign = margin[pairs][:, answers]
        there = abs(sign) @ _ones(z)  # > 0 where the feature is active in the pair; never cancels
        prompts = np.unique(table.prompt[pairs], return_inverse=True)[1]
        group = sp.csr_matrix((np.ones(len(pairs)), (prompts, np.arange(len(pairs)))))
        count = sp.csr_matrix(group @ _ones(there))  # pairs of the prompt in which it is active
        share = sp.csr_matrix((1.0 / count.data, count.indices, count.indptr), count.shape)
        mean = (group @ (sign @ z)).multiply(share)  # [prompts, M], mean chosen - rejected difference
        n_pairs += np.bincount(there.indices, minlength=latents)
        n_prompts += np.bincount(count.indices, minlength=latents)
        total += np.asarray(mean.sum(axis=0)).reshape(-1)
        squares += np.asarray(mean.power(2).sum(axis=0)).reshape(-1)
        level += np.asarray(z.sum(axis=0)).reshape(-1)
        active += np.bincount(z.indices, minlength=latents)
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = total / n_prompts
        variance = np.maximum(squares - n_prompts * difference**2, 0.0) / (n_prompts - 1)
        half = np.abs(weights) * _student(n_prompts) * np.sqrt(variance / n_prompts)
        effect, on_reward = weights * difference, weights * level / active
    return Effects(n_pairs, n_prompts, effect, effect, effect - half, effect + half, on_reward)


def mean_effects(
    prompt: np.ndarray, margin: np.ndarray, attribution: np.ndarray
) -> tuple[int, float, float, float, float]:
    """One feature's effect from single pairs: prompt-wise means first, then Student's t over prompts.

    Args:
        prompt: int [n], the prompt of each pair measured.
        margin, attribution: float64 [n], change of its margin and attribution to it.

    Returns:
        n_prompts, attribution, effect, low, high; NaN where they cannot be given.
    """
    where = np.unique(prompt, return_inverse=True)[1]
    n = int(where.max()) + 1 if len(where) else 0
    if n == 0:
        return 0, np.nan, np.nan, np.nan, np.nan
    count = np.bincount(where)
    means = np.bincount(where, weights=margin) / count
    effect = float(means.mean())
    half = float(_student(np.array([n]))[0] * means.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    attributed = float((np.bincount(where, weights=attribution) / count).mean())
    return n, attributed, effect, effect - half, effect + half


def head_ablation(
    arrays: RunArrays,
    pairs: pl.DataFrame,
    responses: pl.DataFrame,
    weights: np.ndarray,
    pooling: Pool,
    *,
    signs: np.ndarray | None = None,
    exclude: tuple[int, ...] = (),
    matched: int = MATCHED,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Table `causal`, method 'head', of every feature active in the pairs of at least MIN_PROMPTS prompts.

    Attribution and effect are the same number here: the head is linear. What the table adds to it is the interval, the
    matched random features and the verdict.

    Args:
        weights: float64 [M], the head's.
        pooling: the head's.
        signs: float64 [M], the sign of each feature's salience or set; 0 or NaN = not known, then the sign of the
            difference measured here counts.
        exclude: features that are no random features, e.g. the members of a set.
        matched: random features beside each, those nearest in density and |weight|.

    Returns:
        CAUSAL_SCHEMA's columns, by feature_id.
    """
    with (progress or Silent()).task("causal", 3, "parts") as task:
        measured = head_effects(arrays.pooled(pooling), Sides.of(pairs, responses), weights)
        task.advance()
        density = token_density(arrays)
        checked = np.flatnonzero((measured.n_prompts >= MIN_PROMPTS) & (weights != 0))
        candidates = np.setdiff1d(checked, np.array(exclude, np.int64))
        others = nearest(density, weights, checked, candidates, matched)
        task.advance()
        given = np.zeros(len(weights)) if signs is None else np.nan_to_num(signs)
        sign = np.where(given != 0, given, np.sign(measured.effect) * np.sign(weights))
        rows = [
            causal_row("head", int(feature), measured, int(feature), measured.effect[around], float(sign[feature]))
            for feature, around in zip(checked, others, strict=True)
        ]
        task.advance()
    return pl.DataFrame(rows, schema=CAUSAL_SCHEMA, orient="row")


def causal_tables(
    arrays: RunArrays,
    pairs: pl.DataFrame,
    responses: pl.DataFrame,
    weights: np.ndarray,
    pooling: Pool,
    salience: pl.DataFrame | None = None,
    progress: Progress | None = None,
) -> dict[str, pl.DataFrame]:
    """The table `causal` of a build whose reward is the head on features.

    Args:
        salience: feature_id and effect (chosen minus rejected) of one slice and pooling, whose signs the verdict
            respects; None takes the signs measured here.
    """
    signs = None
    if salience is not None:
        signs = np.full(len(weights), np.nan)
        signs[salience["feature_id"].to_numpy()] = salience["effect"].cast(pl.Float64).to_numpy()
    return {"causal": head_ablation(arrays, pairs, responses, weights, pooling, signs=signs, progress=progress)}


def causal_row(
    method: str, feature: int, measured: Effects, at: int, random: np.ndarray, sign: float
) -> dict[str, Any]:
    """A row of the table `causal` from entry `at` of what was measured and the effects of matched random features."""
    low, high = null_range(random)
    effect, ci_low = float(measured.effect[at]), float(measured.low[at])
    return {
        "feature_id": feature,
        "method": method,
        "n_pairs": int(measured.n_pairs[at]),
        "n_prompts": int(measured.n_prompts[at]),
        "attribution": _known(measured.attribution[at]),
        "effect": _known(effect),
        "ci_low": _known(ci_low),
        "ci_high": _known(measured.high[at]),
        "random_low": _known(low),
        "random_high": _known(high),
        "n_random": len(random),
        "verdict": verdict(
            effect=effect,
            low=ci_low,
            random_high=high,
            n_random=len(random),
            on_reward=float(measured.on_reward[at]),
            sign=sign,
        ),
    }


def token_density(arrays: RunArrays) -> np.ndarray:
    """Share of answer tokens on which each feature is active, float64 [M]."""
    active = np.asarray(arrays.token_features)[np.asarray(arrays.token_values) != 0]  # an unused place holds 0
    counts = np.bincount(active, minlength=arrays.latents)
    return counts / max(1, len(arrays.token_ids))


def _whole_prompts(order: np.ndarray, prompt: np.ndarray, block: int) -> list[np.ndarray]:
    """Cuts pairs that are ordered by prompt into blocks of about `block`, never inside a prompt."""
    starts = np.flatnonzero(np.r_[True, np.diff(prompt[order]) != 0]) if len(order) else np.empty(0, np.int64)
    wanted = np.arange(block, len(order), block)
    cuts = np.unique(starts[np.searchsorted(starts, wanted, side="right") - 1]) if len(wanted) else wanted
    return [part for part in np.split(order, cuts) if len(part)]


def _ones(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The same pattern with every stored value 1."""
    return sp.csr_matrix((np.ones(matrix.nnz), matrix.indices, matrix.indptr), matrix.shape)


def _student(n: np.ndarray) -> np.ndarray:
    """97.5 % point of Student's t for the mean of n values; NaN below two."""
    return np.where(n > 1, stats.t.ppf(0.975, np.maximum(n - 1, 1)), np.nan)


def _known(value: float) -> float | None:
    """None for NaN: a missing figure is NULL in the table."""
    return float(value) if np.isfinite(value) else None
