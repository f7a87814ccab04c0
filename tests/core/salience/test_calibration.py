"""Shuffled labels: when each prompt's two sides are named at random, nothing may be significant beyond the q level."""

from __future__ import annotations

import numpy as np
import pytest

from core.salience.differences import PairColumns, PairLayout, PromptColumns, SlicePrompts
from core.salience.scores import benjamini_hochberg, effects
from core.salience.signflip import family_p, random_signs, signflip_p
from core.salience.slices import Slice
from tests.core.salience.synthetic import arrays_of, frames_of, real_shaped

SEEDS, LATENTS, MIN_ACTIVE = 240, 120, 30


@pytest.fixture(scope="module")
def lowest() -> dict[str, np.ndarray]:
    """The lowest q, adjusted q and family p of each seed, and the share of features with p < 0.01."""
    rng = np.random.default_rng(42)
    found: dict[str, list[float]] = {"q": [], "q_adjusted": [], "p_family": [], "small": [], "small_adjusted": []}
    for seed in range(SEEDS):
        dense, prompts = real_shaped(rng, int(rng.integers(30, 140)), LATENTS)
        n = len(prompts)
        heads = {p: rng.random() < 0.5 for p in dict.fromkeys(prompts)}
        dense[0::2, ::3] *= 1.6  # a true difference, before the sides are named at random
        tokens = rng.integers(10, 60, 2 * n)
        tokens[0::2] += 15
        order = np.array(
            [[2 * i, 2 * i + 1] if heads[p] else [2 * i + 1, 2 * i] for i, p in enumerate(prompts)]
        ).reshape(-1)
        pairs, responses = frames_of(prompts, n_tokens=tokens[order].tolist())
        layout = PairLayout.of(pairs, responses)
        part = SlicePrompts.of(Slice("all", np.ones(n, bool)), layout)
        columns = PromptColumns.of(PairColumns.of(arrays_of(dense[order]), layout, "mean"), part, 0)
        tested = columns.n_active.sum(axis=1) >= MIN_ACTIVE
        p = signflip_p(columns, tested)
        adjusted = np.where(tested, effects(columns, part.second_half, part.length("mean")).p_adjusted, np.nan)
        found["q"].append(np.nanmin(benjamini_hochberg(p)))
        found["q_adjusted"].append(np.nanmin(benjamini_hochberg(adjusted)))
        found["p_family"].append(np.nanmin(family_p(columns, tested, random_signs(part.n_prompts, 199, seed))))
        found["small"].append(np.nanmean(p < 0.01))
        found["small_adjusted"].append(np.nanmean(adjusted < 0.01))
    return {name: np.array(values) for name, values in found.items()}


LIMIT = 0.05 + 3 * np.sqrt(0.05 * 0.95 / SEEDS)
"""Three standard errors above 5 % of the seeds."""


def test_no_more_than_five_percent_of_the_seeds_have_any_discovery(lowest: dict[str, np.ndarray]) -> None:
    assert (lowest["q"] < 0.05).mean() <= LIMIT


def test_the_family_p_keeps_its_level(lowest: dict[str, np.ndarray]) -> None:
    assert (lowest["p_family"] < 0.05).mean() <= LIMIT


def test_the_length_adjusted_effects_keep_their_level(lowest: dict[str, np.ndarray]) -> None:
    assert (lowest["q_adjusted"] < 0.05).mean() <= LIMIT
    assert lowest["small_adjusted"].mean() <= 0.0125


def test_small_p_are_as_rare_as_they_say_and_not_much_rarer(lowest: dict[str, np.ndarray]) -> None:
    assert 0.005 <= lowest["small"].mean() <= 0.0115
