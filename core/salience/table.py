"""The table `salience` of a run: every slice and pooling."""

from __future__ import annotations

import numpy as np
import polars as pl

from core.config import SalienceConfig
from core.features.entries import feature_counts
from core.progress import Progress
from core.salience.differences import PairColumns, PairLayout, PromptColumns, SlicePrompts
from core.salience.scores import ALPHA, Effects, benjamini_hochberg, effects, safer_salience
from core.salience.signflip import family_p, random_signs, signflip_p
from core.salience.slices import ALL, slices_of
from core.store.arrays import Pool, RunArrays
from core.store.salience_queries import SALIENCE_SCHEMA

ROW_MIN_ACTIVE = 5
"""Features active in fewer pairs of a slice have no row in it (in 'all' every feature that is ever active has one)."""
DIGITS, PARITY_DIGITS = 5, 7
"""Significant digits that are stored: half the size, and far below any interval. SAFER's columns keep float32's seven."""
PARITY = ("chosen_sum", "rejected_sum", "s")


def salience_tables(
    arrays: RunArrays, pairs: pl.DataFrame, responses: pl.DataFrame, config: SalienceConfig, progress: Progress
) -> dict[str, pl.DataFrame]:
    """The table `salience` (schema.sql), ordered by slice, pooling and feature.

    Args:
        pairs: PAIR_SCHEMA.
        responses: RESPONSE_SCHEMA with n_tokens and n_boundary, ordered by response_id.

    Raises:
        DataError: `config.columns` names a column that is not there.
    """
    layout = PairLayout.of(pairs, responses)
    slices = [SlicePrompts.of(part, layout) for part in slices_of(pairs, config.columns)]
    alive = feature_counts(arrays) > 0
    frames: dict[tuple[str, str], pl.DataFrame] = {}
    with progress.task("salience", len(slices) * len(config.poolings), "slices") as task:
        for pooling in config.poolings:
            columns = PairColumns.of(arrays, layout, pooling)
            for part in slices:
                signs = random_signs(part.n_prompts, config.draws, config.seed)
                frames[part.name, pooling] = slice_frame(columns, part, pooling, config.min_active, signs, alive)
                task.advance()
    ordered = [frames[key] for key in sorted(frames)]
    return {"salience": pl.concat(ordered) if ordered else pl.DataFrame(schema=SALIENCE_SCHEMA)}


def slice_frame(
    columns: PairColumns,
    part: SlicePrompts,
    pooling: Pool,
    min_active: int,
    signs: np.ndarray,
    alive: np.ndarray | None = None,
) -> pl.DataFrame:
    """The rows of one slice and pooling, SALIENCE_SCHEMA, ordered by feature.

    Args:
        min_active: features active in fewer pairs are not tested.
        signs: int8 [n_prompts, draws] of `random_signs`.
        alive: bool [M], features that are active in some answer at all; each has a row in the slice 'all'.
    """
    prompts = PromptColumns.of(columns, part, 0 if part.name == ALL else ROW_MIN_ACTIVE)
    figures = effects(prompts, part.second_half, part.length(pooling))
    active = prompts.n_active.sum(axis=1)
    tested = active >= min_active
    p = signflip_p(prompts, tested)
    data = {
        "feature_id": prompts.features,
        "n_active": active,
        "chosen_sum": prompts.chosen[prompts.features],
        "rejected_sum": prompts.rejected[prompts.features],
        "s": safer_salience(prompts.chosen, prompts.rejected)[prompts.features],
        "effect": figures.effect,
        "ci_low": figures.ci_low,
        "ci_high": figures.ci_high,
        "effect_size": figures.effect_size,
        "p": p,
        "q": benjamini_hochberg(p),
        "p_family": family_p(prompts, tested, signs),
        "effect_length_adjusted": figures.effect_length_adjusted,
        "adjusted_low": figures.adjusted_low,
        "adjusted_high": figures.adjusted_high,
        "p_adjusted": np.where(tested, figures.p_adjusted, np.nan),
        "q_adjusted": benjamini_hochberg(np.where(tested, figures.p_adjusted, np.nan)),
        "auc": figures.auc,
        "auc_low": figures.auc_low,
        "auc_high": figures.auc_high,
        "effect_first": figures.effect_first,
        "effect_second": figures.effect_second,
        "replication": replication(prompts, part.second_half, tested, min_active, figures),
    }
    numbers = [name for name, kind in SALIENCE_SCHEMA.items() if kind == pl.Float64]
    frame = pl.DataFrame(data).with_columns(
        pl.col(name).round_sig_figs(PARITY_DIGITS if name in PARITY else DIGITS).fill_nan(None) for name in numbers
    )
    frame = frame.with_columns(
        slice=pl.lit(part.name),
        pooling=pl.lit(pooling),
        n_pairs=pl.lit(part.n_pairs),
        n_prompts=pl.lit(part.n_prompts),
    )
    frame = frame.select(SALIENCE_SCHEMA.keys()).cast(pl.Schema(SALIENCE_SCHEMA))
    if alive is not None and part.name == ALL:
        frame = frame.filter(pl.Series(alive[prompts.features]))
    return frame


def replication(
    prompts: PromptColumns,
    second_half: np.ndarray,
    tested: np.ndarray,
    min_active: int,
    figures: Effects,
) -> pl.Series:
    """Whether what is significant on the first half of the prompts holds on the second.

    Tested on the first half: features tested in the slice and active there in at least half of `min_active` pairs.
    Significant: q < 0.05 among them. 'replicated': p < 0.05 on the second half, same sign.

    Returns:
        [F]: 'replicated', 'not replicated' or null (not significant on the first half).
    """
    enough = tested & (2 * prompts.n_active[:, 0] >= min_active)
    q = benjamini_hochberg(signflip_p(prompts, enough, ~second_half))
    with np.errstate(invalid="ignore"):
        found = q < ALPHA
        confirmed = (signflip_p(prompts, found, second_half) < ALPHA) & (
            figures.effect_first * figures.effect_second > 0
        )
    return pl.Series(np.where(found, 1 + confirmed, 0)).replace_strict(
        [0, 1, 2], [None, "not replicated", "replicated"], return_dtype=pl.String
    )
