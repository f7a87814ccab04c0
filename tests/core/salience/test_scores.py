"""SAFER's score, effects and intervals against formulas written out for dense data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.salience.differences import PairColumns, PairLayout, PromptColumns, SlicePrompts
from core.salience.scores import Effects, benjamini_hochberg, effects, safer_salience
from core.salience.slices import Slice
from core.store.arrays import Pool
from tests.core.salience.synthetic import arrays_of, frames_of


def test_safers_score_has_its_golden_values() -> None:
    s = safer_salience(np.array([10.0, 0, 5, 1]), np.array([2.0, 0, 5, 9]))  # C = 8
    np.testing.assert_allclose(s, [0.4, 0.0, 0.0, -0.44444444], atol=1e-8)


def test_safers_constant_counts_silent_latents() -> None:
    s = safer_salience(np.array([10.0, 0, 5, 1, 0, 0, 0, 0]), np.array([2.0, 0, 5, 9, 0, 0, 0, 0]))  # C = 4
    np.testing.assert_allclose(s[:4], [8 / 16, 0, 0, -8 / 14])
    assert np.isnan(safer_salience(np.zeros(3), np.zeros(3))).all()


@pytest.mark.parametrize("pooling", ["boundary_sum", "last"])
def test_safers_sums_are_plain_and_clamped(pooling: Pool) -> None:
    """All answers of a side are added up, however many there are; negative activations count as zero."""
    dense = np.array([[6.0, -3, 2, 1], [4, 0, 3, 0], [1, 0, 5, 9], [1, 7, 0, 0], [0, -9, 0, 0], [0, 0, 0, 0]])
    pairs, responses = frames_of(["a", "b"], [(2, 1), (1, 2)])
    layout = PairLayout.of(pairs, responses)
    part = SlicePrompts.of(Slice("all", np.ones(2, bool)), layout)
    prompts = PromptColumns.of(PairColumns.of(arrays_of(dense), layout, pooling), part, 0)
    np.testing.assert_allclose(prompts.chosen, [11, 7, 5, 1])
    np.testing.assert_allclose(prompts.rejected, [1, 0, 5, 9])


def measured(u: np.ndarray, length: np.ndarray) -> Effects:
    """Effects of one pair a prompt with differences u [n, M]; the length covariate is given as it is."""
    n, m = u.shape
    dense = np.zeros((2 * n, m))
    dense[0::2], dense[1::2] = np.maximum(u, 0), np.maximum(-u, 0)
    pairs, responses = frames_of([f"prompt {g:04d}" for g in range(n)])
    layout = PairLayout.of(pairs, responses)
    part = SlicePrompts.of(Slice("all", np.ones(n, bool)), layout)
    prompts = PromptColumns.of(PairColumns.of(arrays_of(dense), layout, "mean"), part, 0)
    return effects(prompts, part.second_half, length)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 60))
def test_effects_are_those_of_the_textbook(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    length = rng.normal(0.2, 0.5, n)
    u = (rng.normal(0.3, 1, (n, 3)) + length[:, None]) * (rng.random((n, 3)) < 0.6)
    u = u.astype(np.float32).astype(float)
    found = measured(u, length)
    mean, error = u.mean(axis=0), u.std(axis=0, ddof=1) / np.sqrt(n)
    width = stats.t.ppf(0.975, n - 1) * error
    np.testing.assert_allclose(found.effect, mean, atol=1e-9)
    np.testing.assert_allclose(found.ci_low, mean - width, atol=1e-7)
    np.testing.assert_allclose(found.ci_high, mean + width, atol=1e-7)
    with np.errstate(invalid="ignore", divide="ignore"):
        np.testing.assert_allclose(found.effect_size, np.where(error > 0, mean / error / np.sqrt(n), np.nan), atol=1e-7)

    x = np.column_stack([np.ones(n), length])
    bread = np.linalg.inv(x.T @ x)
    for f in range(3):
        beta = bread @ x.T @ u[:, f]
        hat = np.einsum("ij,jk,ik->i", x, bread, x)
        residual = (u[:, f] - x @ beta) / (1 - hat)
        hc3 = np.sqrt((bread @ (x.T * residual**2) @ x @ bread)[0, 0])
        half = stats.t.ppf(0.975, n - 2) * hc3
        assert found.effect_length_adjusted[f] == pytest.approx(beta[0], abs=1e-8)
        assert found.adjusted_low[f] == pytest.approx(beta[0] - half, abs=1e-6)
        assert found.adjusted_high[f] == pytest.approx(beta[0] + half, abs=1e-6)
        if hc3 > 1e-9:
            assert found.p_adjusted[f] == pytest.approx(2 * stats.t.sf(abs(beta[0]) / hc3, n - 2), rel=1e-4, abs=1e-12)

    wins = (1 + np.sign(u)) / 2
    half = stats.t.ppf(0.975, n - 1) * wins.std(axis=0, ddof=1) / np.sqrt(n)
    np.testing.assert_allclose(found.auc, wins.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(found.auc_low, np.maximum(wins.mean(axis=0) - half, 0), atol=1e-7)
    np.testing.assert_allclose(found.auc_high, np.minimum(wins.mean(axis=0) + half, 1), atol=1e-7)


def test_length_alone_makes_no_adjusted_effect() -> None:
    rng = np.random.default_rng(2)
    length = rng.normal(0.4, 0.3, 400)  # chosen answers are longer
    u = np.column_stack([length + rng.normal(0, 0.1, 400), rng.normal(0.3, 0.1, 400)])
    found = measured(u, length)
    assert found.ci_low[0] > 0.3  # it looks like an effect ...
    assert found.adjusted_low[0] < 0 < found.adjusted_high[0]  # ... and is length
    assert found.adjusted_low[1] > 0.2


def test_what_length_cannot_settle_is_missing() -> None:
    u = np.array([[1.0], [2.0], [0.5], [1.5]])
    assert np.isnan(measured(u, np.full(4, 0.3)).effect_length_adjusted[0])  # every chosen answer longer by the same
    assert measured(u, np.zeros(4)).effect_length_adjusted[0] == pytest.approx(1.25)  # all of equal length
    few = measured(u[:2], np.array([0.1, 0.2]))
    assert np.isnan([few.effect_length_adjusted[0], few.p_adjusted[0]]).all()
    one = measured(u[:1], np.array([0.1]))
    assert one.effect[0] == 1.0
    assert np.isnan([one.ci_low[0], one.ci_high[0], one.effect_size[0], one.auc_low[0]]).all()


def test_halves_are_averaged_apart() -> None:
    rng = np.random.default_rng(4)
    u = rng.normal(1, 1, (40, 1)).astype(np.float32).astype(float)
    second = PairLayout.of(*frames_of([f"prompt {g:04d}" for g in range(40)])).second_half
    found = measured(u, np.zeros(40))
    assert found.effect_first[0] == pytest.approx(u[~second].mean(), abs=1e-9)
    assert found.effect_second[0] == pytest.approx(u[second].mean(), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.floats(0, 1), st.none()), max_size=40))
def test_q_is_benjamini_and_hochbergs_over_the_tested(values: list[float | None]) -> None:
    p = np.array([np.nan if v is None else v for v in values])
    q = benjamini_hochberg(p)
    known = ~np.isnan(p)
    assert np.isnan(q[~known]).all()
    if known.any():
        np.testing.assert_allclose(q[known], stats.false_discovery_control(p[known]), atol=1e-12)
