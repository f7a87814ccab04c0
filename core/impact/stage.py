"""The curves a run shows before anyone asks for others: the build's stage."""

from __future__ import annotations

import polars as pl

from core.config import ImpactConfig
from core.impact.curve import curve_plans
from core.impact.inputs import ImpactInputs
from core.impact.preview import IMPACT_SCHEMA, preview
from core.impact.strategies import STRATEGIES
from core.progress import Progress
from core.store.sets import FeatureSet


def impact_tables(
    inputs: ImpactInputs, feature_set: FeatureSet | None, config: ImpactConfig, progress: Progress
) -> dict[str, pl.DataFrame]:
    """The table `impact`: poisoning by flips, denoising by drops and by flips, every strategy, with the unchanged head.

    Args:
        feature_set: the run's default set (core.salience.sets.set_by_salience); None leaves its strategy out.
    """
    strategies = [name for name in STRATEGIES if name != "set" or feature_set is not None]
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
