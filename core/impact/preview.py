"""The preview: what held-out accuracy and margin become when the head is refitted on edited pairs. Not a retrain of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from core.errors import DataError
from core.impact.differences import SparseRows
from core.impact.inputs import ImpactInputs
from core.impact.plans import Plan
from core.impact.refit import refit
from core.progress import Progress, Silent
from core.rewards.accuracy import pair_outcome

IMPACT_SCHEMA = {
    "plan": pl.String,
    "direction": pl.String,
    "action": pl.String,
    "strategy": pl.String,
    "ratio": pl.Float64,
    "seed": pl.UInt32,
    "domain": pl.String,
    "n": pl.UInt32,
    "n_prompts": pl.UInt32,
    "accuracy": pl.Float64,
    "accuracy_low": pl.Float64,
    "accuracy_high": pl.Float64,
    "mean_margin": pl.Float64,
    "margin_low": pl.Float64,
    "margin_high": pl.Float64,
    "accuracy_change": pl.Float64,
    "change_low": pl.Float64,
    "change_high": pl.Float64,
    "kind": pl.String,
}
PLANS_AT_ONCE = 48
DRAWN_AT_ONCE = 20_000_000


def preview(inputs: ImpactInputs, plans: Sequence[Plan], progress: Progress | None = None) -> pl.DataFrame:
    """Refits the head for every plan and measures it on the held-out pairs.

    Refits are exact to the gradient norm of the run's head (head.tolerance, 1e-6 unless set), with the run's penalty and its
    scale. Intervals are 95 % percentile intervals over resampled prompts; one set of draws serves all plans, so changes are paired.

    Returns:
        Columns of the table `impact`: a row for each plan and held-out domain ('all' first), before them the unchanged head
        as the plan 'none' at ratio 0. Rows follow the order of `plans`.

    Raises:
        DataError: a plan was made for other pairs.
        RunError: a plan drops every training pair.
    """
    for plan in plans:
        if plan.data_sha256 != inputs.data_sha256:
            raise DataError(f"The plan {plan.id} was made for other pairs than those of this run; make it again.")
    rewards = [held_out_rewards(inputs, inputs.unchanged.weights[:, None])]
    with (progress or Silent()).task("impact", len(plans), "plans") as task:
        for at in range(0, len(plans), PLANS_AT_ONCE):
            part = plans[at : at + PLANS_AT_ONCE]
            rewards.append(held_out_rewards(inputs, refit_plans(inputs, part)))
            task.advance(len(part))
    rows = measure(inputs, np.concatenate(rewards, axis=1))
    names = [("none", *_of_none(plans), "none", 0.0, 0)] + [
        (plan.id, plan.direction, plan.action, plan.strategy, plan.ratio, plan.seed) for plan in plans
    ]
    keys = ("plan", "direction", "action", "strategy", "ratio", "seed")
    found = [
        {**dict(zip(keys, name, strict=True)), **row, "kind": "preview"}
        for name, of_plan in zip(names, rows, strict=True)
        for row in of_plan
    ]
    return pl.DataFrame(found, schema=IMPACT_SCHEMA)


def refit_plans(inputs: ImpactInputs, plans: Sequence[Plan]) -> np.ndarray:
    """The head's weights on each plan's edited training pairs, float64 [features, plans]."""
    unchanged, pair = inputs.unchanged, inputs.comparisons.pair
    signs = np.stack([plan.signs(inputs)[pair] for plan in plans], axis=1)
    fit = refit(
        inputs.differences,
        inputs.comparisons.weight,
        signs,
        l2=inputs.l2,
        start=unchanged.u,
        tolerance=inputs.settings.tolerance,
        precondition=unchanged.precondition,
    )
    return inputs.differences.weights(fit.u)


def held_out_rewards(inputs: ImpactInputs, weights: np.ndarray) -> np.ndarray:
    """Rewards of the held-out answers, float64 [n_held_out_answers, plans], in order of response_id."""
    held = inputs.held_out_features
    return held.times(weights) if isinstance(held, SparseRows) else held @ weights


@dataclass(frozen=True)
class _Domain:
    """Held-out pairs of one domain: which they are, and the prompt of each as 0..n_prompts-1."""

    name: str
    pairs: np.ndarray
    prompt: np.ndarray
    n_prompts: int


def measure(inputs: ImpactInputs, rewards: np.ndarray) -> list[list[dict[str, object]]]:
    """Held-out accuracy, mean margin and change for each column of `rewards`; the first column is the unchanged head.

    Args:
        rewards: float64 [n_held_out_answers, 1 + plans].

    Returns:
        For each column the rows of its domains, 'all' first.
    """
    held = np.flatnonzero(~inputs.train)
    place = np.full(len(inputs.train), -1)
    place[held] = np.arange(len(held))
    answers = ~inputs.train[inputs.response_pair]
    pair, chosen = place[inputs.response_pair[answers]], inputs.chosen[answers]
    outcomes = [pair_outcome(rewards[:, column], pair, chosen) for column in range(rewards.shape[1])]
    correct = np.stack([right for right, _ in outcomes], axis=1).astype(np.float64)
    margin = np.stack([value for _, value in outcomes], axis=1)
    rows: list[list[dict[str, object]]] = [[] for _ in outcomes]
    for domain in _domains(inputs, held):
        values = np.concatenate([correct[domain.pairs], margin[domain.pairs]], axis=1)
        low, high = _intervals(inputs, domain, values)
        means = values.mean(axis=0)
        plans = len(outcomes)
        for column, found in enumerate(rows):
            found.append(
                {
                    "domain": domain.name,
                    "n": len(domain.pairs),
                    "n_prompts": domain.n_prompts,
                    "accuracy": means[column],
                    "accuracy_low": low[column],
                    "accuracy_high": high[column],
                    "mean_margin": means[plans + column],
                    "margin_low": low[plans + column],
                    "margin_high": high[plans + column],
                    "accuracy_change": means[column] - means[0],
                    "change_low": low[2 * plans + column],
                    "change_high": high[2 * plans + column],
                }
            )
    return rows


def _domains(inputs: ImpactInputs, held: np.ndarray) -> list[_Domain]:
    found = []
    domain, prompt = inputs.domain[held], inputs.prompt[held]
    for name in ("all", *sorted(set(domain))):
        pairs = np.arange(len(held)) if name == "all" else np.flatnonzero(domain == name)
        names, where = np.unique(prompt[pairs], return_inverse=True)
        found.append(_Domain(str(name), pairs, where, len(names)))
    return found


def _intervals(
    inputs: ImpactInputs, domain: _Domain, values: np.ndarray
) -> tuple[list[float | None], list[float | None]]:
    """95 % intervals of accuracy and margin of every plan, then of the accuracy's change: three blocks of plans.

    The draws are those of core.rewards.accuracy.cluster_bootstrap, so the unchanged head's intervals are the run's own.
    """
    plans, n = values.shape[1] // 2, domain.n_prompts
    if n < 2:
        return [None] * (3 * plans), [None] * (3 * plans)
    sums = np.zeros((n, 2 * plans))
    np.add.at(sums, domain.prompt, values)
    counts = np.bincount(domain.prompt, minlength=n).astype(np.float64)
    rng = np.random.default_rng(inputs.settings.seed)
    draws = inputs.settings.bootstrap
    means = np.empty((draws, 3 * plans))
    step = max(1, DRAWN_AT_ONCE // n)
    for begin in range(0, draws, step):
        stop = min(draws, begin + step)
        picked = rng.integers(0, n, (stop - begin, n))
        flat = (picked + n * np.arange(stop - begin)[:, None]).reshape(-1)
        times = np.bincount(flat, minlength=(stop - begin) * n).reshape(stop - begin, n).astype(np.float64)
        drawn = (times @ sums) / (times @ counts)[:, None]
        means[begin:stop, : 2 * plans] = drawn
        means[begin:stop, 2 * plans :] = drawn[:, :plans] - drawn[:, :1]
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low.tolist(), high.tolist()


def _of_none(plans: Sequence[Plan]) -> tuple[str, str]:
    """Direction and action of the row 'none': those of the curve it stands beside."""
    return (plans[0].direction, plans[0].action) if plans else ("poison", "flip")
