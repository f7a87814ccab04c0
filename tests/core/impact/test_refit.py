"""The refit is the exact minimum of the head's objective on the edited pairs, whatever way it was reached."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import RunError
from core.impact import differences as differences_module
from core.impact.differences import SparseRows, differences_of
from core.impact.inputs import ImpactInputs
from core.impact.preconditioner import preconditioner
from core.impact.refit import refit
from core.rewards.head import Comparisons, fit_head
from tests.core.impact.problem import L2, small_inputs


def random_signs(inputs: ImpactInputs, seed: int, plans: int = 6) -> np.ndarray:
    """int8 [n_comparisons, plans]: flips and drops of whole pairs; the first plan changes nothing."""
    rng = np.random.default_rng(seed)
    of_pair = rng.choice([1, -1, 0], p=[0.8, 0.12, 0.08], size=(len(inputs.train), plans)).astype(np.int8)
    of_pair[:, 0] = 1
    return of_pair[inputs.comparisons.pair]


def solved(inputs: ImpactInputs, signs: np.ndarray, tolerance: float = 1e-8) -> np.ndarray:
    unchanged = inputs.unchanged
    fit = refit(
        inputs.differences,
        inputs.comparisons.weight,
        signs,
        l2=inputs.l2,
        start=unchanged.u,
        tolerance=tolerance,
        precondition=unchanged.precondition,
    )
    assert (fit.gradient_norm <= tolerance).all()
    return inputs.differences.weights(fit.u)


def independent(inputs: ImpactInputs, signs: np.ndarray) -> np.ndarray:
    """The minimum by scipy's L-BFGS on the objective as core.rewards.head writes it, dense and in float64."""
    features = inputs.features if isinstance(inputs.features, np.ndarray) else inputs.features.toarray()
    features = features.astype(np.float64)
    c = inputs.comparisons
    scale = features[np.unique(np.r_[c.chosen, c.rejected])].std(axis=0)
    if not isinstance(inputs.features, np.ndarray):
        scale = np.full_like(scale, np.median(scale[scale > 1e-12]))
    rows = (features[c.chosen] - features[c.rejected]) * signs[:, None]
    share = c.weight * np.abs(signs)
    share = share / share.sum()

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = rows @ w
        value = share @ np.logaddexp(0, -margin) + 0.5 * inputs.l2 * np.sum((scale * w) ** 2)
        return value, -rows.T @ (share / (1 + np.exp(margin))) + inputs.l2 * scale**2 * w

    start = np.zeros(features.shape[1])
    options = {"maxiter": 20_000, "ftol": 0.0, "gtol": 1e-12}
    return scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_refits_are_what_an_independent_solver_finds(dense: bool, seed: int) -> None:
    inputs = small_inputs(seed, dense=dense)
    signs = random_signs(inputs, seed)
    found = solved(inputs, signs)
    for plan in range(signs.shape[1]):
        truth = independent(inputs, signs[:, plan].astype(float))
        np.testing.assert_allclose(found[:, plan], truth, atol=2e-5 * np.abs(truth).max())


def test_a_flip_is_fit_head_on_swapped_answers() -> None:
    inputs = small_inputs(2)
    signs = np.abs(random_signs(inputs, 5)) * np.where(random_signs(inputs, 5) < 0, -1, 1)
    signs[signs == 0] = 1
    found = solved(inputs, signs.astype(np.int8))
    c = inputs.comparisons
    for plan in range(signs.shape[1]):
        swap = signs[:, plan] < 0
        edited = Comparisons(
            np.where(swap, c.rejected, c.chosen), np.where(swap, c.chosen, c.rejected), c.pair, c.weight
        )
        truth = fit_head(inputs.features, edited, l2=L2, tolerance=1e-9).weights
        np.testing.assert_allclose(found[:, plan], truth, atol=1e-6 * np.abs(truth).max())


def test_the_unchanged_refit_is_the_runs_head() -> None:
    inputs = small_inputs(3)
    assert inputs.head is not None
    np.testing.assert_allclose(inputs.unchanged.weights, inputs.head, rtol=1e-12, atol=1e-15)
    assert inputs.unchanged.gradient_norm <= inputs.settings.tolerance
    from_zero = replace(inputs, head=None).unchanged.weights
    np.testing.assert_allclose(from_zero, inputs.head, atol=1e-4 * np.abs(inputs.head).max())


def test_a_wrong_start_does_not_change_the_minimum() -> None:
    inputs = small_inputs(4)
    assert inputs.head is not None
    wrong = replace(inputs, head=inputs.head[::-1] * 3)
    np.testing.assert_allclose(wrong.unchanged.weights, inputs.head, atol=1e-4 * np.abs(inputs.head).max())


def test_the_preconditioner_changes_the_way_and_not_the_result() -> None:
    inputs = small_inputs(5)
    signs = random_signs(inputs, 5)
    truth = solved(inputs, signs)
    weight = inputs.comparisons.weight
    for rank in (1, 7, 1000):
        other = preconditioner(inputs.differences, weight / weight.sum() / 4, inputs.l2, rank, seed=rank)
        fit = refit(
            inputs.differences,
            weight,
            signs,
            l2=inputs.l2,
            start=inputs.unchanged.u,
            tolerance=1e-8,
            precondition=other,
        )
        np.testing.assert_allclose(inputs.differences.weights(fit.u), truth, atol=1e-5 * np.abs(truth).max())


def test_plans_side_by_side_and_alone_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = small_inputs(6)
    signs = random_signs(inputs, 7)
    together = solved(inputs, signs)
    alone = np.concatenate([solved(inputs, signs[:, [plan]]) for plan in range(signs.shape[1])], axis=1)
    np.testing.assert_allclose(together, alone, atol=1e-6 * np.abs(together).max())
    monkeypatch.setattr("core.impact.refit.BLOCK_VALUES", 2 * max(inputs.differences.shape))
    np.testing.assert_allclose(solved(inputs, signs), together, atol=1e-6 * np.abs(together).max())


def test_dropping_everything_is_refused() -> None:
    inputs = small_inputs(7)
    signs = np.zeros((len(inputs.comparisons), 1), np.int8)
    with pytest.raises(RunError, match="drops every training pair"):
        solved(inputs, signs)


def test_a_silent_and_a_constant_feature_have_no_weight() -> None:
    inputs = small_inputs(8, fit=False)
    dense = inputs.features.toarray()
    dense[:, 3], dense[:, 4] = 0, 1.5
    changed = replace(inputs, features=sp.csr_matrix(dense))
    weights = changed.unchanged.weights
    assert weights[3] == 0.0
    assert weights[4] == 0.0
    assert (weights[5:] != 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4))
def test_sparse_products_are_the_matrix_products(seed: int, n: int, plans: int, cores: int) -> None:
    """Also with empty rows, on several cores, and for one plan alone."""
    rng = np.random.default_rng(seed)
    matrix = sp.random_array((n, 6), density=0.4, rng=rng, format="csr", dtype=np.float32)
    rows, dense = SparseRows.of(sp.csr_matrix(matrix)), matrix.toarray().astype(np.float64)
    u, y = rng.normal(size=(6, plans)), rng.normal(size=(n, plans))
    curvature = rng.random((n, plans))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(differences_module, "available_cores", lambda most=8: cores)
        np.testing.assert_allclose(rows.times(u), dense @ u, atol=1e-12)
        np.testing.assert_allclose(rows.transposed_times(y), dense.T @ y, atol=1e-12)
        expected = dense.T @ (curvature * (dense @ u))
        np.testing.assert_allclose(rows.hessian_times(curvature, u), expected, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_differences_are_chosen_minus_rejected_in_units_of_the_penalty(seed: int) -> None:
    inputs = small_inputs(seed % 50, pairs=24, features=9, fit=False)
    d, c = differences_of(inputs.features, inputs.comparisons), inputs.comparisons
    dense = inputs.features.toarray().astype(np.float64)
    weights = np.random.default_rng(seed).normal(size=9)
    unit = d.unit(weights)
    expected = (dense[c.chosen] - dense[c.rejected]) @ weights
    np.testing.assert_allclose(d.margins(unit[:, None])[:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(d.weights(unit[:, None])[:, 0], weights, rtol=1e-12)
