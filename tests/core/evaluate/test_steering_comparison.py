"""Searched on training pairs, judged on held-out ones: planted features come back, held-out rewards are never looked at."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp

from core.errors import DataError
from core.evaluate.specificity import SteeringData, specificity
from core.evaluate.steering_comparison import (
    judge,
    random_steering,
    search_steering,
    single_feature,
    single_within,
    training,
)
from core.rewards.steering import SteeredRewards
from core.rewards.steering_search import Bounds

M = 40
CONCEPT, RARE, EVERYWHERE = 3, 11, 17
"""In chosen privacy answers alone; in two of them and nothing else (highest s, no effect); in all answers alike."""


def planted(seed: int = 0, n: int = 240) -> SteeringData:
    rng = np.random.default_rng(seed)
    prompt = np.arange(n) // 3
    pairs = pl.DataFrame(
        {
            "pair_id": [f"p{i}" for i in range(n)],
            "prompt_id": [f"q{p}" for p in prompt],
            "split": ["test" if p % 2 else "train" for p in prompt],
            "domain": [("privacy", "chat", "maths")[p // 2 % 3] for p in prompt],
            "category": pl.Series([None] * n, dtype=pl.String),
            "labels": "{}",
        }
    )
    responses = pl.DataFrame({"pair_index": np.repeat(np.arange(n), 2), "side": ["chosen", "rejected"] * n})
    z = rng.gamma(2.0, 0.5, (2 * n, M)) * (rng.random((2 * n, M)) < 0.15)
    z[:, [CONCEPT, RARE]] = 0.0
    z[:, EVERYWHERE] = 1.0 + 0.1 * rng.random(2 * n)
    aimed = np.flatnonzero((pairs["domain"] == "privacy").to_numpy()) * 2
    z[rng.choice(aimed, round(0.8 * len(aimed)), replace=False), CONCEPT] = 1.5
    first = aimed[(pairs["split"] == "train").to_numpy()[aimed // 2]][:2]
    z[first, RARE] = 40.0
    weights = rng.normal(0, 0.1, M)
    weights[CONCEPT], weights[RARE], weights[EVERYWHERE] = 0.2, 1e-4, 0.5
    pooled = sp.csr_matrix(z.astype(np.float32))
    return SteeringData.of_tables(
        SteeredRewards(pooled, weights, pooled.astype(np.float64) @ weights), pairs, responses
    )


def test_the_planted_feature_is_found_and_the_bounds_hold() -> None:
    data = planted()
    bounds = Bounds(side=0.1, drift=0.05, total=3.0)
    steering, held_out = search_steering(data, "domain=privacy", bounds, name="mine")
    assert steering.changes[CONCEPT].value == 3.0  # the most a multiplier may be
    assert steering.name == "mine"
    how = steering.how
    assert (how["method"], how["slice"], how["pairs"]) == ("search", "domain=privacy", "train")
    assert EVERYWHERE not in steering.changes or abs(steering.changes[EVERYWHERE].value - 1) < 0.5
    assert how["objective"] <= how["bound"] <= how["objective"] * 1.02
    seen = specificity(data, data.rewards, data.steered.steered(steering), "domain=privacy", which="train")
    assert seen.target.shift == pytest.approx(how["objective"] * how["unit"])  # the objective is what it says
    assert seen.complement.absolute <= bounds.side * how["unit"] * (1 + 1e-9)  # type: ignore[operator]
    assert abs(seen.complement.shift) <= bounds.drift * how["unit"] * (1 + 1e-9)  # type: ignore[arg-type]
    assert held_out.target.low > 0  # type: ignore[operator]
    assert held_out.target.shift > 5 * abs(held_out.complement.shift)  # type: ignore[operator, arg-type]
    by_chance = judge(data, random_steering(data, "domain=chat", bounds, 0), "domain=chat")
    assert by_chance.target.shift < held_out.target.shift  # type: ignore[operator]


def test_sarms_recipe_takes_the_highest_s() -> None:
    data = planted()
    train = training(data, "domain=privacy")
    pooled = np.maximum(data.steered.columns.dense(list(range(M)), np.arange(len(data.rewards))), 0)
    pair = data.pair
    inside = data.slices["domain=privacy"][pair] & ~data.held[pair]
    c, j = pooled[inside & data.chosen].sum(axis=0), pooled[inside & ~data.chosen].sum(axis=0)
    np.testing.assert_allclose(train.salience, (c - j) / (c + j + (c + j).mean()), atol=1e-12)
    np.testing.assert_allclose(
        train.share,
        data.steered.weights * (pooled[inside & data.chosen].mean(axis=0) - pooled[inside & ~data.chosen].mean(axis=0)),
        atol=1e-12,
    )
    one = single_feature(data, "domain=privacy")
    assert one.multipliers(data.steered.weights) == {int(np.argmax(train.salience)): 2.0}
    within = single_within(data, "domain=privacy", Bounds())
    assert set(within.changes) <= set(one.changes)
    seen = specificity(data, data.rewards, data.steered.steered(within), "domain=privacy", which="train")
    assert seen.complement.absolute <= 0.1 * train.scale * (1 + 1e-9)  # type: ignore[operator]


def test_held_out_pairs_are_never_looked_at() -> None:
    data = planted()
    before, _ = search_steering(data, "domain=privacy")
    other = planted()
    held = other.held[other.pair]
    other.steered.base[held] += np.random.default_rng(5).normal(0, 10, int(held.sum()))
    columns = other.steered.columns
    row_of = np.repeat(np.arange(columns.n), np.diff(columns._indptr))
    columns._data[held[row_of]] *= -3.0
    again, _ = search_steering(other, "domain=privacy")
    assert again.changes == before.changes
    assert again.how == before.how


def test_what_cannot_be_searched_is_said() -> None:
    data = planted()
    with pytest.raises(DataError, match="no slice 'domain=cars'"):
        search_steering(data, "domain=cars")
    data.held[data.slices["domain=chat"]] = True
    with pytest.raises(DataError, match=r"no training pairs to search"):
        search_steering(data, "domain=chat")
