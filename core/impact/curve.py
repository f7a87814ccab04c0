"""The plans of a whole curve: every strategy at every ratio, random ones with several seeds."""

from __future__ import annotations

from collections.abc import Sequence

from core.impact.inputs import ImpactInputs
from core.impact.plans import Plan, plan_from_ranking
from core.impact.strategies import STRATEGIES, rank_pairs
from core.store.sets import FeatureSet


def curve_plans(
    inputs: ImpactInputs,
    feature_set: FeatureSet | None,
    direction: str,
    action: str,
    ratios: Sequence[float],
    strategies: Sequence[str] = STRATEGIES,
    seeds: Sequence[int] | int = 5,
) -> list[Plan]:
    """One plan for each strategy and ratio; 'random' has one for each seed, the others do not depend on it.

    Args:
        seeds: the seeds, or how many (0..n-1).

    Raises:
        ConfigError: an unknown strategy, direction or action, a ratio outside 0..1, or 'set' without a set.
    """
    many = range(seeds) if isinstance(seeds, int) else seeds
    plans = []
    for strategy in strategies:
        for seed in many if strategy == "random" else (0,):
            ranked = rank_pairs(inputs, strategy, feature_set=feature_set, direction=direction, seed=seed).pair_index
            plans += [
                plan_from_ranking(inputs, ranked, strategy, direction, action, ratio, seed, feature_set)
                for ratio in ratios
            ]
    return plans
