"""What a visitor typed and what became of it: one object a session, shared by the normal and the large layout.

Nothing of it is stored, and nothing of it stands in the URL. A move of a slider needs no model: the contributions of
the scored answers are here, and the steered reward is r' = r + sum_i (m_i - 1) w_i z_i (docs/steering.md).
"""

from __future__ import annotations

import itertools
import json
import uuid
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import panel as pn
import param

from core.data.schema import Message
from core.store import pair_queries
from core.store.pair_queries import PairFilter
from core.store.reader import RunReader
from dashboard import scoring
from dashboard.delivery import Delivery
from dashboard.parts.own_text_ranks import ranking
from dashboard.parts.own_text_stored import stored_scores
from dashboard.scoring import Scoring
from dashboard.scoring_process import Scored, ScoredText
from dashboard.sensitive import is_sensitive
from dashboard.state import AppState
from dashboard.worker import Outcome

MOST_ANSWERS = 8
MOST_CHARACTERS = 10_000
"""Of the prompt and of each answer."""


@dataclass(frozen=True)
class Draft:
    """An answer as it stands in its box.

    Attributes:
        note: where it comes from ('chosen', 'rejected'), '' when it was typed.
        sensitive: it may be harmful to read, and is blurred until revealed.
    """

    text: str = ""
    note: str = ""
    sensitive: bool = False


class OwnTextModel(param.Parameterized):
    """The typed text, its scores, and where the request stands. Watch the parameters; change things by the methods."""

    texts = param.Integer(0, doc="Counts changes of prompt and answers.")
    scores = param.Integer(0, doc="Counts changes of `scored`.")
    status = param.Integer(0, doc="Counts changes of the model's state and of the request's.")
    open = param.Integer(0, bounds=(0, None), doc="Which scored answer is open.")

    def __init__(self, state: AppState, reader: RunReader, service: Scoring | None = None) -> None:
        super().__init__()
        self.state, self.reader = state, reader
        self.service = service or scoring.shared()
        self.run = str(reader.folder.resolve())
        self.prompt = ""
        self.earlier: list[Message] = []
        self.answers: list[Draft] = [Draft(), Draft()]
        self.scored: list[ScoredText] = []
        self.drafts: list[Draft] = []  # of `scored`
        self.asked_prompt = ""
        self.seconds = 0.0
        self.request = ""  # '', 'waiting' or 'scoring'
        self.problem = ""
        self.restarted = False
        self.origin: object = None  # who changed the texts last
        self._owner = uuid.uuid4().hex
        self._number = itertools.count(1)
        self._asked = 0
        self._asked_texts: tuple[Any, ...] = ()
        self._example = -1
        self._pair: tuple[str, tuple[Any, ...]] | None = None  # the pair last filled in, and its texts
        self.from_run = False  # `scored` are stored answers of the run
        self._deliver = Delivery()
        if pn.state.curdoc is not None:
            close = _weakly(self.close)
            pn.state.on_session_destroyed(lambda _: close())
        # A weak hold: the service outlives the session, and must not keep what was typed.
        self._stop = self.service.listen(_weakly(self._on_service))

    @classmethod
    def of(cls, state: AppState, reader: RunReader) -> OwnTextModel:
        """The session's one."""
        found = getattr(state, "_own_text", None)
        if found is None:
            found = state._own_text = cls(state, reader)
        return found

    # ------------------------------------------------------------------ the text

    def write(self, prompt: str, answers: Sequence[str], origin: object) -> None:
        """Takes over what stands in the boxes now."""
        old = {draft.text: draft for draft in self.answers if draft.note or draft.sensitive}
        drafts = [old.get(text, Draft(text)) for text in answers[:MOST_ANSWERS]]
        if (prompt, drafts) != (self.prompt, self.answers):
            self.prompt, self.answers, self.origin = prompt, drafts, origin
            self.texts += 1

    def forget_earlier(self) -> None:
        """Scores the prompt without the turns that came before it."""
        self.earlier, self.origin = [], None
        self.texts += 1

    def use_pair(self, pair_id: str) -> None:
        """Fills the boxes with a pair of the run: its last user turn, and its answers, chosen ones first."""
        with self.reader.cursor() as cursor:
            found = pair_queries.pair_row(cursor, pair_id)
            if not len(found):
                return
            row = found.row(0, named=True)
            responses = pair_queries.pair_responses(cursor, row["pair_index"]).to_dicts()
        turns = _turns(row["messages"]) or [{"role": "user", "content": row["prompt"]}]
        self.earlier, self.prompt = turns[:-1], turns[-1]["content"]
        self.answers = [
            Draft(one["text"], one["side"], is_sensitive(row["domain"], one["side"]))
            for one in responses[:MOST_ANSWERS]
        ]
        self.problem, self.origin = "", None
        self._pair = (pair_id, self._texts())
        self.texts += 1

    def use_example(self) -> None:
        """Fills in the selected pair, or without one the next held-out pair whose answers may be shown at once."""
        if self.state.pair is not None:
            self.use_pair(self.state.pair)
            return
        with self.reader.cursor() as cursor:
            pairs = pair_queries.matching_pairs(cursor, PairFilter()).to_dicts()
        calm = [pair for pair in pairs if not is_sensitive(pair["domain"], "rejected")] or pairs
        calm = [pair for pair in calm if pair["split"] == "test"] or calm
        if calm:
            self._example = (self._example + 1) % len(calm)
            # Far apart in the file, so that neighbours with one prompt do not follow each other.
            self.use_pair(calm[(self._example * 37) % len(calm)]["pair_id"])

    @property
    def trouble(self) -> str:
        """Why the texts cannot be scored as they are; '' when they can."""
        if not self.prompt.strip():
            return "Type a prompt first."
        if not any(draft.text.strip() for draft in self.answers):
            return "Type at least one answer."
        longest = max(len(text) for text in (self.prompt, *(draft.text for draft in self.answers)))
        if longest > MOST_CHARACTERS:
            return f"At most {MOST_CHARACTERS:,} characters each; one text has {longest:,}."
        return ""

    @property
    def stored_pair(self) -> str | None:
        """The pair of the run whose texts stand in the boxes, word for word; these need no model."""
        return self._pair[0] if self._pair is not None and self._pair[1] == self._texts() else None

    @property
    def lost(self) -> bool:
        """There is no model to score new text with."""
        state = self.service.state(self.run)
        return state.state == "failed" and not state.crashed

    @property
    def stale(self) -> bool:
        """The texts have changed since they were scored."""
        return bool(self.scored) and self._texts() != self._asked_texts

    def _texts(self) -> tuple[Any, ...]:
        answers = tuple(draft.text for draft in self.answers if draft.text.strip())
        return (json.dumps(self.earlier), self.prompt, answers)

    # --------------------------------------------------------------- the model

    def load(self) -> None:
        """Has the model read, unless it is there or known to fail."""
        if self.service.state(self.run).state == "absent":
            self.service.load(self.run)

    def retry(self) -> None:
        """Has the model read again after a failure."""
        self.problem = ""
        self.service.load(self.run)
        self.status += 1

    def score(self) -> None:
        """Asks for the texts' rewards; a newer request takes the place of an older one."""
        self.problem = self.trouble
        if self.problem:
            self.status += 1
            return
        drafts = [draft for draft in self.answers if draft.text.strip()]
        if self.lost and self.stored_pair is not None:
            self._take(stored_scores(self.reader, self.stored_pair), drafts, self._texts(), self.prompt, from_run=True)
            return
        messages: list[Message] = [*self.earlier, {"role": "user", "content": self.prompt}]
        number = self._asked = next(self._number)
        self.request, self.restarted, texts, prompt = "waiting", False, self._texts(), self.prompt

        def begun() -> None:
            self._deliver(lambda: self._begun(number))

        def done(outcome: Outcome) -> None:
            self._deliver(lambda: self._done(number, outcome, drafts, texts, prompt))

        self.service.score(self._owner, self.run, messages, [draft.text for draft in drafts], begun=begun, done=done)
        self.status += 1

    @property
    def ahead(self) -> int:
        """Jobs of others that come before this session's request."""
        return self.service.ahead(self._owner) or 0

    def close(self) -> None:
        """For the end of the session."""
        self._stop()
        self.service.drop(self._owner)

    # ---------------------------------------------------- from the worker's thread

    def _begun(self, number: int) -> None:
        if number == self._asked:
            self.request = "scoring"
            self.status += 1

    def _done(self, number: int, outcome: Outcome, drafts: list[Draft], texts: tuple[Any, ...], prompt: str) -> None:
        if number != self._asked:
            return  # a newer one is on its way
        self.request, self.problem, self.restarted = "", outcome.problem, outcome.restarted
        if isinstance(outcome.value, Scored):
            self.seconds = outcome.value.seconds
            self._take(outcome.value.answers, drafts, texts, prompt, from_run=False)
        self.status += 1

    def _take(
        self, scored: list[ScoredText], drafts: list[Draft], texts: tuple[Any, ...], prompt: str, *, from_run: bool
    ) -> None:
        if not scored:
            self.problem = "The stored activations of this pair cannot be read."
        else:
            self.scored, self.drafts, self.from_run = scored[: len(drafts)], drafts, from_run
            self._asked_texts, self.asked_prompt = texts, prompt
            best = ranking(self.scored, self.state.live_steering)[0].index
            self.param.update(open=best, scores=self.scores + 1)
        self.status += 1

    def _on_service(self) -> None:
        self._deliver(self._count_status)

    def _count_status(self) -> None:
        self.status += 1


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """Calls a method as long as its object lives."""
    found = weakref.WeakMethod(method)

    def call() -> None:
        alive = found()
        if alive is not None:
            alive()

    return call


def _turns(messages: str) -> list[Message]:
    try:
        return [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in json.loads(messages)]
    except (ValueError, TypeError, KeyError):
        return []
