"""The button that asks the engine for a steering: a search in the worker's process, its answer on the sliders."""

from __future__ import annotations

import itertools
from functools import partial

import panel as pn

from core.errors import RewardscopeError
from core.store.reader import RunReader
from dashboard import steering, steering_tasks
from dashboard.delivery import Delivery
from dashboard.escape import shorten
from dashboard.impact_tasks import RunAt
from dashboard.parts.steering_sliders import SteeringSliders
from dashboard.state import AppState
from dashboard.steering_tasks import Suggestion
from dashboard.worker import Outcome, Worker

_names = itertools.count()


class Suggester:
    """Searches for the open target; what stood on the sliders is replaced only when something was found."""

    def __init__(self, state: AppState, reader: RunReader, sliders: SteeringSliders, work: Worker) -> None:
        self._state, self._reader, self._sliders, self._worker = state, reader, sliders, work
        self._run = RunAt(str(reader.folder.resolve()), reader.manifest.database)
        self._owner = f"steering-{next(_names)}"
        self._deliver = Delivery()
        sliders.offer_suggestions(self.ask)
        if pn.state.curdoc is not None:
            pn.state.on_session_destroyed(lambda _: work.drop(self._owner))

    def ask(self) -> None:
        """Starts a search."""
        target = steering.target_of(self._state, self._reader)
        self._sliders.panel.busy = True
        self._sliders.say(f"Searching the training pairs for a steering towards {shorten(target, 60)} …")
        self._worker.ask(self._owner, "suggest", steering_tasks.suggest, self._run, target, done=self._done)

    def _done(self, outcome: Outcome) -> None:
        """Called by the worker's thread."""
        self._deliver(partial(self._show, outcome))

    def _show(self, outcome: Outcome) -> None:
        self._sliders.panel.busy = False
        if outcome.problem:
            self._sliders.say(outcome.problem)
            return
        found: Suggestion = outcome.value
        if not found.multipliers:
            self._sliders.say(
                f"No steering towards {shorten(found.target, 60)} stays within the bounds; nothing was changed."
            )
            return
        try:
            self._sliders.put(found.multipliers)
        except RewardscopeError as error:
            self._sliders.say(str(error))
            return
        self._sliders.say(suggestion_text(found))


def suggestion_text(found: Suggestion) -> str:
    """What was found and how far to believe it."""
    n = len(found.multipliers)
    return (
        f"Suggested for {shorten(found.target, 60)}: {n} feature{'s' if n != 1 else ''}, searched on training pairs among the "
        f"{found.candidates} of highest |s|, so that the rest moves by at most {found.side:g} standard deviations there. What it "
        "does on held-out pairs stands on the right."
    )
