"""The exact refit of the head on edited pairs: many plans at once, by Newton steps with conjugate gradients.

For plan p the objective is that of core.rewards.head on the edited comparisons, with the penalty and its scale unchanged:

    sum_i v_ip log(1 + exp(-sign_ip d_i.u)) / sum_i v_ip  +  l2/2 |u|^2,      v_ip = weight_i |sign_ip|

sign is 1 for a comparison as it was, -1 for one of a flipped pair (all its answers change sides) and 0 for one of a dropped
pair. Directions come from float32 products; the gradient that decides when to stop is computed in float64, so what is
returned is exact to the stated tolerance whatever the directions were.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from core.errors import RunError
from core.impact.differences import Differences
from core.impact.preconditioner import Preconditioner

NEWTON_STEPS = 60
CONJUGATE_STEPS = 400
ETA = 0.3
"""How exactly a Newton step is solved: to this share of the gradient, more exactly near the minimum."""
BLOCK_VALUES = 40_000_000
"""Largest number of float64 values in one block of plans (rows of D times plans)."""


@dataclass(frozen=True)
class Refit:
    """Heads refitted side by side, in the coordinates of D.

    Attributes:
        u: float64 [m, plans].
        loss: float64 [plans], mean Bradley-Terry loss on the edited comparisons.
        gradient_norm: float64 [plans], Euclidean norm of the objective's gradient.
        newton: int64 [plans], Newton steps; products: Hessian products of whole blocks.
    """

    u: np.ndarray
    loss: np.ndarray
    gradient_norm: np.ndarray
    newton: np.ndarray
    products: int


def refit(
    differences: Differences,
    weight: np.ndarray,
    signs: np.ndarray,
    *,
    l2: float,
    start: np.ndarray,
    tolerance: float,
    precondition: Preconditioner,
) -> Refit:
    """Minimises every plan's objective to a gradient norm of at most `tolerance`.

    Args:
        weight: float64 [n], of the comparisons (Comparisons.weight).
        signs: int8 [n, plans], 1, -1 or 0.
        start: float64 [m] or [m, plans], where to begin: the head before the change.
        precondition: of the same D and l2, from any curvature near that of the solutions.

    Raises:
        RunError: a plan leaves nothing to fit on, or the optimum was not reached.
    """
    plans = signs.shape[1]
    begin = np.repeat(start[:, None], plans, axis=1) if start.ndim == 1 else start
    width = max(1, min(plans, BLOCK_VALUES // max(1, max(differences.shape))))
    parts = [
        _Block(
            differences, weight, signs[:, at : at + width], l2, begin[:, at : at + width], tolerance, precondition
        ).solve()
        for at in range(0, plans, width)
    ]
    return Refit(
        np.concatenate([part.u for part in parts], axis=1),
        np.concatenate([part.loss for part in parts]),
        np.concatenate([part.gradient_norm for part in parts]),
        np.concatenate([part.newton for part in parts]),
        sum(part.products for part in parts),
    )


class _Block:
    """One block of plans on its way to the minimum."""

    def __init__(
        self,
        differences: Differences,
        weight: np.ndarray,
        signs: np.ndarray,
        l2: float,
        start: np.ndarray,
        tolerance: float,
        precondition: Preconditioner,
    ) -> None:
        self.differences, self.l2, self.tolerance, self.precondition = differences, l2, tolerance, precondition
        self.signs = signs.astype(np.float64)
        kept = weight[:, None] * np.abs(self.signs)
        total = kept.sum(axis=0)
        if not (total > 0).all():
            raise RunError("A plan drops every training pair; lower its ratio.")
        self.share = kept / total
        self.u = np.array(start, np.float64)
        self.margins = differences.margins(self.u)
        self.products = 0

    def solve(self) -> Refit:
        plans = self.u.shape[1]
        newton = np.zeros(plans, np.int64)
        gradient = self._gradient(np.arange(plans))
        norm = np.linalg.norm(gradient, axis=0)
        for _ in range(NEWTON_STEPS):
            active = np.flatnonzero(norm > self.tolerance)
            if not len(active):
                break
            step = self._direction(active, gradient[:, active], norm[active])
            moved = self._advance(active, step, gradient[:, active])
            newton[active] += 1
            if not moved.any():
                break
            gradient[:, active] = self._gradient(active)
            norm[active] = np.linalg.norm(gradient[:, active], axis=0)
        if not (norm <= self.tolerance).all():
            raise RunError(
                f"The head did not converge on the edited pairs: gradient norm {norm.max():.1e} > {self.tolerance:.0e}; "
                "raise head.l2."
            )
        return Refit(self.u, self._loss(np.arange(plans), self.margins), norm, newton, self.products)

    def _gradient(self, plans: np.ndarray) -> np.ndarray:
        signs = self.signs[:, plans]
        pull = -self.share[:, plans] * signs * expit(-signs * self.margins[:, plans])
        return self.differences.transposed(pull) + self.l2 * self.u[:, plans]

    def _loss(self, plans: np.ndarray, margins: np.ndarray) -> np.ndarray:
        return np.einsum("ij,ij->j", self.share[:, plans], np.logaddexp(0.0, -self.signs[:, plans] * margins))

    def _objective(self, plans: np.ndarray, margins: np.ndarray, u: np.ndarray) -> np.ndarray:
        return self._loss(plans, margins) + 0.5 * self.l2 * np.einsum("ij,ij->j", u, u)

    def _direction(self, plans: np.ndarray, gradient: np.ndarray, norm: np.ndarray) -> np.ndarray:
        """Solves H x = -gradient for each plan by conjugate gradients in lockstep, as exactly as the step deserves."""
        probability = expit(self.margins[:, plans])  # the curvature does not depend on the sign
        curvature = (self.share[:, plans] * probability * (1.0 - probability)).astype(np.float32)
        l2 = np.float32(self.l2)
        x = np.zeros(gradient.shape, np.float32)
        residual = (-gradient).astype(np.float32)
        scaled = self.precondition(residual)
        direction = scaled.copy()
        descent = np.einsum("ij,ij->j", residual, scaled)
        target = np.maximum(norm * np.minimum(ETA, norm**0.5), 0.3 * self.tolerance)
        going = np.arange(len(plans))
        for _ in range(CONJUGATE_STEPS):
            product = self.differences.hessian(curvature[:, going], direction) + l2 * direction
            self.products += 1
            alpha = descent / np.maximum(np.einsum("ij,ij->j", direction, product), np.finfo(np.float32).tiny)
            x[:, going] += alpha * direction
            residual -= alpha * product
            size = np.linalg.norm(residual, axis=0)
            on = size > target[going]
            if not on.any():
                break
            scaled = self.precondition(residual)
            after = np.einsum("ij,ij->j", residual, scaled)
            direction = scaled + (after / descent) * direction
            descent = after
            if not on.all():  # a plan that is done leaves the block
                going, direction, residual, descent = going[on], direction[:, on], residual[:, on], descent[on]
        return x.astype(np.float64)

    def _advance(self, plans: np.ndarray, step: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Takes each plan's step, halved until its objective falls; says which plans moved."""
        change = self.differences.margins(step)
        slope = np.einsum("ij,ij->j", gradient, step)
        before = self._objective(plans, self.margins[:, plans], self.u[:, plans])
        length = np.ones(len(plans))
        # Near the minimum the objective no longer resolves the step; then the whole step is right.
        noise = 1e-12 * np.maximum(np.abs(before), 1e-3)
        for _ in range(30):
            after = self._objective(plans, self.margins[:, plans] + length * change, self.u[:, plans] + length * step)
            short = after > before + 1e-4 * length * slope + noise
            if not short.any():
                break
            length[short] /= 2.0
        length[short] = 0.0
        self.u[:, plans] += length * step
        self.margins[:, plans] += length * change
        return length > 0
