"""The curves a run shows before anyone asks for others: the build's stage."""

from __future__ import annotations

import polars as pl

from core.config import ImpactConfig
from core.errors import DataError
from core.impact.curve import curve_plans
from core.impact.inputs import ImpactInputs
from core.impact.preview import IMPACT_SCHEMA, preview
from core.impact.strategies import STRATEGIES, rank_pairs
from core.progress import Progress
from core.store.sets import FeatureSet


def impact_tables(
    inputs: ImpactInputs, feature_set: FeatureSet | None, config: ImpactConfig, progress: Progress
) -> dict[str, pl.DataFrame]:
    """The table `impact`: poisoning by flips, denoising by drops and by flips, every strategy, with the unchanged head.

    Args:
        feature_set: the run's default set (core.salience.sets.default_set); None leaves its strategy out. So is a strategy
            for which the run has too few prompts.
    """
    strategies = [name for name in STRATEGIES if _ranks(inputs, name, feature_set)]
    seeds = range(config.seed, config.seed + config.seeds)
    curves = (
        ("poison", "flip", config.poison),
        ("denoise", "drop", config.denoise),
        ("denoise", "flip", config.denoise),
    )
    plans = [
        plan
        for direction, action, ratios in curves
        for plan in curve_plans(inputs, feature_set, direction, action, ratios, strategies, seeds)
    ]
    if not plans:
        return {"impact": pl.DataFrame(schema=IMPACT_SCHEMA)}
    return {"impact": preview(inputs, plans, progress)}


def _ranks(inputs: ImpactInputs, strategy: str, feature_set: FeatureSet | None) -> bool:
    """Whether a run has what the strategy needs: a set, or for `loss` enough prompts to leave some out."""
    if strategy == "set" and feature_set is None:
        return False
    try:
        rank_pairs(inputs, strategy, feature_set=feature_set, direction="poison")
    except DataError:
        return False
    return True
