"""The Bradley-Terry head on frozen features: an exact convex fit.

Minimises over w:  mean_p log(1 + exp(-w . (z_chosen - z_rejected)))  +  l2/2 * sum_i (s_i w_i)^2

For SAE features every s_i is the same, the median standard deviation of the live features: activations share one scale, and
a penalty per feature would let features seen in two or three answers take the largest weights (measured: worse
validation loss as well, docs/measurements.md). For raw states, whose axes differ by orders of magnitude, s_i is the
axis's own standard deviation (`standardise`). With l2 > 0 the minimum is unique; the gradient's norm at the solution is
reported, never assumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.optimize
import scipy.sparse as sp
import scipy.sparse.linalg as sparse_linalg
from scipy.special import expit

from core.config import Pooling
from core.errors import DataError, RunError
from core.models.head_file import Head

L2_GRID = tuple(10.0**power for power in np.arange(-4.0, 2.51, 0.5))


@dataclass(frozen=True)
class Comparisons:
    """Chosen-rejected comparisons as rows of feature differences.

    Attributes:
        chosen, rejected: int64 [n], response ids.
        pair: int64 [n], index of the pair each comparison comes from.
        weight: float64 [n], 1 / comparisons of its pair: every pair counts once however many answers it has.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    pair: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.pair)

    def of(self, keep: np.ndarray) -> Comparisons:
        """Only the comparisons of the pairs marked True in `keep` (bool [n_pairs])."""
        rows = keep[self.pair]
        return Comparisons(self.chosen[rows], self.rejected[rows], self.pair[rows], self.weight[rows])


@dataclass(frozen=True)
class HeadFit:
    """A fitted head.

    Attributes:
        weights: float64 [M], reward per unit of pooled activation; 0 for features never active in training.
        l2: the penalty used.
        loss: mean Bradley-Terry loss on the comparisons it was fitted on.
        gradient_norm: Euclidean norm of the objective's gradient in the coordinates s_i w_i.
        iterations: Newton steps taken.
        validation: (l2, validation loss, validation accuracy) tried when l2 was chosen, else empty.
    """

    weights: np.ndarray
    l2: float
    loss: float
    gradient_norm: float
    iterations: int
    validation: tuple[tuple[float, float, float], ...] = ()


def all_comparisons(pair_index: np.ndarray, chosen: np.ndarray) -> Comparisons:
    """Every chosen answer against every rejected answer of its pair.

    Args:
        pair_index: int [n_responses], non-decreasing.
        chosen: bool [n_responses].
    """
    starts = np.flatnonzero(np.r_[True, pair_index[1:] != pair_index[:-1], True])
    first, second, pairs, weights = [], [], [], []
    for start, stop in itertools.pairwise(starts):
        answers = np.arange(start, stop)
        good, bad = answers[chosen[start:stop]], answers[~chosen[start:stop]]
        n = len(good) * len(bad)
        first.append(np.repeat(good, len(bad)))
        second.append(np.tile(bad, len(good)))
        pairs.append(np.full(n, pair_index[start]))
        weights.append(np.full(n, 1.0 / max(n, 1)))
    return Comparisons(
        np.concatenate(first).astype(np.int64),
        np.concatenate(second).astype(np.int64),
        np.concatenate(pairs).astype(np.int64),
        np.concatenate(weights),
    )


def fit_head(
    features: sp.csr_matrix | np.ndarray,
    comparisons: Comparisons,
    *,
    l2: float,
    standardise: bool = False,
    tolerance: float = 1e-6,
    start: np.ndarray | None = None,
) -> HeadFit:
    """Fits the head exactly by truncated Newton (trust region, conjugate gradients) in float64.

    Args:
        features: [n_responses, M] pooled activations, sparse or dense.
        comparisons: what to fit on.
        l2: ridge strength, > 0.
        standardise: penalise each weight in units of its own feature's spread.
        tolerance: largest gradient norm accepted.
        start: weights to start from (a previous fit on nearly the same data).

    Raises:
        DataError: there is nothing to compare.
        RunError: the optimum was not reached within tolerance.
    """
    if len(comparisons) == 0:
        raise DataError("There are no chosen-rejected comparisons to fit a head on; check the split of the pairs.")
    used = np.unique(np.concatenate([comparisons.chosen, comparisons.rejected]))
    scale = _standard_deviation(features[used])
    live = np.flatnonzero(scale > 1e-12)
    if not standardise and len(live):
        scale = np.full_like(scale, np.median(scale[live]))
    # What is optimised and penalised is w_i s_i.
    to_unit = sp.diags_array(1.0 / scale[live])
    differences = _differences(features[:, live], comparisons) @ to_unit
    weight = comparisons.weight / comparisons.weight.sum()

    def value_and_gradient(u: np.ndarray) -> tuple[float, np.ndarray]:
        margin = differences @ u
        loss = weight @ np.logaddexp(0.0, -margin) + 0.5 * l2 * u @ u
        return float(loss), differences.T @ (-weight * expit(-margin)) + l2 * u

    def hessian_times(u: np.ndarray, direction: np.ndarray) -> np.ndarray:
        margin = differences @ u
        curvature = weight * expit(margin) * expit(-margin)
        return differences.T @ (curvature * (differences @ direction)) + l2 * direction

    begin = np.zeros(len(live)) if start is None else start[live] * scale[live]
    # Aim below the tolerance: scipy stops at the first iterate under its own threshold.
    found = scipy.optimize.minimize(
        value_and_gradient, begin, jac=True, hessp=hessian_times, method="trust-ncg", options={"gtol": tolerance / 2}
    )
    solution, gradient = _polished(found.x, lambda u: value_and_gradient(u)[1], hessian_times, tolerance / 2)
    gradient_norm = float(np.linalg.norm(gradient))
    if not gradient_norm <= tolerance:
        raise RunError(
            f"The head did not converge: gradient norm {gradient_norm:.1e} > {tolerance:.0e}; raise head.l2."
        )
    weights = np.zeros(features.shape[1])
    weights[live] = solution / scale[live]
    loss = float(weight @ np.logaddexp(0.0, -(differences @ solution)))
    return HeadFit(weights, l2, loss, gradient_norm, int(found.nit))


def choose_l2(
    features: sp.csr_matrix | np.ndarray,
    comparisons: Comparisons,
    prompt: np.ndarray,
    *,
    validation_fraction: float,
    seed: int,
    standardise: bool = False,
    grid: Sequence[float] = L2_GRID,
    tolerance: float = 1e-6,
) -> HeadFit:
    """Chooses the ridge strength by log-loss on held-back prompts of the training split, then refits on all of it.

    Args:
        prompt: int [n_pairs], the prompt of each pair: train and validation share none.
        grid: penalties tried, from strong to weak with warm starts.

    Raises:
        DataError: too few prompts to hold any back.
    """
    prompts = np.unique(prompt[comparisons.pair])
    held = np.random.default_rng(seed).permutation(prompts)[: round(len(prompts) * validation_fraction)]
    if len(held) == 0 or len(held) == len(prompts):
        raise DataError(
            f"{len(prompts)} training prompts are too few to choose head.l2 on; set head.l2 in the configuration."
        )
    held_pairs = np.isin(prompt, held)
    fit_on, check_on = comparisons.of(~held_pairs), comparisons.of(held_pairs)
    checked = _differences(features, check_on)
    weight = check_on.weight / check_on.weight.sum()
    tried: list[tuple[float, float, float]] = []
    weights: np.ndarray | None = None
    for l2 in sorted(grid, reverse=True):
        weights = fit_head(
            features, fit_on, l2=l2, standardise=standardise, tolerance=max(tolerance, 1e-5), start=weights
        ).weights
        margin = checked @ weights
        tried.append((l2, float(weight @ np.logaddexp(0.0, -margin)), float(weight @ (margin > 0))))
    best = min(tried, key=lambda entry: entry[1])[0]
    final = fit_head(features, comparisons, l2=best, standardise=standardise, tolerance=tolerance)
    return HeadFit(final.weights, best, final.loss, final.gradient_norm, final.iterations, tuple(tried))


def _polished(
    u: np.ndarray,
    gradient_at: Callable[[np.ndarray], np.ndarray],
    hessian_times: Callable[[np.ndarray, np.ndarray], np.ndarray],
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Newton steps judged by the gradient alone: near the optimum the loss no longer changes in float64.

    Returns:
        The best point and its gradient.
    """
    gradient = gradient_at(u)
    for _ in range(20):
        if np.linalg.norm(gradient) <= tolerance:
            break
        hessian = sparse_linalg.LinearOperator((len(u), len(u)), matvec=partial(hessian_times, u), dtype=np.float64)
        step, _ = sparse_linalg.cg(hessian, -gradient, rtol=1e-6)
        after = gradient_at(u + step)
        if not np.linalg.norm(after) < np.linalg.norm(gradient):
            break
        u, gradient = u + step, after
    return u, gradient


def _differences(features: sp.csr_matrix | np.ndarray, comparisons: Comparisons) -> sp.csr_matrix | np.ndarray:
    difference = features[comparisons.chosen] - features[comparisons.rejected]
    return difference.astype(np.float64)


def _standard_deviation(features: sp.csr_matrix | np.ndarray) -> np.ndarray:
    """Population standard deviation of each column, float64 [M]."""
    if isinstance(features, np.ndarray):
        return np.std(features, axis=0, dtype=np.float64)
    exact = features.astype(np.float64)
    mean = np.asarray(exact.mean(axis=0)).reshape(-1)
    mean_square = np.asarray(exact.multiply(exact).mean(axis=0)).reshape(-1)
    return np.sqrt(np.maximum(mean_square - mean**2, 0.0))


def head_of(fit: HeadFit, pooling: Pooling) -> Head:
    """A fitted head as it is stored: its weights in float32, with the facts of the fit."""
    facts = {
        "pooling": pooling,
        "l2": fit.l2,
        "loss": fit.loss,
        "gradient_norm": fit.gradient_norm,
        "iterations": fit.iterations,
        "validation": [list(entry) for entry in fit.validation],
    }
    return Head(fit.weights.astype(np.float32).astype(np.float64), pooling, facts)
