"""Balanced accuracy with its interval: the measure of every label's held-out scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Z_95 = 1.959964


@dataclass(frozen=True)
class Score:
    """How well a label does on one kind of question.

    Attributes:
        value, low, high: balanced accuracy and its 95 % interval; None = not tested.
        n: contexts behind it; None = not asked.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    def columns(self, kind: str) -> dict[str, float | int | None]:
        """The columns of the tables `label`: {kind}_score, {kind}_low, {kind}_high, {kind}_n."""
        return {f"{kind}_score": self.value, f"{kind}_low": self.low, f"{kind}_high": self.high, f"{kind}_n": self.n}


def score_of(truth: np.ndarray, said: np.ndarray, least: int) -> Score:
    """The score of one label.

    Args:
        truth: bool [n], what is so.
        said: bool [n], what was predicted.
        least: with fewer contexts of either kind there is no value, only the n.
    """
    hits, n_active, false_alarms, n_inactive = (
        np.sum(truth & said),
        np.sum(truth),
        np.sum(~truth & said),
        np.sum(~truth),
    )
    if min(n_active, n_inactive) < least:
        return Score(n=len(truth))
    value, low, high = balanced_accuracy(hits, n_active, false_alarms, n_inactive)
    return Score(float(value), float(low), float(high), len(truth))


def balanced_accuracy(
    hits: np.ndarray, n_active: np.ndarray, false_alarms: np.ndarray, n_inactive: np.ndarray, z: float = Z_95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hits / n_active + 1 - false_alarms / n_inactive) / 2 with its interval; NaN where a count is zero.

    Half of one plus the difference of two independent proportions, whose interval is Newcombe's hybrid score interval
    (Statistics in Medicine 17, 1998, p. 873, method 10): Wilson's intervals of the two, joined by square-and-add.
    """
    p, p_low, p_high = wilson(hits, n_active, z)
    q, q_low, q_high = wilson(false_alarms, n_inactive, z)
    accuracy = (p + 1 - q) / 2
    below, above = np.hypot(p - p_low, q_high - q) / 2, np.hypot(p_high - p, q - q_low) / 2
    return accuracy, accuracy - below, accuracy + above


def wilson(count: np.ndarray, n: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A proportion with its score interval (Wilson, JASA 22, 1927, p. 209); NaN where n is zero."""
    total = np.where(n > 0, n, np.nan)
    p = count / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    reach = z / (1 + z**2 / total) * np.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return p, np.clip(centre - reach, 0, p), np.clip(centre + reach, p, 1)
