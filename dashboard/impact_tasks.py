"""What the worker's process does for the Impact view: ranks pairs, refits heads, writes exports.

The functions run in that process (dashboard/worker.py) and are only named here by the server, which is why the engine is
imported inside them. A run's inputs, its rankings and its points are kept between calls, for all sessions.
"""

from __future__ import annotations

import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from core.errors import RunError
from core.store.sets import FeatureSet

if TYPE_CHECKING:
    from core.impact.inputs import ImpactInputs
    from core.impact.plans import Plan
    from core.impact.strategies import Ranking

T = TypeVar("T")

MOST_EXPORT = 64 << 20
"""Largest file sent to the browser, bytes; larger ones are written by the command line."""
FORMS = ("plan", "parquet", "jsonl")


@dataclass(frozen=True)
class RunAt:
    """A run as one of its databases has it."""

    folder: str
    database: str


@dataclass(frozen=True)
class PlanChoice:
    """How a plan is made; `feature_set` only for the strategy 'set'."""

    strategy: str
    direction: str
    action: str
    ratio: float
    seed: int
    feature_set: FeatureSet | None


@dataclass(frozen=True)
class Points:
    """Measured plans.

    Attributes:
        frame: columns of the table `impact`: the unchanged head and every plan, by domain.
        plans: id of each plan asked for, in order.
        seconds: what it took.
    """

    frame: pl.DataFrame
    plans: list[str]
    seconds: float


@dataclass(frozen=True)
class Ranked:
    """The order in which a strategy changes training pairs.

    Attributes:
        order: int64 [n], pair_index, first changed first.
        score: float64 [n_pairs], NaN where there is none.
        what: the score in words.
        n_train: training pairs, also those without a score.
    """

    order: np.ndarray
    score: np.ndarray
    what: str
    n_train: int


@dataclass(frozen=True)
class ExportedFile:
    """A file for the browser to save."""

    name: str
    data: bytes


def rank(run: RunAt, strategy: str, direction: str, seed: int, feature_set: FeatureSet | None) -> Ranked:
    """The whole ranking of one strategy.

    Raises:
        RewardscopeError: the set does not fit the run, or the run has no pairs to rank.
    """
    inputs = _inputs(run)
    with _threads(inputs):
        found = _ranking(run, strategy, direction, seed, feature_set)
    return Ranked(found.pair_index, found.score, found.what, int(inputs.train.sum()))


def measure(run: RunAt, choices: Sequence[PlanChoice]) -> Points:
    """Refits the head for every plan, those already measured taken from memory.

    Raises:
        RewardscopeError: a plan cannot be made.
    """
    from core.impact.preview import preview

    begin = time.perf_counter()
    inputs = _inputs(run)
    with _threads(inputs):
        plans = [_plan(run, choice) for choice in choices]
        fresh = {plan.id: plan for plan in plans if (run, plan.id) not in _measured}
        if fresh or (run, "none") not in _measured:
            for (name,), rows in preview(inputs, list(fresh.values())).group_by(["plan"], maintain_order=True):
                _keep(_measured, (run, str(name)), rows)
    frames = [_measured[run, name] for name in ("none", *dict.fromkeys(plan.id for plan in plans))]
    return Points(pl.concat(frames), [plan.id for plan in plans], time.perf_counter() - begin)


def export(run: RunAt, choice: PlanChoice, form: str) -> ExportedFile:
    """The plan, or the training pairs as it leaves them.

    Args:
        form: 'plan', 'parquet' or 'jsonl'.

    Raises:
        RewardscopeError: the plan cannot be made, or the file is too large for a browser.
    """
    from core.impact.edit import export_edited
    from core.impact.plans import plan_to_json

    plan = _plan(run, choice)
    stem = f"{plan.run}-{plan.direction}-{plan.action}-{plan.strategy}-{100 * plan.ratio:g}pct-{plan.id}"
    if form == "plan":
        return ExportedFile(f"plan-{stem}.json", plan_to_json(plan).encode())
    from core.store.reader import RunReader

    with tempfile.TemporaryDirectory(prefix="rewardscope-") as folder, RunReader.open(Path(run.folder)) as reader:
        written = export_edited(reader, plan, Path(folder) / f"{stem}.{form}", form)
        size = written.stat().st_size
        if size > MOST_EXPORT:
            raise RunError(
                f"The file has {size / 2**20:,.0f} MiB, too much for a browser; save the plan and run "
                f"`rewardscope impact {plan.run} --plan plan.json --export edited --format {form}`."
            )
        return ExportedFile(written.name, written.read_bytes())


def _plan(run: RunAt, choice: PlanChoice) -> Plan:
    from core.impact.plans import plan_from_ranking

    ranking = _ranking(run, choice.strategy, choice.direction, choice.seed, choice.feature_set)
    return plan_from_ranking(
        _inputs(run),
        ranking.pair_index,
        choice.strategy,
        choice.direction,
        choice.action,
        choice.ratio,
        choice.seed,
        choice.feature_set,
    )


def _ranking(run: RunAt, strategy: str, direction: str, seed: int, feature_set: FeatureSet | None) -> Ranking:
    from core.impact.strategies import rank_pairs

    chosen = feature_set if strategy == "set" else None
    members = None if chosen is None else (chosen.name, chosen.version, chosen.plus, chosen.minus)
    key = (run, strategy, direction, seed, members)
    if key not in _rankings:
        found = rank_pairs(_inputs(run), strategy, feature_set=chosen, direction=direction, seed=seed)
        _keep(_rankings, key, found, most=64)
    return _rankings[key]


@lru_cache(maxsize=2)
def _inputs(run: RunAt) -> ImpactInputs:
    from core.impact.inputs import load_inputs
    from core.store.reader import RunReader

    with RunReader.open(Path(run.folder)) as reader:
        return load_inputs(reader)


def _threads(inputs: ImpactInputs) -> Any:
    """Keeps the matrix library to one thread for sparse activations, whose work the engine shares out over the cores itself:
    threads of its own, which wait by spinning, made refits about four times slower on a busy machine of two cores."""
    sparse = not isinstance(inputs.features, np.ndarray)
    return threadpool_limits(1, user_api="blas") if sparse else nullcontext()


_measured: OrderedDict[tuple[RunAt, str], pl.DataFrame] = OrderedDict()
_rankings: OrderedDict[Any, Ranking] = OrderedDict()


def _keep(store: OrderedDict[Any, T], key: Any, value: T, most: int = 4096) -> None:
    """Keeps the newest `most`."""
    store[key] = value
    while len(store) > most:
        store.popitem(last=False)
