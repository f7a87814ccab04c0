"""The search against the same problem written out as one linear programme, and its certificate against any point."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from core.errors import ConfigError
from core.rewards.steering_search import DIGITS, ROOM, TOLERANCE, Bounds, best_change


def problem(seed: int, k: int = 8) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    spread = rng.gamma(1.0, 0.2, k)
    rows = [rng.normal(rng.normal(0, 0.3), 1.0, (n, k)) * spread * (rng.random((n, k)) < 0.5) for n in (12, 10, 25)]
    return rows[0], rows[1:]


def written_out(target: np.ndarray, still: list[np.ndarray], bounds: Bounds) -> float:
    """The optimum with one more variable t_a >= |c_a . u| for each answer that shall stay put."""
    k, n = target.shape[1], sum(len(rows) for rows in still)
    width = 2 * k + n
    a, b = [np.r_[np.ones(2 * k), np.zeros(n)]], [bounds.total]
    at = 2 * k
    for rows in still:
        for offset, row in enumerate(rows):
            for sign in (1.0, -1.0):
                line = np.zeros(width)
                line[:k], line[k : 2 * k], line[at + offset] = sign * row, -sign * row, -1.0
                a.append(line)
                b.append(0.0)
        line = np.zeros(width)
        line[at : at + len(rows)] = 1.0 / len(rows)
        a.append(line)
        b.append(bounds.side)
        for sign in (1.0, -1.0):
            mean = sign * rows.mean(axis=0)
            a.append(np.r_[mean, -mean, np.zeros(n)])
            b.append(bounds.drift)
        at += len(rows)
    gain = np.r_[target.mean(axis=0), -target.mean(axis=0), np.zeros(n)]
    limits = [(0, bounds.high - 1)] * k + [(0, 1 - bounds.low)] * k + [(0, None)] * n
    return float(-linprog(-gain, A_ub=np.array(a), b_ub=np.array(b), bounds=limits, method="highs").fun)


def within(u: np.ndarray, still: list[np.ndarray], bounds: Bounds, slack: float = 1e-9) -> bool:
    sides = all(np.abs(rows @ u).mean() <= bounds.side * (1 + slack) for rows in still)
    drifts = all(abs((rows @ u).mean()) <= bounds.drift * (1 + slack) for rows in still)
    box = ((u >= bounds.low - 1 - slack) & (u <= bounds.high - 1 + slack)).all()
    return bool(sides and drifts and box and np.abs(u).sum() <= bounds.total * (1 + slack))


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.02, 0.1, 1.0]),
    st.sampled_from([0.005, 0.05]),
    st.sampled_from([2.0, 8.0]),
)
@settings(max_examples=40, deadline=None)
def test_it_finds_the_optimum_and_proves_it(seed: int, side: float, drift: float, total: float) -> None:
    target, still = problem(seed)
    bounds = Bounds(side=side, drift=drift, total=total)
    found, exact = best_change(target, still, bounds), written_out(target, still, bounds)
    assert within(found.change, still, bounds)
    assert found.objective == pytest.approx(float((target @ found.change).mean()), abs=1e-12)
    assert found.objective <= exact + 1e-9
    assert exact <= found.bound + 1e-9
    # What is lost: the room for rounding, the gap at which it stops, and the rounding itself where bounds are tiny.
    assert found.objective >= exact * (1 - ROOM - 2 * TOLERANCE - 0.011) - 10.0**-DIGITS
    assert found.bound <= exact * (1 + 2 * ROOM + 2 * TOLERANCE) + 1e-9


def test_no_allowed_change_beats_the_bound() -> None:
    target, still = problem(3)
    bounds = Bounds(side=0.1, drift=0.05)
    found = best_change(target, still, bounds)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        u = rng.uniform(-3, 2, target.shape[1]) * (rng.random(target.shape[1]) < 0.4)
        u *= min(1.0, bounds.total / max(np.abs(u).sum(), 1e-12))
        for rows in still:
            u *= min(1.0, bounds.side / max(np.abs(rows @ u).mean(), 1e-12))
            u *= min(1.0, bounds.drift / max(abs((rows @ u).mean()), 1e-12))
        assert within(u, still, bounds)
        assert float((target @ u).mean()) <= found.bound


def test_what_must_stay_put_stays_put() -> None:
    """Feature 0 moves the target alone, 1 the target and the rest, 2 nothing of the target."""
    target = np.column_stack([np.ones(20), 3 * np.ones(20), np.zeros(20)]) * 0.1
    still = np.column_stack([np.zeros(50), np.ones(50), np.ones(50)]) * 0.1
    found = best_change(target, [still], Bounds(side=1e-6, drift=1e-6, total=4.0))
    # Feature 2 may only be used to undo what feature 1 does to the rest: 2 units of each spend the whole budget.
    np.testing.assert_allclose(found.change, [0.0, 2.0, -2.0], atol=1e-2)
    assert found.objective == pytest.approx(0.6, rel=1e-2)
    found = best_change(target, [still], Bounds(side=1e-6, drift=1e-6, total=2.0, low=0.5))
    np.testing.assert_allclose(found.change, [1.0, 0.5, -0.5], atol=5e-3)


def test_nothing_to_gain_changes_nothing() -> None:
    found = best_change(np.zeros((5, 4)), [np.ones((6, 4))], Bounds())
    assert (found.objective, found.bound, found.gap) == (0.0, 0.0, 0.0)
    np.testing.assert_array_equal(found.change, np.zeros(4))
    free = best_change(np.ones((5, 2)) * 0.1, [np.zeros((0, 2))], Bounds(total=100.0))
    np.testing.assert_array_equal(free.change, [2.0, 2.0])  # no group to keep still: the box is all there is


def test_bounds_are_checked() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        Bounds(side=0.0)
    with pytest.raises(ConfigError, match="leave out 1"):
        Bounds(low=1.5, high=3.0)
    with pytest.raises(ConfigError, match="at least one candidate"):
        Bounds(candidates=0)
