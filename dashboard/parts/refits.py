"""One session's questions to the worker: which ranking, which point, which curve. Knows no widget.

What is asked for follows the plan the reviewer has chosen; answers for anything older are kept as points and otherwise
ignored. `on_change` is called in the session's own thread.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl

from core.errors import RunError
from core.store.reader import RunReader
from core.store.sets import FeatureSet
from dashboard import impact_tasks as tasks
from dashboard.impact_tasks import PlanChoice, Points, Ranked, RunAt
from dashboard.parts.impact_points import KnownPoints, PointKey, Row, key_of, ratios_of, set_key, wanted
from dashboard.worker import Outcome, Worker

log = logging.getLogger("rewardscope.dashboard")

PATIENCE = 0.4
"""Seconds that one part of a curve should take: longer, and a point asked for meanwhile would wait."""
MOST_AT_ONCE = 24

_names = itertools.count()


def pairs_changed(n_train: int, ratio: float) -> int:
    """How many training pairs a plan changes: floor(N ratio), as core.impact.plans has it."""
    return math.floor(n_train * ratio + 1e-9)


@dataclass(frozen=True)
class Chosen:
    """The plan the reviewer looks at; `feature_set` is None when the run has none to offer."""

    strategy: str
    direction: str
    action: str
    feature_set: FeatureSet | None

    @property
    def members(self) -> str:
        return set_key(self.feature_set)

    def key(self, ratio: float) -> PointKey:
        return key_of(self.strategy, self.direction, self.action, ratio, 0, self.members)

    def choice(self, key: PointKey) -> PlanChoice:
        chosen = self.feature_set if key.strategy == "set" else None
        return PlanChoice(key.strategy, key.direction, key.action, key.ratio, key.seed, chosen)


class Refits:
    """Points and rankings of one session.

    Attributes:
        points: every point known so far.
        ranking: of the chosen plan, None while it is computed or when it failed.
        problems: sentences by what failed: 'ranking', 'point', 'curve'.
        done, total: parts of the curve known, of those wanted.
        given_up: points that cannot be computed, with the reason.
        restarted: the worker had to be started again since the last choice.
    """

    def __init__(
        self,
        reader: RunReader,
        worker: Worker,
        deliver: Callable[[Callable[[], None]], None],
        on_change: Callable[[str], None],
    ) -> None:
        self.points = KnownPoints()
        self.ranking: Ranked | None = None
        self.problems: dict[str, str] = {}
        self.given_up: dict[PointKey, str] = {}
        self.done = self.total = 0
        self.restarted = False
        self._run = RunAt(str(reader.folder.resolve()), reader.manifest.database)
        self._config = reader.manifest.config
        self._worker, self._deliver, self._on_change = worker, deliver, on_change
        self._owner = f"impact-{next(_names)}"
        self._chosen: Chosen | None = None
        self._ratio = 0.0
        self._ranked: tuple[Any, ...] | None = None
        self._seconds = 0.2  # a plan, until one was measured
        self._compared: dict[tuple[str, str], Row] = {}
        self._fragile: set[PointKey] = set()  # failed together with others: asked for one by one
        self._seeds: list[int] = list(range(int(self._config.get("impact", {}).get("seeds", 5))))

    def add_stored(self, reader: RunReader, default: FeatureSet | None) -> None:
        """Takes what the build has measured; a run built before there was such a table has none."""
        try:
            table = reader.table("impact")
        except RunError:
            return
        self.points.add(table, set_key(default))
        seeds = table.filter(strategy="random")["seed"].unique().sort().to_list()
        self._seeds = seeds or self._seeds

    def choose(self, chosen: Chosen, ratio: float) -> None:
        """Turns to a plan: asks for its ranking and its point, then for what is missing of the curves."""
        new = chosen != self._chosen
        self._chosen, self._ratio = chosen, ratio
        if new:
            self.problems.clear()
            self.restarted = False
            self._ask_ranking()
        self._ask_point()
        if new:
            self._ask_curve()

    def retry(self) -> None:
        """Asks again for what failed."""
        failed = set(self.problems)
        self.problems.clear()
        self.given_up.clear()
        if "ranking" in failed:
            self._ranked = None
            self._ask_ranking()
        self._ask_point()
        self._ask_curve()

    @property
    def now(self) -> dict[str, Row] | None:
        """The chosen plan's rows by domain, None while they are not known."""
        return self.points.get(self._chosen.key(self._ratio)) if self._chosen else None

    @property
    def state(self) -> str:
        """Of the chosen point: 'done', 'computing' or 'failed'."""
        nothing = self._chosen is None or (self._chosen.strategy == "set" and self._chosen.feature_set is None)
        return "done" if self.now is not None else "failed" if "point" in self.problems or nothing else "computing"

    @property
    def progress(self) -> tuple[int, int] | None:
        """Points of the curve that are known and wanted, None when there is nothing left to wait for."""
        return (self.done, self.total) if self.done < self.total and "curve" not in self.problems else None

    @property
    def by_plan(self) -> dict[tuple[str, str], Row]:
        """Every known preview by (plan id, domain), those computed for a comparison too."""
        return self._compared | self.points.by_plan()

    def compare(self, plans: dict[str, PlanChoice]) -> None:
        """Computes the previews that retrained points are compared with.

        Args:
            plans: by id how each was made; a preview whose plan gets another id (other pairs, another set) does not count.
        """
        known = {plan for plan, _ in self.by_plan}
        missing = {plan: choice for plan, choice in plans.items() if plan not in known}
        if missing:
            answer = partial(self._got_compared, list(missing))
            self._ask("compare", tasks.measure, list(missing.values()), done=answer)

    def _got_compared(self, plans: list[str], outcome: Outcome) -> None:
        if outcome.problem:
            log.warning("previews of retrained plans are missing: %s", outcome.problem)
            return
        rows = outcome.value.frame.filter(pl.col("plan").is_in(plans))
        self._compared |= {(row["plan"], row["domain"]): row for row in rows.iter_rows(named=True)}
        self._on_change("compare")

    def export(self, form: str, done: Callable[[Outcome], None]) -> None:
        """Has the chosen plan, or the data it edits, written."""
        if self._chosen is not None:
            choice = self._chosen.choice(self._chosen.key(self._ratio))
            self._ask("export", tasks.export, choice, form, done=done, urgent=True)

    def close(self) -> None:
        """Forgets what has been asked for; for the end of the session."""
        self._worker.drop(self._owner)
        self._chosen = None

    # ------------------------------------------------------------------- asking

    def _ask_ranking(self) -> None:
        chosen = self._chosen
        assert chosen is not None
        wanted_now = (chosen.strategy, chosen.direction, chosen.feature_set if chosen.strategy == "set" else None)
        if wanted_now == self._ranked and self.ranking is not None:
            return
        self._ranked, self.ranking = wanted_now, None
        if chosen.strategy == "set" and chosen.feature_set is None:
            return
        answer = partial(self._got_ranking, wanted_now)
        self._ask("ranking", tasks.rank, chosen.strategy, chosen.direction, 0, wanted_now[2], done=answer, urgent=True)

    def _got_ranking(self, asked: tuple[Any, ...], outcome: Outcome) -> None:
        if asked != self._ranked:
            return
        self._note("ranking", outcome)
        if not outcome.problem:
            self.ranking = outcome.value
        self._on_change("ranking")

    def _ask_point(self) -> None:
        chosen = self._chosen
        assert chosen is not None
        key = chosen.key(self._ratio)
        self.problems.pop("point", None)
        if self.points.get(key) is not None or (key.strategy == "set" and not key.set_key):
            self._worker.drop(self._owner, "point")
            return
        answer = partial(self._got_points, "point", chosen, [key])
        self._ask("point", tasks.measure, [chosen.choice(key)], done=answer, urgent=True)

    def _ask_curve(self) -> None:
        """Asks for the next part of what is missing; each answer asks for the one after it."""
        chosen = self._chosen
        if chosen is None:
            return
        ratios = ratios_of(self._config, chosen.direction)
        keys = wanted(chosen.strategy, chosen.direction, chosen.action, ratios, self._seeds, chosen.members)
        missing = [key for key in self.points.missing(keys) if key not in self.given_up]
        self.done, self.total = len(keys) - len(missing), len(keys)
        if not missing:
            self._worker.drop(self._owner, "curve")
            return
        most = 1 if missing[0] in self._fragile else max(1, min(MOST_AT_ONCE, int(PATIENCE / self._seconds)))
        part = [key for key in missing[:most] if key.strategy == missing[0].strategy]
        answer = partial(self._got_points, "curve", chosen, part)
        self._ask("curve", tasks.measure, [chosen.choice(key) for key in part], done=answer)

    def _got_points(self, slot: str, chosen: Chosen, keys: list[PointKey], outcome: Outcome) -> None:
        current = chosen == self._chosen
        if outcome.problem:
            everything = outcome.crashed or outcome.problem in self.problems.values()
            if slot == "curve" and not everything:  # one point must not cost the others
                self._fragile.update(keys)
                if len(keys) == 1:
                    self.given_up[keys[0]] = outcome.problem
                if current:
                    self._ask_curve()
            elif current:
                self._note(slot, outcome)
            if current:
                self._on_change(slot)
            return
        found: Points = outcome.value
        self.points.add(found.frame, chosen.members)
        self._seconds = max(found.seconds / len(keys), 1e-3)
        if not current:
            return
        self._note(slot, outcome)
        if slot == "curve":
            self._ask_curve()
        self._on_change(slot)

    def _ask(self, slot: str, task: Any, *args: Any, done: Callable[[Outcome], None], urgent: bool = False) -> None:
        def answered(outcome: Outcome) -> None:  # in another thread
            self._deliver(partial(done, outcome))

        self._worker.ask(self._owner, slot, task, self._run, *args, done=answered, urgent=urgent)

    def _note(self, slot: str, outcome: Outcome) -> None:
        self.restarted = self.restarted or outcome.restarted
        if outcome.problem:
            self.problems[slot] = outcome.problem
        else:
            self.problems.pop(slot, None)


def stored_points(frame: pl.DataFrame, one: FeatureSet | None) -> pl.DataFrame:
    """Previews of the review store that belong to a set: the baselines' and those made with this version of it."""
    if frame.is_empty():
        return frame
    mine = pl.lit(False)
    if one is not None:
        mine = (pl.col("set_name") == one.name) & (pl.col("set_version").fill_null(0) == one.version)
    return frame.filter(pl.col("kind") == "preview", (pl.col("strategy") != "set") | mine)
