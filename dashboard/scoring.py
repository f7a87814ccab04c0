"""The server's side of scoring typed text: one process that holds the model, whose state every session sees."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from core.data.schema import Message
from dashboard import scoring_process
from dashboard.scoring_process import Held
from dashboard.worker import Outcome, Worker

log = logging.getLogger("rewardscope.dashboard")

STEPS = ("starting", "finding the weights", "reading the model", "reading the SAE and the head")
"""What loading says on its way, in order (core.rewards.score.load_scorer says all but the first)."""


@dataclass(frozen=True)
class ModelState:
    """Where a run's model stands.

    Attributes:
        state: 'absent' (nobody asked yet, or another run's took its place), 'loading', 'ready' or 'failed'.
        step: while loading, what happens now; '' before it has begun.
        problem: why it failed, in words.
        crashed: the process stopped; asking again starts a new one.
        held: what is known of it once ready.
    """

    state: str = "absent"
    step: str = ""
    problem: str = ""
    crashed: bool = False
    held: Held | None = None

    @property
    def share(self) -> float:
        """How far loading has come, 0 to 1 by steps."""
        return (STEPS.index(self.step) + 1) / (len(STEPS) + 1) if self.step in STEPS else 0.0


class Scoring:
    """Loads models and scores text for all sessions. All methods may be called from any thread and return at once."""

    def __init__(self, worker: Worker | None = None) -> None:
        self._worker = worker or Worker()
        self._states: dict[str, ModelState] = {}
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self.restarts = 0
        """How often the process had stopped while idle, and a new one was started."""

    def state(self, run: str) -> ModelState:
        """Where the model of a run (its folder) stands."""
        with self._lock:
            return self._states.get(run, ModelState())

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls `listener` after every change, from another thread; returns what ends that."""
        with self._lock:
            self._listeners.append(listener)

        def stop() -> None:
            with self._lock, suppress(ValueError):
                self._listeners.remove(listener)

        return stop

    def load(self, run: str) -> None:
        """Reads a run's model in the background, unless it is held or being read."""
        if self.state(run).state in ("loading", "ready"):
            return
        self._set(run, ModelState("loading"))
        self._worker.ask(
            "",
            run,
            scoring_process.load,
            run,
            done=lambda outcome: self._answered(run, outcome),
            heard=lambda said: self._hear(run, said),
        )

    def score(
        self,
        owner: str,
        run: str,
        messages: Sequence[Message],
        answers: Sequence[str],
        *,
        begun: Callable[[], None],
        done: Callable[[Outcome], None],
    ) -> None:
        """Scores answers; a request of the same owner that has not begun is dropped, its callbacks never called.

        Args:
            owner: the session.
            begun: called once the answers are being scored (not while the model is still read).
            done: called with an Outcome whose value is a `Scored`. Both come from another thread.
        """

        def heard(said: str | Held) -> None:
            self._hear(run, said)
            if isinstance(said, Held):
                begun()

        def finished(outcome: Outcome) -> None:
            self._answered(run, outcome)
            done(outcome)

        task = scoring_process.score
        self._worker.ask(owner, "score", task, run, list(messages), list(answers), done=finished, heard=heard)
        self._changed()

    def ahead(self, owner: str) -> int | None:
        """How many jobs are done before this session's; None when it has none that waits."""
        return self._worker.ahead(owner, "score")

    def drop(self, owner: str) -> None:
        """Forgets a session's request if it has not begun."""
        self._worker.drop(owner)
        self._changed()

    @property
    def process_id(self) -> int | None:
        """The id of the process, None while there is none."""
        return self._worker.process_id

    def close(self) -> None:
        """Ends the process."""
        self._worker.close()

    # ------------------------------------------------------------ from the worker's thread

    def _hear(self, run: str, said: str | Held) -> None:
        """A step of loading, or the model once it is held."""
        if not isinstance(said, Held):
            if said in STEPS:
                self._set(run, ModelState("loading", said))
            return
        with self._lock:
            known = self._states.get(run, ModelState()).held
            seconds = said.seconds or (known.seconds if known else 0.0)  # of the reading, also when it is held by now
            gone = [one for one, state in self._states.items() if state.state == "ready" and one not in said.runs]
            for one in gone:
                del self._states[one]
            self._states[run] = ModelState("ready", held=replace(said, seconds=seconds))
        self._changed()

    def _answered(self, run: str, outcome: Outcome) -> None:
        """Brings what is known of the models up to date after a job."""
        with self._lock:
            if outcome.crashed:
                self._states.clear()
            self.restarts += outcome.restarted
            # A text that is refused says nothing about the model, which is ready by then.
            if outcome.problem and self._states.get(run, ModelState()).state != "ready":
                self._states[run] = ModelState("failed", problem=outcome.problem, crashed=outcome.crashed)
        self._changed()

    def _set(self, run: str, state: ModelState) -> None:
        with self._lock:
            self._states[run] = state
        self._changed()

    def _changed(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            try:
                listener()
            except Exception:  # a session that is just ending; the others still want to know
                log.exception("a session could not be told")


_shared: Scoring | None = None
_guard = threading.Lock()


def shared() -> Scoring:
    """The server's one; its process starts with the first request."""
    global _shared
    with _guard:
        if _shared is None:
            _shared = Scoring()
        return _shared


def close() -> None:
    """Ends the shared process, if there is one; for the end of the server."""
    global _shared
    with _guard:
        if _shared is not None:
            _shared.close()
        _shared = None
