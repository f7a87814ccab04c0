"""The sign-flip p is the share of all sign patterns, however small it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from core.salience.differences import PromptColumns
from core.salience.signflip import GRID_MAX, SMALLEST, family_p, random_signs, signflip_p


def columns_of(*values: np.ndarray) -> PromptColumns:
    """Columns of prompt values, one array [n_prompts] a feature; zeros are not stored."""
    stored = [np.flatnonzero(column) for column in values]
    pointer = np.cumsum([0, *map(len, stored)])
    difference = np.concatenate([column[at] for column, at in zip(values, stored, strict=True)]).astype(float)
    n = len(values)
    active = np.array([[len(at), 0] for at in stored])
    nothing = np.zeros(n)
    prompt = np.concatenate(stored).astype(np.int32)
    return PromptColumns(np.arange(n), pointer, prompt, difference, np.sign(difference), active, nothing, nothing)


def p_of(values: np.ndarray) -> float:
    return float(signflip_p(columns_of(np.asarray(values, float)), np.ones(1, bool))[0])


def share_of_patterns(values: np.ndarray) -> float:
    """All 2^n patterns, one by one."""
    sums = np.zeros(1)
    for size in np.abs(values):
        sums = np.concatenate([sums - size, sums + size])
    return float((np.abs(sums) >= abs(values.sum()) * (1 - 1e-12)).mean())


def values_of(kind: str, n: int, lean: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.normal(lean, 1, n)
    sign = np.where(rng.random(n) < 0.5 + lean / 2.2, 1.0, -1.0)
    if kind == "gamma":
        return rng.gamma(0.7, 1, n) * sign
    if kind == "heavy":
        return rng.standard_cauchy(n) + lean
    if kind == "discrete":
        return rng.integers(1, 4, n) * sign
    return np.where(np.arange(n) < 3, 30.0, rng.gamma(1.0, 1, n)) * sign  # a few outweigh the others


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(["normal", "gamma", "heavy", "discrete", "outweighed"]),
    st.integers(1, 16),
    st.floats(0, 1),
    st.integers(0, 10_000),
)
def test_it_agrees_with_full_enumeration(kind: str, n: int, lean: float, seed: int) -> None:
    values = values_of(kind, n, lean, seed)
    exact, p = share_of_patterns(values), p_of(values)
    # Below: the expansion's error. Above: the grid, on which a few patterns just beyond the observed one count, too.
    assert 0.97 * exact <= p <= 1.5 * exact + 2.0 ** (1 - n)
    assert p >= 2.0**-n  # never below what n prompts can show


@pytest.mark.parametrize("n", [5, 12, 40, 300])
def test_prompts_of_one_direction_have_the_smallest_possible_p(n: int) -> None:
    assert p_of(np.random.default_rng(n).gamma(1, 1, n)) == pytest.approx(2 * 0.5**n, rel=1e-12)


def test_p_has_a_smallest_value_and_silence_has_none() -> None:
    assert p_of(np.ones(3000)) == SMALLEST
    assert p_of(np.zeros(10)) == 1.0


@pytest.mark.parametrize(("n", "plus"), [(30, 24), (50, 41), (200, 140), (1500, 850), (4000, 2300)])
def test_equal_sizes_are_a_binomial_test(n: int, plus: int) -> None:
    exact = 2 * binom.sf(plus - 1, n, 0.5)
    p = p_of(np.where(np.arange(n) < plus, 1.0, -1.0))
    assert exact * (1 - 1e-6) <= p <= 1.1 * exact


@pytest.mark.parametrize("n", [30, 500, 3000])
@pytest.mark.parametrize("times", [1.5, 1e3, 1e9])
def test_one_prompt_against_all_others_decides_nothing(n: int, times: float) -> None:
    values = np.random.default_rng(n).gamma(1, 1, n)
    values[0] = -times * values[1:].sum()  # no pattern has a smaller |sum| than the observed one
    assert p_of(values) >= 0.97


@pytest.mark.parametrize("kind", ["normal", "gamma", "heavy", "outweighed"])
@pytest.mark.parametrize("n", [40, 150])
def test_it_agrees_with_many_random_patterns(kind: str, n: int) -> None:
    values = values_of(kind, n, 0.12, n)
    rng = np.random.default_rng(1)
    draws = 200_000
    hits = 0
    for _ in range(4):
        signs = np.where(rng.random((draws // 4, n)) < 0.5, -1.0, 1.0)
        hits += int((np.abs(signs @ np.abs(values)) >= abs(values.sum())).sum())
    share, error = hits / draws, np.sqrt(max(hits, 1)) / draws
    assert 0.97 * share - 4 * error <= p_of(values) <= 1.12 * share + 4 * error


def test_far_out_in_the_tail_it_agrees_with_convolution() -> None:
    """Integers of many sizes: their distribution is known exactly, at shares no sampling reaches."""
    rng = np.random.default_rng(3)
    for n, plus in ((60, 52), (120, 95), (250, 180)):
        sizes = rng.integers(500, 6000, n)
        ways = np.ones(1)
        for size in sizes:  # P(sum of the prompts against = s)
            longer = np.zeros(len(ways) + size)
            longer[: len(ways)] += 0.5 * ways
            longer[size:] += 0.5 * ways
            ways = longer
        against = int(sizes[plus:].sum())
        exact = 2 * ways[: against + 1].sum()
        p = p_of(np.where(np.arange(n) < plus, 1.0, -1.0) * sizes)
        assert exact < 1e-6
        assert 0.97 * exact <= p <= 1.1 * exact


def test_only_the_prompts_asked_for_are_used() -> None:
    rng = np.random.default_rng(5)
    values, half = rng.normal(0.5, 1, 30), rng.random(30) < 0.5
    both = columns_of(values, np.where(half, values, 0.0))
    assert signflip_p(both, np.array([True, False]), half)[0] == signflip_p(both, np.array([False, True]))[1]


def test_features_that_are_not_tested_have_no_p() -> None:
    columns = columns_of(np.ones(9), np.ones(9))
    assert np.isnan(signflip_p(columns, np.array([False, True]))).tolist() == [True, False]
    assert np.isnan(family_p(columns, np.array([False, True]), random_signs(9, 50, 0))).tolist() == [True, False]


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    columns = columns_of(*(rng.normal(0.2, 1, 50) * (rng.random(50) < 0.6) for _ in range(40)))
    tested, signs = np.ones(40, bool), random_signs(50, 64, 3)
    results = []
    for workers in (1, 3):
        monkeypatch.setattr("core.salience.kernels.threads", lambda workers=workers: workers)
        results.append((signflip_p(columns, tested), family_p(columns, tested, signs)))
    np.testing.assert_array_equal(results[0], results[1])


def test_family_p_compares_with_the_largest_statistic_under_the_same_flips() -> None:
    rng = np.random.default_rng(11)
    values = rng.normal(0, 1, (25, 30)) * (rng.random((25, 30)) < 0.5)
    values[0] += 1.0
    columns, signs = columns_of(*values), random_signs(30, 400, 2)
    scale = np.sqrt((values**2).sum(axis=1))
    largest = (np.abs(values @ signs) / scale[:, None]).max(axis=0)
    observed = np.abs(values.sum(axis=1)) / scale
    expected = [(1 + (largest >= one).sum()) / 401 for one in observed]
    np.testing.assert_allclose(family_p(columns, np.ones(25, bool), signs), expected, atol=1e-12)


def test_random_signs_are_fair_and_repeatable() -> None:
    signs = random_signs(200, 501, 4)
    assert signs.shape == (200, 501)
    assert set(np.unique(signs)) == {-1, 1}
    assert abs(signs.mean()) < 0.02
    np.testing.assert_array_equal(signs, random_signs(200, 501, 4))
    assert GRID_MAX > 0
