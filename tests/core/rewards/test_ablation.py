"""Head ablation, matching and verdicts against brute force, planted features and shuffled sides."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.rewards.ablation import (
    CAUSAL_SCHEMA,
    MIN_PROMPTS,
    Sides,
    causal_tables,
    head_ablation,
    head_effects,
    mean_effects,
)
from core.rewards.matching import nearest, null_range, within_factor
from core.rewards.rank_correlation import rank_correlation
from core.rewards.verdict import verdict, why_not
from core.store.arrays import RunArrays
from core.store.pooling import pool_answer
from core.store.shards import AnswerActivations


def random_case(seed: int, pairs: int, latents: int) -> tuple[np.ndarray, Sides, np.ndarray]:
    """Dense pooled activations of pairs with one or two answers a side, several pairs to a prompt."""
    rng = np.random.default_rng(seed)
    pair, chosen = [], []
    for i in range(pairs):
        for side in (True, False):
            n = int(rng.integers(1, 3))
            pair += [i] * n
            chosen += [side] * n
    z = rng.gamma(2.0, 1.0, (len(pair), latents)) * (rng.random((len(pair), latents)) < 0.4)
    sides = Sides(np.array(pair), np.array(chosen), rng.integers(0, max(2, pairs // 2), pairs))
    return z.astype(np.float32), sides, rng.normal(size=latents)


def margins(rewards: np.ndarray, sides: Sides) -> np.ndarray:
    """Mean chosen minus mean rejected reward of each pair."""
    pairs = range(len(sides.prompt))
    of = [sides.response_pair == p for p in pairs]
    return np.array([rewards[m & sides.chosen].mean() - rewards[m & ~sides.chosen].mean() for m in of])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 14), st.integers(1, 5), st.integers(1, 9))
def test_effects_are_the_margins_without_the_feature(seed: int, pairs: int, latents: int, block: int) -> None:
    """Brute force: take the feature's contribution out, compare margins, average by prompt, then over prompts."""
    z, sides, weights = random_case(seed, pairs, latents)
    found = head_effects(sp.csr_matrix(z), sides, weights, block=block)
    exact = z.astype(np.float64)
    whole = margins(exact @ weights, sides)
    for feature in range(latents):
        off = exact.copy()
        off[:, feature] = 0
        change = whole - margins(off @ weights, sides)
        active = np.array([(z[sides.response_pair == p, feature] != 0).any() for p in range(pairs)])
        assert found.n_pairs[feature] == active.sum()
        n, _, effect, low, high = mean_effects(sides.prompt[active], change[active], change[active])
        assert found.n_prompts[feature] == n
        measured = (found.effect[feature], found.low[feature], found.high[feature])
        np.testing.assert_allclose(measured, (effect, low, high), atol=1e-7)
        answers = z[:, feature] != 0
        if answers.any():
            assert found.on_reward[feature] == pytest.approx(weights[feature] * exact[answers, feature].mean())


def test_the_interval_is_students_over_prompts() -> None:
    prompt = np.array([0, 0, 1, 2, 2, 2, 3])
    margin = np.array([1.0, 3.0, 5.0, 0.0, 1.0, 2.0, -1.0])
    n, attribution, effect, low, high = mean_effects(prompt, margin, 2 * margin)
    means = np.array([2.0, 5.0, 1.0, -1.0])
    assert (n, effect, attribution) == (4, pytest.approx(1.75), pytest.approx(3.5))
    expected = stats.t.interval(0.95, 3, loc=1.75, scale=stats.sem(means))
    assert (low, high) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    assert mean_effects(np.array([1]), np.array([2.0]), np.array([2.0]))[:3] == (1, 2.0, 2.0)
    assert np.isnan(mean_effects(np.array([1]), np.array([2.0]), np.array([2.0]))[3])
    assert mean_effects(np.array([], int), np.array([]), np.array([]))[0] == 0


def test_random_features_are_those_nearest_in_density_and_weight() -> None:
    density = np.array([0.1, 0.11, 0.2, 0.1, 0.0, 0.1])
    weights = np.array([1.0, 1.0, 1.0, -1.2, 1.0, 0.0])
    every = np.arange(6)
    assert nearest(density, weights, np.array([0]), every, 3)[0].tolist() == [1, 3, 2]
    assert nearest(density, weights, np.array([0]), np.array([2, 5]), 9)[0].tolist() == [2, 5]
    assert nearest(density, weights, np.array([0]), np.array([], int), 3)[0].tolist() == []
    assert within_factor(density, weights, 0, every, 1.5).tolist() == [True, True, False, True, False, False]


def test_a_null_of_few_features_is_their_whole_range() -> None:
    assert null_range(np.array([3.0, -1.0, 2.0])) == (-1.0, 3.0)
    wide = null_range(np.arange(200.0))
    assert wide == (4.0, 195.0)
    assert np.isnan(null_range(np.array([]))).all()


@pytest.mark.parametrize(
    ("change", "expected", "reason"),
    [
        ({}, "verified", ""),
        ({"low": -0.1}, "correlated only", "the interval holds 0"),
        ({"low": np.nan}, "correlated only", "the interval holds 0"),
        ({"effect": -1.0, "low": -1.2, "high": -0.8}, "correlated only", "its removal raises the margin"),
        ({"random_high": 1.5}, "correlated only", "random features do as much"),
        ({"n_random": 3}, "correlated only", "only 3 matched random features"),
        ({"on_reward": -0.2}, "correlated only", "it moves rewards against its sign"),
        ({"sign": -1.0}, "correlated only", "it moves rewards against its sign"),
        ({"sign": -1.0, "on_reward": -0.2}, "verified", ""),
    ],
)
def test_what_verified_asks_for(change: dict[str, float], expected: str, reason: str) -> None:
    case = {"effect": 1.0, "low": 0.8, "high": 1.2, "random_high": 0.5, "n_random": 20, "on_reward": 0.3, "sign": 1.0}
    case |= change
    high = case.pop("high")
    found = verdict(**case)  # type: ignore[arg-type]
    assert found == expected
    low = None if np.isnan(case["low"]) else case["low"]
    row = {**case, "ci_low": low, "ci_high": high, "verdict": found}
    assert why_not(row) == reason


def planted_run(
    seed: int, *, shuffled: bool, pairs: int = 300, latents: int = 80
) -> tuple[RunArrays, pl.DataFrame, pl.DataFrame, np.ndarray]:
    """Features 0..3 are stronger in chosen answers, 4..7 in rejected ones, their weights have the right sign; the rest
    is alike on both sides and has weights of the same sizes."""
    rng = np.random.default_rng(seed)
    tokens, k = 6, 10
    answers = []
    side = np.tile([True, False], pairs)
    if shuffled:
        side = np.concatenate([rng.permutation([True, False]) for _ in range(pairs)])
    for response in range(2 * pairs):
        features = np.stack([rng.choice(latents, k, replace=False) for _ in range(tokens)])
        values = rng.gamma(2.0, 1.0, (tokens, k))
        good = response % 2 == 0
        values *= np.where((features < 4) & good | (features >= 4) & (features < 8) & ~np.bool_(good), 4.0, 1.0)
        answers.append(AnswerActivations(
            response_id=response, token_ids=np.zeros(tokens, np.int32), char=np.zeros((tokens, 2), np.int32),
            boundary=np.zeros(tokens, bool), features=features.astype(np.uint16), values=values.astype(np.float32),
            truncated=False, states=None,
        ))  # fmt: skip
    pooled = [pool_answer(answer) for answer in answers]
    columns = np.concatenate([values for _, values in pooled], axis=1)
    starts = np.arange(2 * pairs + 1) * tokens
    arrays = RunArrays(
        token_start=starts, token_ids=np.zeros(starts[-1], np.int32), token_char=np.zeros((starts[-1], 2), np.int32),
        token_boundary=np.zeros(starts[-1], bool), token_features=np.concatenate([a.features for a in answers]),
        token_values=np.concatenate([a.values for a in answers]), truncated=np.zeros(2 * pairs, bool),
        pooled_ptr=np.cumsum([0, *(len(f) for f, _ in pooled)]),
        pooled_features=np.concatenate([f for f, _ in pooled]).astype(np.uint32),
        last=columns[0], mean=columns[1], max=columns[2], boundary_sum=columns[3], states=None, latents=latents,
    )  # fmt: skip
    pair = pl.DataFrame({"pair_index": range(pairs), "prompt_id": [f"p{i // 2}" for i in range(pairs)]})
    response = pl.DataFrame(
        {
            "response_id": range(2 * pairs),
            "pair_index": np.arange(2 * pairs) // 2,
            "side": np.where(side, "chosen", "rejected"),
        }
    )
    weights = rng.choice([-1.0, 1.0], latents) * rng.uniform(0.9, 1.1, latents)
    weights[:8] = np.repeat([1.0, -1.0], 4)
    return arrays, pair, response, weights


def test_planted_features_are_verified_and_others_are_not() -> None:
    arrays, pairs, responses, weights = planted_run(0, shuffled=False)
    signs = np.zeros(len(weights))
    signs[:8] = np.repeat([1.0, -1.0], 4)
    table = head_ablation(arrays, pairs, responses, weights, "mean", signs=signs, exclude=tuple(range(8)), matched=32)
    assert dict(table.schema) == CAUSAL_SCHEMA
    marked = set(table.filter(verdict="verified")["feature_id"].to_list())
    assert set(range(8)) <= marked
    assert len(marked) <= 8 + 6
    assert (table["n_random"] == 32).all()
    np.testing.assert_array_equal(table["attribution"], table["effect"])
    wrong = head_ablation(arrays, pairs, responses, weights, "mean", signs=-signs, exclude=tuple(range(8)), matched=32)
    turned = wrong.filter(pl.col("feature_id") < 8)
    assert set(turned["verdict"]) == {"correlated only"}
    assert {why_not(row) for row in turned.to_dicts()} == {"it moves rewards against its sign"}


def test_with_sides_at_random_hardly_anything_is_verified() -> None:
    """The share of features verified by chance, over many seeds, stays near the null's upper 2.5 %."""
    marked = total = 0
    for seed in range(12):
        table = causal_tables(*planted_run(seed, shuffled=True, pairs=120), "mean")["causal"]
        marked += int((table["verdict"] == "verified").sum())
        total += len(table)
    assert total > 900
    assert marked / total < 0.05


def test_a_feature_in_few_prompts_has_no_row_and_salience_gives_the_sign() -> None:
    arrays, pairs, responses, weights = planted_run(1, shuffled=False)
    few = pairs.with_columns(prompt_id=pl.Series([f"p{i % (MIN_PROMPTS - 1)}" for i in range(len(pairs))]))
    assert head_ablation(arrays, few, responses, weights, "mean").is_empty()
    salience = pl.DataFrame({"feature_id": [0, 1], "effect": [0.5, -0.5]})
    table = causal_tables(arrays, pairs, responses, weights, "mean", salience)["causal"]
    assert table.filter(feature_id=0)["verdict"].item() == "verified"
    assert table.filter(feature_id=1)["verdict"].item() == "correlated only"


def test_rank_correlation_is_spearmans_with_its_n() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=60)
    b = a + rng.normal(size=60)
    found = rank_correlation(a, np.r_[b[:50], [np.nan] * 10])
    assert found.n == 50
    assert found.rho == pytest.approx(stats.spearmanr(a[:50], b[:50]).statistic)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.rho < found.high
    assert found.low > 0
    same = rank_correlation(a, a)
    assert (same.rho, same.low, same.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert rank_correlation(a[:2], b[:2]).rho is None
    assert str(rank_correlation(np.ones(9), b[:9])) == "not defined (n = 9)"


def test_the_correlations_interval_covers() -> None:
    """Of many samples of a known correlation, about 95 % of the intervals hold it (bootstrap: a little less)."""
    rng = np.random.default_rng(1)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's rho of a normal pair with correlation 0.6
    held = 0
    for _ in range(100):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 60).T
        found = rank_correlation(x, y, draws=300)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert held >= 86
