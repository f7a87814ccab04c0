"""Finds a steering for a concept on training pairs and judges it on held-out ones, beside simpler ways to choose one.

SARM's procedure (RQ2): the salience s_i = (c_i - j_i) / (c_i + j_i + C) of every feature in the pairs of the concept, c_i and
j_i its activation summed over chosen and over rejected answers, C the mean of c + j; the feature with the highest s_i; its weight
times a constant. Here salience is taken on training pairs only, a search sets the multipliers of several features at once
(core/rewards/steering_search.py), and both are judged by `specificity` on held-out pairs.

The search chooses among the features with the largest share |w_i (mean of z_i over chosen - mean over rejected answers)| in the
slice's mean training margin: salience in the unit of rewards. By |s_i| alone a shortlist is full of rare features that are active on one side only and move little: the optimum of the
training problem itself is lower, on the demo run less than half as high (docs/steering.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from core.errors import DataError
from core.evaluate.specificity import Specificity, SteeringData, specificity
from core.rewards.decomposition import reward_scale
from core.rewards.steering import Steering
from core.rewards.steering_search import Bounds, best_change
from core.salience.scores import safer_salience

MIN_PROMPTS = 3
"""Candidates are active in target answers to at least so many prompts: what one prompt says is not the concept."""
SARM_FACTOR = 2.0
"""The factor in the example of SARM's steering files."""
LARGEST = 100.0
"""Largest multiplier a single feature gets."""
Shortlist = Literal["share", "s"]


@dataclass(frozen=True)
class Training:
    """The training answers of a search.

    Attributes:
        target, rejected, elsewhere: int64, rows: chosen answers of the slice, its rejected ones, all answers of other pairs.
        prompt: int64, the prompt of each target row.
        salience: float64 [M], s_i in the slice's training pairs.
        share: float64 [M], w_i (mean of max(z_i, 0) over target - over rejected answers), reward units.
        scale: standard deviation of the training answers' rewards, the unit of the bounds.
    """

    target: np.ndarray
    rejected: np.ndarray
    elsewhere: np.ndarray
    prompt: np.ndarray
    salience: np.ndarray
    share: np.ndarray
    scale: float


def training(data: SteeringData, slice: str) -> Training:
    """What the training pairs say about a slice.

    Raises:
        DataError: there is no such slice, or it has no training pairs.
    """
    target, complement = data.rows(slice, "train")
    if not len(target):
        raise DataError(f"The slice {slice!r} has no training pairs to search a steering on; take another slice.")
    own = data.slices[slice][data.pair[complement]]
    rejected = complement[own]
    chosen_sum, rejected_sum = data.steered.columns.sums(target), data.steered.columns.sums(rejected)
    every = np.concatenate([target, complement])
    return Training(
        target=target,
        rejected=rejected,
        elsewhere=complement[~own],
        prompt=data.prompt[data.pair[target]],
        salience=safer_salience(chosen_sum, rejected_sum),
        share=data.steered.weights * (chosen_sum / len(target) - rejected_sum / max(1, len(rejected))),
        scale=reward_scale(data.rewards[every]),
    )


def search_steering(
    data: SteeringData, slice: str, bounds: Bounds | None = None, *, name: str = "", shortlist: Shortlist = "share"
) -> tuple[Steering, Specificity]:
    """The steering that raises the slice's chosen answers most within bounds, found on training pairs, judged on held-out ones.

    Candidates are the features with the largest share in the slice's mean training margin that are active in target answers
    to at least MIN_PROMPTS prompts. Two groups shall stay put: the slice's rejected answers, and the answers of all
    other pairs, so the complement as a whole stays within the same bounds.

    Args:
        shortlist: what candidates are ranked by, 'share' in the mean margin or SARM's 's', both by size.

    Returns:
        the steering, whose `how` holds slice, candidates, bounds and certificate, and its held-out specificity.

    Raises:
        DataError: no such slice, no training or held-out pairs, or no candidate.
    """
    bounds = bounds or Bounds()
    train = training(data, slice)
    order = np.argsort(-np.abs(train.share if shortlist == "share" else train.salience), kind="stable")
    chosen = _usable(data, train, order, bounds.candidates)
    if not chosen:
        raise DataError(f"No feature is active in the chosen training answers of {slice!r} often enough to steer by.")
    steering = _searched(data, train, slice, chosen, bounds, {"method": "search", "shortlist": shortlist}, name)
    return steering, judge(data, steering, slice)


def random_steering(data: SteeringData, slice: str, bounds: Bounds, seed: int) -> Steering:
    """The same search over as many random usable features: what a search finds where there is no salience to go by."""
    train = training(data, slice)
    order = np.random.default_rng(seed).permutation(len(train.salience))
    chosen = _usable(data, train, order, bounds.candidates)
    return _searched(data, train, slice, chosen, bounds, {"method": "random features", "seed": seed}, "")


def single_feature(data: SteeringData, slice: str, factor: float = SARM_FACTOR) -> Steering:
    """SARM's recipe: the feature with the highest s_i, its weight times a constant.

    Raises:
        DataError: no such slice, or no training pairs in it.
    """
    train = training(data, slice)
    feature = int(np.argmax(np.nan_to_num(train.salience, nan=-np.inf)))
    how = {"method": "SARM", "slice": slice, "pairs": "train", "salience": float(train.salience[feature])}
    return Steering.of_multipliers({feature: factor}, sae=data.sae, how={**how, "factor": factor})


def single_within(data: SteeringData, slice: str, bounds: Bounds) -> Steering:
    """SARM's feature, its multiplier as large as the bounds on side effects allow (at most LARGEST), not its range."""
    train = training(data, slice)
    feature = single_feature(data, slice).features[0]
    free = Bounds(bounds.side, bounds.drift, LARGEST, 1.0, LARGEST, 1)
    how = {"method": "SARM within bounds", "salience": float(train.salience[feature])}
    return _searched(data, train, slice, [feature], free, how, "")


def judge(data: SteeringData, steering: Steering, slice: str) -> Specificity:
    """Specificity of a steering on held-out pairs.

    Raises:
        DataError: no such slice, or no held-out pairs.
    """
    return specificity(data, data.rewards, data.steered.another().steered(steering), slice)


def _usable(data: SteeringData, train: Training, order: np.ndarray, most: int) -> list[int]:
    """The first `most` features of an order that a search can use."""
    found: list[int] = []
    for begin in range(0, len(order), 4 * most):
        some = [int(i) for i in order[begin : begin + 4 * most] if data.steered.weights[i] != 0]
        if not some:
            continue
        active = data.steered.columns.dense(some, train.target) != 0
        for at, feature in enumerate(some):
            if len(np.unique(train.prompt[active[:, at]])) >= MIN_PROMPTS:
                found.append(feature)
            if len(found) == most:
                return found
        if begin > 64 * most:  # far down the order nothing is salient any more
            break
    return found


def _searched(
    data: SteeringData,
    train: Training,
    slice: str,
    features: list[int],
    bounds: Bounds,
    how: dict[str, Any],
    name: str,
) -> Steering:
    weights = data.steered.weights[features] / train.scale
    target, rejected, elsewhere = (
        data.steered.columns.dense(features, rows) * weights for rows in (train.target, train.rejected, train.elsewhere)
    )
    found = best_change(target, [rejected, elsewhere], bounds)
    facts = {
        **how,
        "slice": slice,
        "run_id": data.run_id,
        "pairs": "train",
        "n_target": len(train.target),
        "n_prompts": len(np.unique(train.prompt)),
        "candidates": features,
        "bounds": bounds.as_dict(),
        "unit": train.scale,
        "objective": found.objective,
        "bound": found.bound,
        "gap": found.gap,
        "steps": found.steps,
    }
    multipliers = {
        feature: round(1.0 + float(by), 10) for feature, by in zip(features, found.change, strict=True) if by != 0
    }
    return Steering.of_multipliers(multipliers, name, data.sae, facts)
