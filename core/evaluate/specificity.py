"""Whom a steering hits: SARM's claim that steering moves the target and leaves the rest alone, made checkable.

SARM's second question (RQ2) compares rewards before and after on two sets of answers: the target, the chosen answers of the
pairs of one slice (its example: safety), and the complement, every other answer (the rejected answers of the slice and all
answers of the other pairs). It shows two histograms. Here the same comparison has figures with intervals: mean shifts,
share of rows that move at all, what happens to pair accuracy, which pairs flip, which domains are harmed.

By default everything is about held-out pairs (split 'test'). Every interval is 95 %, clustered by prompt: with the sums S_g
and counts n_g of the G prompts behind a mean m = sum S_g / n, its variance is G / (G - 1) * sum (S_g - m n_g)^2 / n^2 (the
linearised variance of a ratio of sums over clusters) and the quantile is Student's t with G - 1 degrees of freedom. An
interval of width zero says that every prompt of the sample agrees, not that there is no doubt.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from core.evaluate.clusters import Clusters, student
from core.evaluate.steering_data import MIN_PAIRS, PairsOf, PartOf, SteeringData, Which, targets

__all__ = [
    "MIN_PAIRS",
    "AccuracyChange",
    "Ratio",
    "Shift",
    "Specificity",
    "SteeringData",
    "Which",
    "specificity",
    "specificity_facts",
    "targets",
]

NOT_ENOUGH = "not enough pairs"
ROUNDING = 1e-12
"""A change below this share of the largest reward is rounding: the row has not moved."""
DOMAIN_SCHEMA = {
    "domain": pl.String,
    "n": pl.Int64,
    "n_prompts": pl.Int64,
    "before": pl.Float64,
    "after": pl.Float64,
    "change": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "harmed": pl.Boolean,
    "note": pl.String,
}


@dataclass(frozen=True)
class Shift:
    """How the rewards of some answers moved. Figures are None where there is no answer, bounds also below two prompts.

    Attributes:
        n, n_prompts: answers, and the prompts they answer.
        before, after: mean reward.
        shift, low, high: mean of after - before and its interval.
        n_moved, moved: answers whose reward changed at all (by more than rounding), and their share.
        shift_of_moved: mean shift among those.
        absolute: mean of |after - before|.
    """

    n: int
    n_prompts: int
    before: float | None
    after: float | None
    shift: float | None
    low: float | None
    high: float | None
    n_moved: int
    moved: float | None
    shift_of_moved: float | None
    absolute: float | None


@dataclass(frozen=True)
class AccuracyChange:
    """Pair accuracy before and after, paired by pair (a tie is wrong, as in core.rewards.accuracy).

    Attributes:
        n, n_prompts: pairs and their prompts.
        before, after: accuracy, with before_low .. after_high their intervals, cut to 0..1.
        change, low, high: after - before with the interval of the paired difference.
    """

    n: int
    n_prompts: int
    before: float | None
    before_low: float | None
    before_high: float | None
    after: float | None
    after_low: float | None
    after_high: float | None
    change: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Ratio:
    """Specificity: mean shift on the target over mean shift on the complement.

    Attributes:
        value, low, high: with Fieller's 95 % interval (1954) from the prompts' joint influence on both means; all None where
            the denominator's interval holds 0, for then the ratio can be anything.
        why: why it is missing, or ''.
    """

    value: float | None
    low: float | None
    high: float | None
    why: str


@dataclass(frozen=True)
class Specificity:
    """Effect and side effects of a steering.

    Attributes:
        slice: the slice the target is taken from.
        which: the pairs it is about: 'held-out', 'train' or 'all'.
        target, complement: how their answers moved.
        ratio: specificity.
        accuracy: of all these pairs; slice_accuracy: of the slice's alone.
        fixed: int64, pair_index of pairs wrong before and right after; broken: the other way round. Ascending.
        domains: DOMAIN_SCHEMA, one row a domain, by name; harmed = the interval of its accuracy change lies below 0, null
            where there are fewer than MIN_PAIRS pairs (note) or no interval was asked for.
    """

    slice: str
    which: str
    target: Shift
    complement: Shift
    ratio: Ratio
    accuracy: AccuracyChange
    slice_accuracy: AccuracyChange
    fixed: np.ndarray
    broken: np.ndarray
    domains: pl.DataFrame

    @property
    def harmed(self) -> list[str]:
        """The domains harmed."""
        return self.domains.filter(pl.col("harmed"))["domain"].to_list()


def specificity(
    data: SteeringData,
    before: np.ndarray,
    after: np.ndarray,
    target: str,
    *,
    intervals: bool = True,
    which: Which = "held-out",
) -> Specificity:
    """What a change of rewards did to the target and to everything else.

    Args:
        before, after: float64 [n_responses], rewards in stored order.
        target: a slice of `data.slices`; any, also one too small for `targets`.
        intervals: also intervals, the ratio and who is harmed; without them these are None.
        which: the pairs it is about.

    Raises:
        DataError: there is no such slice, or the run has no such pairs.
    """
    pairs, part = data.pairs_of(which), data.part(target, which)
    change = after - before
    change[np.abs(change) <= ROUNDING * np.nanmax(np.abs(before))] = 0.0
    was, now = _outcomes(before, pairs), _outcomes(after, pairs)
    return Specificity(
        slice=target,
        which=which,
        target=_shift(before, after, change, part.target, part.target_clusters, intervals),
        complement=_shift(before, after, change, part.complement, part.complement_clusters, intervals),
        ratio=_ratio(change, part) if intervals else Ratio(None, None, None, "not computed"),
        accuracy=_accuracy(was, now, pairs.clusters, intervals),
        slice_accuracy=_accuracy(was[part.in_slice], now[part.in_slice], part.slice_clusters, intervals),
        fixed=pairs.pairs[~was & now],
        broken=pairs.pairs[was & ~now],
        domains=_domains(was, now, pairs, intervals),
    )


def specificity_facts(one: Specificity) -> dict[str, Any]:
    """The figures as plain values for JSON; pairs by pair_index."""
    facts = asdict(replace(one, fixed=np.zeros(0), broken=np.zeros(0), domains=one.domains.clear()))
    return {
        **facts,
        "fixed": one.fixed.tolist(),
        "broken": one.broken.tolist(),
        "domains": one.domains.to_dicts(),
        "harmed": one.harmed,
    }


def _outcomes(rewards: np.ndarray, pairs: PairsOf) -> np.ndarray:
    """bool [pairs]: lowest chosen strictly above highest rejected reward (core.rewards.accuracy.pair_outcome)."""
    ordered = rewards[pairs.order]
    lowest = np.minimum.reduceat(ordered, pairs.starts)[0::2]
    highest = np.maximum.reduceat(ordered, pairs.starts)[1::2]
    return np.asarray(lowest > highest)


def _shift(
    before: np.ndarray, after: np.ndarray, change: np.ndarray, rows: np.ndarray, clusters: Clusters, intervals: bool
) -> Shift:
    n = len(rows)
    if n == 0:
        return Shift(0, 0, None, None, None, None, None, 0, None, None, None)
    moves = change[rows]
    mean = float(moves.mean())
    low, high = clusters.interval(moves, mean) if intervals else (None, None)
    moved = int(np.count_nonzero(moves))
    return Shift(
        n=n,
        n_prompts=len(clusters.count),
        before=float(before[rows].mean()),
        after=float(after[rows].mean()),
        shift=mean,
        low=low,
        high=high,
        n_moved=moved,
        moved=moved / n,
        shift_of_moved=float(moves.sum()) / moved if moved else None,
        absolute=float(np.abs(moves).mean()),
    )


def _ratio(change: np.ndarray, part: PartOf) -> Ratio:
    """T / C with Fieller's interval: the values rho for which T - rho C is not significantly different from 0."""
    prompts = min(len(part.target_clusters.count), len(part.complement_clusters.count))
    if prompts < 2:
        return Ratio(None, None, None, "fewer than two prompts")
    influence, means = [], []
    for rows, prompt in ((part.target, part.target_prompt), (part.complement, part.complement_prompt)):
        moves = change[rows]
        means.append(float(moves.mean()))
        influence.append(np.bincount(prompt, weights=moves - means[-1], minlength=part.n_prompts) / len(rows))
    (top, bottom), (of_top, of_bottom) = means, influence
    quantile = student(prompts - 1) ** 2 * part.n_prompts / (part.n_prompts - 1)
    a = bottom**2 - quantile * float(of_bottom @ of_bottom)
    b = top * bottom - quantile * float(of_top @ of_bottom)
    c = top**2 - quantile * float(of_top @ of_top)
    if a <= 0:
        return Ratio(None, None, None, "the complement's shift is not different from 0")
    root = float(np.sqrt(max(b**2 - a * c, 0.0)))
    return Ratio(top / bottom, (b - root) / a, (b + root) / a, "")


def _accuracy(was: np.ndarray, now: np.ndarray, clusters: Clusters, intervals: bool) -> AccuracyChange:
    if not len(was):
        return AccuracyChange(0, 0, *[None] * 9)
    figures: list[float | None] = []
    for values, cut in ((was.astype(float), True), (now.astype(float), True), (now.astype(float) - was, False)):
        mean = float(values.mean())
        low, high = clusters.interval(values, mean) if intervals else (None, None)
        if cut and low is not None and high is not None:
            low, high = max(low, 0.0), min(high, 1.0)
        figures += [mean, low, high]
    return AccuracyChange(len(was), len(clusters.count), *figures)


def _domains(was: np.ndarray, now: np.ndarray, pairs: PairsOf, intervals: bool) -> pl.DataFrame:
    """One row a domain: the same figures as `_accuracy`, for all domains at once."""
    n, prompts = pairs.domain_n, pairs.domain_prompts
    many = len(pairs.domains)
    before = np.bincount(pairs.domain, weights=was, minlength=many) / n
    after = np.bincount(pairs.domain, weights=now, minlength=many) / n
    moves = now.astype(float) - was
    change = np.bincount(pairs.domain, weights=moves, minlength=many) / n
    low, high = np.full(many, np.nan), np.full(many, np.nan)
    if intervals:
        clusters = pairs.domain_clusters
        error = clusters.sums(moves) - change[pairs.cluster_domain] * clusters.count
        squares = np.bincount(pairs.cluster_domain, weights=error**2, minlength=many)
        quantile = np.array([student(int(g) - 1) if g > 1 else np.nan for g in prompts])
        with np.errstate(divide="ignore", invalid="ignore"):
            half = quantile * np.sqrt(prompts / (prompts - 1) * squares) / n
        low, high = change - half, change + half
    enough = n >= MIN_PAIRS
    judged = enough & ~np.isnan(high)
    with np.errstate(invalid="ignore"):
        harmed = high < 0
    return pl.DataFrame(
        {
            "domain": pairs.domains,
            "n": n.astype(np.int64),
            "n_prompts": prompts.astype(np.int64),
            "before": before,
            "after": after,
            "change": change,
            "low": [_known(value) for value in low],
            "high": [_known(value) for value in high],
            "harmed": [bool(bad) if ok else None for bad, ok in zip(harmed, judged, strict=True)],
            "note": ["" if ok else NOT_ENOUGH for ok in enough],
        },
        schema=DOMAIN_SCHEMA,
    )


def _known(value: float) -> float | None:
    """None for NaN."""
    return float(value) if np.isfinite(value) else None
