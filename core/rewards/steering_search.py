"""The best steering within bounds: which multipliers of a few features raise the target most while the rest stays put.

With u_i = m_i - 1 the change of answer a's reward is c_a . u, c_ai = w_i z_ai: linear in u. The problem solved is

    maximise    mean over target answers of c_a . u
    subject to  mean over the answers of g of |c_a . u| <= side     for each group g that shall stay put
                |mean over the answers of g of c_a . u| <= drift    for the same groups
                low - 1 <= u_i <= high - 1,   sum_i |u_i| <= total

(all in units of the reward's standard deviation). It is convex: the objective is linear, every constraint bounds a convex
function (means of absolute values of linear functions, linear functions, a box, an l1 norm), and u = 0 is feasible. So a
local maximum is the maximum, and how far a point is from it can be proven.

It is solved by cutting planes (Kelley 1960): f_g(u) = mean |c_a . u| is positively homogeneous with subgradient
s = mean sign(c_a . v) c_a at v, so f_g(u) >= s . u for every u, with equality at v. Each linear programme (HiGHS) with the cuts
s . u <= side so far is a relaxation, hence its optimum a bound from above, and shrinking its solution towards 0 until every f_g
holds gives a feasible point, a bound from below. Only the rows of a few features are ever touched, so the size of the run
hardly matters.

The certificate is `bound`: it is computed from the multipliers lambda >= 0 of the last programme by weak duality, which holds for any
such lambda, however the solver came by it. The programmes leave a share ROOM of the limits free for rounding the
multipliers; as (1 - ROOM) u is allowed there for every u allowed here, their bound divided by 1 - ROOM is one here:
objective <= optimum <= bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import linprog

from core.errors import ConfigError, RunError

TOLERANCE = 1e-4
"""Largest gap between bound and objective, as a share of the bound, at which the search stops."""
STEPS = 400
SMALLEST = 1e-3
"""Changes of a multiplier below this are left out of the steering."""
DIGITS = 4
"""Decimals of a multiplier, as people read and type them."""
ROOM = 0.002
"""Share of side, drift and total that is kept free, so that the rounded multipliers stay within them."""


@dataclass(frozen=True)
class Bounds:
    """What a steering found by search may do.

    Attributes:
        side: largest mean |shift| of a group that shall stay put, in standard deviations of the reward.
        drift: largest |mean shift| of such a group, in the same unit.
        total: largest sum of |m_i - 1|.
        low, high: range of each multiplier; 1 lies inside.
        candidates: features it may choose from.

    Raises:
        ConfigError: a bound that leaves nothing.
    """

    side: float = 0.1
    drift: float = 0.02
    total: float = 8.0
    low: float = -2.0
    high: float = 3.0
    candidates: int = 64

    def __post_init__(self) -> None:
        if not (self.side > 0 and self.drift > 0 and self.total > 0):
            raise ConfigError("The bounds side, drift and total of a search must be above 0.")
        if not (self.low <= 1 <= self.high and self.low < self.high):
            raise ConfigError(f"Multipliers from {self.low:g} to {self.high:g} leave out 1, which is no change.")
        if self.candidates < 1:
            raise ConfigError("A search needs at least one candidate feature.")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """A solution and its certificate, in standard deviations of the reward.

    Attributes:
        change: float64 [K], u = multiplier - 1 of each candidate; feasible.
        objective: mean shift of the target under it.
        bound: no feasible change does better than this.
        steps: linear programmes solved.
        cuts: cutting planes used.
    """

    change: np.ndarray
    objective: float
    bound: float
    steps: int
    cuts: int

    @property
    def gap(self) -> float:
        """Proven largest distance from the optimum, as a share of the bound; 0 where nothing can be gained."""
        return (self.bound - self.objective) / self.bound if self.bound > 0 else 0.0


def best_change(target: np.ndarray, still: Sequence[np.ndarray], bounds: Bounds) -> Found:
    """Solves the problem of the module's first lines.

    Args:
        target: float64 [n, K], contributions w_i z_i of the K candidates in the target's answers, in standard deviations
            of the reward.
        still: the same, float64 [n_g, K], for each group of answers that shall stay put; empty groups bound nothing.
        bounds: the limits.

    Raises:
        RunError: the solver failed (never seen: 0 is feasible and the box bounded).
    """
    limits, groups = bounds, [rows for rows in still if len(rows)]
    bounds = replace(
        limits, side=limits.side * (1 - ROOM), drift=limits.drift * (1 - ROOM), total=limits.total * (1 - ROOM)
    )
    aim = target.mean(axis=0) if len(target) else np.zeros(target.shape[1])
    k = len(aim)
    drifts = [rows.mean(axis=0) for rows in groups]
    signed = [sign * one for one in drifts for sign in (1.0, -1.0)]
    cuts: list[np.ndarray] = []
    best, objective, bound, steps = np.zeros(k), 0.0, np.inf, 0
    while steps < STEPS:
        steps += 1
        top, value = _programme(aim, signed, cuts, bounds)
        bound = min(bound, value)
        for point in (top, (top + best) / 2):  # half-way to the best point cuts deeper than the vertex alone
            for rows in groups:
                level, slope = _mean_absolute(rows, point)
                if level > bounds.side:
                    cuts.append(slope)
            inside = _shrunk(point, groups, bounds)
            if aim @ inside > objective:
                best, objective = inside, float(aim @ inside)
        if bound - objective <= TOLERANCE * max(bound, 1e-12):
            break
    kept = _rounded(best, aim, groups, limits, drifts)
    return Found(kept, float(aim @ kept), max(float(bound), 0.0) / (1 - ROOM), steps, len(cuts))


def _rounded(
    u: np.ndarray, aim: np.ndarray, groups: Sequence[np.ndarray], bounds: Bounds, drifts: Sequence[np.ndarray]
) -> np.ndarray:
    """u without its smallest changes and to DIGITS decimals, still within every bound; where that costs more than a
    hundredth of the objective (bounds finer than the digits), to more decimals, with the small changes, or u itself."""
    for start in (np.where(np.abs(u) >= SMALLEST, u, 0.0), u):
        for digits in range(DIGITS, DIGITS + 3):
            tried = _fitted(start, digits, groups, bounds, drifts)
            if tried is not None and aim @ tried >= 0.99 * (aim @ u):
                return tried
    return u


def _fitted(
    u: np.ndarray, digits: int, groups: Sequence[np.ndarray], bounds: Bounds, drifts: Sequence[np.ndarray]
) -> np.ndarray | None:
    """u to some decimals, pulled towards 0 as far as the bounds ask; None where the decimals are too few for that."""
    factor = 1.0
    for _ in range(4):
        tried = np.clip(np.round(factor * u, digits), bounds.low - 1, bounds.high - 1)
        used = [float(np.abs(rows @ tried).mean()) / bounds.side for rows in groups]
        used += [abs(float(mean @ tried)) / bounds.drift for mean in drifts]
        worst = max([*used, float(np.abs(tried).sum()) / bounds.total])
        if worst <= 1 + 1e-9:
            return np.asarray(tried)
        factor *= 0.9999 / worst
    return None


def _mean_absolute(rows: np.ndarray, u: np.ndarray) -> tuple[float, np.ndarray]:
    """f(u) = mean |c_a . u| and a subgradient of it at u."""
    shift = rows @ u
    return float(np.abs(shift).mean()), np.sign(shift) @ rows / len(rows)


def _shrunk(u: np.ndarray, groups: Sequence[np.ndarray], bounds: Bounds) -> np.ndarray:
    """u, pulled towards 0 until every mean |shift| is within its bound; what else holds of u holds of a smaller one too."""
    level = max((float(np.abs(rows @ u).mean()) for rows in groups), default=0.0)
    return np.asarray(u * (bounds.side / level)) if level > bounds.side else u


def _programme(
    aim: np.ndarray, signed: Sequence[np.ndarray], cuts: Sequence[np.ndarray], bounds: Bounds
) -> tuple[np.ndarray, float]:
    """Maximises aim . u over box, l1 ball, drift bounds and cuts, with u = p - q, p, q >= 0.

    Returns:
        the solution u, and an upper bound on the maximum by weak duality: for lambda >= 0,
        max <= b . lambda + sum_j max(0, (aim, -aim)_j - (A' lambda)_j) * upper_j.
    """
    k = len(aim)
    rows = [np.ones(2 * k), *(np.r_[row, -row] for row in (*signed, *cuts))]
    limits = [bounds.total, *[bounds.drift] * len(signed), *[bounds.side] * len(cuts)]
    a, b = np.array(rows), np.array(limits)
    upper = np.r_[np.full(k, bounds.high - 1), np.full(k, 1 - bounds.low)]
    gain = np.r_[aim, -aim]
    solved = linprog(-gain, A_ub=a, b_ub=b, bounds=np.stack([np.zeros(2 * k), upper], axis=1), method="highs")
    if solved.status != 0:
        raise RunError(
            f"The search for a steering failed in its linear programme ({solved.message}); change its bounds."
        )
    dual = np.maximum(-solved.ineqlin.marginals, 0.0)
    value = float(b @ dual + np.maximum(gain - a.T @ dual, 0.0) @ upper)
    return np.asarray(solved.x[:k] - solved.x[k:]), value
