"""The arithmetic of a ranking under sliders: steered rewards, places, and the features that decide. Numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dashboard.scoring_process import ScoredText


@dataclass(frozen=True)
class Place:
    """Where an answer stands in the ranking.

    Attributes:
        index: which scored answer.
        before, after: its reward, unchanged and steered.
        was, rank: its place (1 = highest) by each; ties go to the answer given first.
    """

    index: int
    before: float
    after: float
    was: int
    rank: int


def steered_reward(answer: ScoredText, multipliers: Mapping[int, float]) -> float:
    """r + sum over changed features of (m_i - 1) w_i z_i."""
    return answer.reward + float(((steered_factors(answer.features, multipliers) - 1) * answer.contributions).sum())


def steered_factors(features: np.ndarray, multipliers: Mapping[int, float]) -> np.ndarray:
    """The multiplier of each of some features, 1 where there is none: float64 [n].

    Args:
        features: int [n], ascending.
    """
    factors = np.ones(len(features))
    for feature, multiplier in multipliers.items():
        at = int(np.searchsorted(features, feature))
        if at < len(features) and features[at] == feature:
            factors[at] = multiplier
    return factors


def ranking(answers: Sequence[ScoredText], multipliers: Mapping[int, float]) -> list[Place]:
    """The answers by steered reward, highest first."""
    before = [answer.reward for answer in answers]
    after = [steered_reward(answer, multipliers) for answer in answers]
    was = sorted(range(len(answers)), key=lambda i: (-before[i], i))
    now = sorted(range(len(answers)), key=lambda i: (-after[i], i))
    return [Place(i, before[i], after[i], was.index(i) + 1, rank) for rank, i in enumerate(now, start=1)]


@dataclass(frozen=True)
class Decider:
    """A feature that tells the two highest answers apart, or, where there is one answer, makes its reward.

    Attributes:
        first, second: what it adds now to the highest and to the next answer (second: 0 where there is none).
        swap: the multiplier at which these two would tie; None when no slider position (-2 to 3) does it.
    """

    feature: int
    first: float
    second: float
    swap: float | None


def deciders(
    answers: Sequence[ScoredText], places: Sequence[Place], multipliers: Mapping[int, float], most: int
) -> list[Decider]:
    """Features that are not on the sliders, by how far they part the two highest answers as they stand."""
    if not places:
        return []
    pair = [answers[place.index] for place in places[:2]]
    features = np.unique(np.concatenate([answer.features for answer in pair]))
    adds = np.zeros((2, len(features)))
    for side, answer in enumerate(pair):
        adds[side, np.searchsorted(features, answer.features)] = answer.contributions
    apart = adds[0] - adds[1]
    order = np.lexsort((features, -np.abs(apart)))
    lead = places[0].after - places[1].after if len(places) > 1 else float("nan")
    found = []
    for i in order[: most + len(multipliers)].tolist():
        if apart[i] == 0 or int(features[i]) in multipliers:
            continue
        swap = 1 - lead / float(apart[i])  # lead + (m - 1)(c_1 - c_2) = 0
        first, second = float(adds[0, i]), float(adds[1, i])
        found.append(Decider(int(features[i]), first, second, swap if -2 <= swap <= 3 else None))
    return found[:most]
