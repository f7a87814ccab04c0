"""What the worker's process does for the Steering view: it searches for a steering. Only named here by the server."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dashboard.impact_tasks import RunAt

if TYPE_CHECKING:
    from core.evaluate.steering_data import SteeringData


@dataclass(frozen=True)
class Suggestion:
    """A steering found by search.

    Attributes:
        target: the slice it was searched for.
        multipliers: by feature, those that change most first.
        side: largest mean |shift| the search allowed the rest, in standard deviations of the reward.
        candidates: features it chose from, at most.
    """

    target: str
    multipliers: dict[int, float]
    side: float
    candidates: int


def suggest(run: RunAt, target: str) -> Suggestion:
    """The steering that raises the target's chosen answers most at bounded side effects, found on training pairs.

    Raises:
        DataError: no such slice, or none of its features can be steered by.
    """
    from core.evaluate.steering_comparison import search_steering
    from core.rewards.steering_search import Bounds

    data = _data(run)
    bounds = Bounds()
    found, _ = search_steering(data, target, bounds)
    multipliers = found.multipliers(data.steered.weights)
    ordered = sorted(multipliers, key=lambda feature: -abs(multipliers[feature] - 1))
    return Suggestion(target, {one: multipliers[one] for one in ordered}, bounds.side, bounds.candidates)


@lru_cache(maxsize=1)
def _data(run: RunAt) -> SteeringData:
    from core.evaluate.steering_data import SteeringData
    from core.store.reader import RunReader

    with RunReader.open(Path(run.folder)) as reader:
        return SteeringData.of(reader)
