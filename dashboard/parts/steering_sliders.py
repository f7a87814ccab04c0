"""The sliders: one a steered feature, live under the hand, in the link at rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import panel as pn
import param
import polars as pl
from panel.custom import JSComponent

from core.errors import RewardscopeError
from core.store.reader import RunReader
from dashboard import steering
from dashboard.escape import percent, shorten, signed
from dashboard.state import STEERING_RANGE, AppState
from dashboard.theme import script, sheet

ABOUT = (
    "Steering multiplies the head weight of a feature: at 0 the feature no longer counts, at 2 it counts double, below 0 it "
    "counts the other way round.",
    "The rewards of all stored answers follow while you drag; nothing steered is written into the run.",
)


class SliderPanel(JSComponent):
    """Draws rows of sliders and passes on what is done to them; see SteeringSliders for what is shown."""

    rows = param.List(
        [], item_type=dict, doc="feature, label, weight, density (text), href of each slider, top to bottom."
    )
    values = param.Dict({}, doc="{feature as text: multiplier}")
    answered = param.Integer(0, doc="Number of the last move whose effect was sent; only then the next one comes.")
    settled = param.Integer(0, doc="Number of the last rest after which the link says what the sliders say.")
    results = param.List([], item_type=dict, doc="What the search found: feature (None = a sentence), label, hint.")
    offers = param.List([], item_type=dict, doc="Features to start with, as in `results`.")
    offers_title = param.String("")
    about = param.List(list(ABOUT), item_type=str)
    said = param.String("")
    busy = param.Boolean(False, doc="A suggestion is being searched for.")
    can_suggest = param.Boolean(False)
    large = param.Boolean(False)

    _esm = script("steering_sliders")
    _stylesheets: ClassVar[list[str]] = [sheet("parts"), sheet("steering")]

    def __init__(self, on_message: Callable[[dict[str, Any]], None], **params: Any) -> None:
        super().__init__(**params)
        self._on_message = on_message

    def _handle_msg(self, data: Any) -> None:
        if isinstance(data, dict):
            self._on_message(data)


class SteeringSliders:
    """Sliders over `state.steering`; several may stand on a page and move together.

    A move is told at once and becomes `state.live_steering`; whoever watches that draws within the same call, and only
    then the browser sends the next move, the newest there is. `state.steering` (the link) follows when the hand rests.

    Args:
        large: only the sliders, in large type, for a presentation.

    Attributes:
        layout: what to put on the page.
        moves: moves handled so far.
    """

    def __init__(self, state: AppState, reader: RunReader, large: bool = False) -> None:
        self.state, self.reader = state, reader
        self.moves = 0
        self._on_suggest: Callable[[], None] | None = None
        self.panel = SliderPanel(self._handle, large=large, sizing_mode="stretch_width", margin=0)
        self.layout: pn.viewable.Viewable = self.panel
        if state.live_steering != state.steering:
            state.live_steering = dict(state.steering)
        state.param.watch(lambda _: self._show(), "live_steering")
        state.param.watch(lambda _: self._offer(), "target")
        self._show()
        self._offer()

    def say(self, text: str) -> None:
        """A sentence above the sliders, '' for none."""
        self.panel.said = text

    def offer_suggestions(self, on_suggest: Callable[[], None]) -> None:
        """Shows the button "Suggest", which calls this."""
        self._on_suggest = on_suggest
        self.panel.can_suggest = True

    def put(self, multipliers: Mapping[int, float]) -> None:
        """Replaces what is on the sliders, in the link too.

        Raises:
            DataError: they cannot hold it.
        """
        self.state.steering = steering.usable(multipliers, self.reader)

    # ------------------------------------------------------------------ showing

    def _show(self) -> None:
        live = {one: by for one, by in self.state.live_steering.items() if one in self.reader.features}
        with pn.io.hold():
            if [row["feature"] for row in self.panel.rows] != list(live):
                self.panel.rows = slider_rows(self.reader, list(live), self.state)
                self._offer()
            self.panel.values = {str(feature): by for feature, by in live.items()}

    def _offer(self) -> None:
        try:
            target = steering.target_of(self.state, self.reader)
        except RewardscopeError as error:
            self.say(str(error))
            return
        found = steering.salient(self.reader, target or "all", self.state.live_steering)
        where = shorten(target, 60) if target else "all pairs"
        self.panel.param.update(
            offers=[_choice(row, f"margin {signed(row['margin'], 2)}") for row in found.iter_rows(named=True)],
            offers_title=f"Salient features that move the margins of {where} most",
        )

    # ------------------------------------------------------------------- acting

    def _handle(self, message: dict[str, Any]) -> None:
        if "move" in message:
            self._move(message.get("move"), message.get("n"))
            return
        try:
            self._act(message)
        except RewardscopeError as error:
            self.say(str(error))

    def _move(self, move: Any, number: Any) -> None:
        """A move under the hand. It is answered whatever becomes of it, or the browser would wait for ever.

        The answer goes out with the effect and ahead of it, so that the next move is under way while this one is drawn.
        """
        with pn.io.hold():
            if isinstance(number, int):
                self.panel.answered = number
            live = dict(self.state.live_steering)
            for feature, by in move.items() if isinstance(move, dict) else ():
                if str(feature).isdigit() and int(feature) in live and _is_multiplier(by):
                    live[int(feature)] = float(by)
            self.moves += 1
            self.state.live_steering = live

    def _act(self, message: dict[str, Any]) -> None:
        state, live = self.state, self.state.live_steering
        if message.get("rest"):
            state.steering = dict(live)
            if isinstance(message.get("n"), int):
                self.panel.settled = message["n"]
        elif isinstance(message.get("query"), str):
            self._search(message["query"][:200])
        elif isinstance(message.get("add"), list):
            self._add([one for one in message["add"] if isinstance(one, int)])
        elif message.get("top"):
            self._add([row["feature"] for row in self.panel.offers])
        elif isinstance(message.get("remove"), int):
            self.say("")
            state.steering = {one: by for one, by in live.items() if one != message["remove"]}
        elif message.get("reset"):
            self.say("")
            state.steering = dict.fromkeys(live, 1.0)
        elif message.get("clear"):
            self.say("")
            state.steering = {}
        elif message.get("suggest") and self._on_suggest is not None:
            self._on_suggest()

    def _add(self, features: list[int]) -> None:
        live = self.state.live_steering
        fresh = [one for one in features if one not in live]
        self.put({**live, **dict.fromkeys(fresh, 1.0)})
        steering.of_run(self.reader).steered.columns.load(fresh)  # now, not under the first move
        self.say("" if fresh else "That is on the sliders already." if features else "There is nothing more to add.")

    def _search(self, text: str) -> None:
        found = [_choice(row, f"w {signed(row['weight'])}") for row in _rows(steering.find_features(self.reader, text))]
        nothing = {"feature": None, "label": f"No feature has “{shorten(text, 40)}” in it.", "hint": ""}
        self.panel.results = found or [nothing]


def slider_rows(reader: RunReader, features: list[int], state: AppState) -> list[dict[str, Any]]:
    """What a slider shows of its feature besides the multiplier."""
    return [
        {
            "feature": row["feature_id"],
            "label": shorten(row["label"], 160) if row["label"] else "",
            "weight": float(row["weight"] or 0.0),
            "density": "density n/a" if row["density"] is None else f"density {percent(row['density'], 2)}",
            "href": state.link(view="features", feature=row["feature_id"]),
        }
        for row in _rows(reader.features.take(features))
    ]


def _choice(row: Mapping[str, Any], hint: str) -> dict[str, Any]:
    label = shorten(row["label"], 100) if row["label"] else "no label"
    return {"feature": row["feature_id"], "label": label, "hint": hint}


def _rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return list(frame.iter_rows(named=True))


def _is_multiplier(value: Any) -> bool:
    low, high = STEERING_RANGE
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
