"""Steering: other weights for a few features of a reward head, and what they do to every reward.

The head is linear in the pooled features, r = sum_i w_i z_i (SARM, equation 3), so changing the weights of a few features
changes the reward of an answer by

    r' = r + sum_i d_i z_i,   d_i = (m_i - 1) w_i  for "scale" by m_i,   d_i = v - w_i  for "set" to v,

which reads only the columns of the changed features. Multiplying the activation z_i by m, as SARM's steering does
(its RQ2), is the same as multiplying w_i by m.

SARM's files also know an additive change ["+", v], z_i <- z_i + v. It adds v to the activation that the head reads, of every
answer, active or not: r' = r + w_i v, and the mean over tokens of (z_i + v) is the mean plus v as well, so this holds for
both poolings of a head (last, mean). The same number is added to every reward: no margin, no ranking and no
accuracy can change. Such changes are kept as an offset and said in `Steering.note`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp

from core.rewards.feature_columns import FeatureColumns
from core.store.reader import RunReader
from core.store.steerings import Change, Steering, read_steering, steering_to_json

__all__ = ["Change", "SteeredRewards", "Steering", "head_weights", "read_steering", "steering_note", "steering_to_json"]

CLASSIFIER_NOTE = (
    "This run's reward model is an ordinary one that does not read the features: steering changes the rewards of the head on "
    "features beside it, not the model's own."
)


class SteeredRewards:
    """Rewards under changed weights, fast enough to follow a slider.

    While one slider is dragged, the rewards with all other changes stand ready and one column is added to them. Every
    result is therefore the stored reward plus one rounded term a changed feature: there is nothing that could drift,
    however many moves were made before.

    Attributes:
        weights: float64 [M], the unchanged head.
        base: float64 [n_responses], the unchanged rewards.
        columns: the activations; hand it to another SteeredRewards (one a session) to share what was read.
    """

    def __init__(
        self, pooled: sp.csr_matrix | sp.csc_matrix | FeatureColumns, weights: np.ndarray, rewards: np.ndarray
    ) -> None:
        self.columns = pooled if isinstance(pooled, FeatureColumns) else FeatureColumns.of_matrix(pooled)
        self.weights = np.asarray(weights, np.float64)
        self.base = np.array(rewards, np.float64)
        if (self.columns.n, self.columns.latents) != (len(self.base), len(self.weights)):
            raise ValueError(f"{self.columns.n} x {self.columns.latents} activations do not fit rewards and weights")
        self._last: dict[int, float] = {}
        self._still: dict[int, float] = {}
        self._still_rewards = self.base
        self._result = self.base

    @classmethod
    def of(cls, reader: RunReader) -> SteeredRewards:
        """Of a finished run: its stored rewards, the head's weights and the activations as its head pools them.

        The stored rewards are the base, so that nothing moves while nothing is steered; what they differ from the sum of
        stored contributions (the run's sum check, below 1e-4 of their scale) is the same before and after.

        Raises:
            RunError: the run's arrays are missing or damaged.
        """
        columns = FeatureColumns.of_arrays(reader.arrays, reader.manifest.head["pooling"])
        return cls(columns, head_weights(reader), reader.rewards())

    def another(self) -> SteeredRewards:
        """The same for another session: shares what was read, remembers its own moves."""
        return SteeredRewards(self.columns, self.weights, self.base)

    def rewards(self, multipliers: Mapping[int, float]) -> np.ndarray:
        """r' = r + sum_i (m_i - 1) w_i z_i.

        Returns:
            float64 [n_responses], a new array.
        """
        return self.moved({one: (by - 1.0) * float(self.weights[one]) for one, by in multipliers.items()})

    def steered(self, steering: Steering) -> np.ndarray:
        """The rewards under a steering, its additive offset included: float64 [n_responses], a new array.

        Raises:
            DataError: it changes a feature the head does not have.
        """
        rewards = self.moved(steering.deltas(self.weights))
        offset = steering.offset(self.weights)
        if offset:
            rewards += offset
        return rewards

    def moved(self, deltas: Mapping[int, float]) -> np.ndarray:
        """r + sum_i d_i z_i with d_i in weight units."""
        wanted = {int(feature): delta for feature, delta in deltas.items() if delta != 0}
        if wanted == self._last:
            return self._result.copy()
        self.columns.load(wanted)
        still = {feature: delta for feature, delta in wanted.items() if self._last.get(feature) == delta}
        if still != self._still:
            self._still_rewards = self._added(self.base, still)
            self._still = still
        self._last = wanted
        self._result = self._added(self._still_rewards, {one: by for one, by in wanted.items() if one not in still})
        return self._result.copy()

    def _added(self, rewards: np.ndarray, deltas: Mapping[int, float]) -> np.ndarray:
        total = rewards.copy()
        for feature, delta in deltas.items():
            self.columns[feature].add_to(total, delta)
        return total


def head_weights(reader: RunReader) -> np.ndarray:
    """The weights of a run's head by feature id, float64 [M]."""
    frame = reader.features.frame.select("feature_id", "weight")
    weights = np.zeros(reader.arrays.latents)
    weights[frame["feature_id"].to_numpy()] = frame["weight"].fill_null(0.0).to_numpy()
    return weights


def steering_note(reader: RunReader) -> str:
    """What must be said before this run is steered; '' where the head on features is the model."""
    kind = (reader.manifest.config.get("reward_model") or {}).get("kind", "head")
    return CLASSIFIER_NOTE if kind == "classifier" else ""
