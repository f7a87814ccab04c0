"""The Steering view: other head weights for a few features, and what that does to every reward, while the slider moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui

from core.errors import RewardscopeError
from core.evaluate.specificity import specificity
from core.store.reader import RunReader
from dashboard import sets, steering, worker
from dashboard.escape import esc, shorten
from dashboard.parts.own_text import OwnText
from dashboard.parts.steering_effect import Span, SteeringEffect, as_json, effect_content, span_of
from dashboard.parts.steering_pairs import AT_REST, UNDER_HAND, SteeringPairs, flips_of, pair_names, pairs_content
from dashboard.parts.steering_sliders import SteeringSliders
from dashboard.parts.steering_suggestion import Suggester
from dashboard.parts.steering_tools import SteeringTools
from dashboard.state import AppState
from dashboard.theme import sheet
from dashboard.worker import Worker

HONEST = "Rewards are recomputed from the stored activations. Nothing steered is written into the run; other views stay unsteered."
NO_TARGET = (
    "This run's pairs have no domain or label to steer at, so nothing can be shown here; your own text can be scored."
)
LEGEND = (
    '<span class="key"><i class="before"></i>before</span><span class="key"><i class="after"></i>steered</span>'
    '<span class="rs-muted rs-small">bars: share of the answers; lines: means</span>'
)


class SteeringView(pn.viewable.Viewer):
    """Sliders 30 %, what they do 70 %. The arithmetic takes milliseconds and happens here, within the slider's own call."""

    def __init__(self, state: AppState, reader: RunReader, work: Worker | None = None, **params: Any) -> None:
        super().__init__(**params)
        self._worker = work or worker.shared()
        self._state, self._reader = state, reader
        self._problem = ""
        try:
            self._data = steering.of_run(reader)
            self._rewards = self._data.steered.another()
            self._concepts = steering.concepts(reader)
        except RewardscopeError as error:
            self._problem = str(error)
            return
        self._drawn: tuple[Any, ...] | None = None
        self._span: Span | None = None
        self._flips: list[str] = []
        self._build()
        state.param.watch(self._on_live, "live_steering")
        state.param.watch(self._on_rest, ["steering", "target", "view", "present"])
        state.param.watch(lambda _: self._mark(), "pair")
        self._on_rest()

    # ------------------------------------------------------------------ layout

    def _build(self) -> None:
        self.sliders = SteeringSliders(self._state, self._reader)
        self._suggester = Suggester(self._state, self._reader, self.sliders, self._worker)
        self._tools = SteeringTools(self._state, self._reader, sets.review_store(), self.sliders)
        self._target = pmui.Select(
            label="Target",
            options=target_options(self._concepts),
            size="small",
            width=260,
            margin=(14, 10, 4, 10),
            description="",
        )
        self._target.param.watch(self._picked, "value")
        self._effect = SteeringEffect(sizing_mode="stretch_width", margin=0)
        self._pairs = SteeringPairs(sizing_mode="stretch_width", margin=0)
        self._failed = _pane(visible=False, margin=(4, 10))
        self._tabs = pmui.Tabs(
            dynamic=True,
            sizing_mode="stretch_both",
            margin=0,
            styles={"min-height": "0"},
            sx={"& .MuiTab-root": {"fontSize": "14px"}},
        )
        self._tabs.param.watch(self._on_rest, "active")

    def __panel__(self) -> pn.viewable.Viewable:
        if self._problem:
            return _pane(f'<div class="rs-empty"><b>This run cannot be steered.</b>{esc(self._problem)}</div>')
        notes = "".join(f"<p class='rs-small rs-muted'>{esc(note)}</p>" for note in (HONEST, self._data.note) if note)
        legend = _pane(f'<div class="target">{LEGEND}{notes}</div>')
        styles = {"align-items": "center"}
        above = pn.Row(self._target, legend, sizing_mode="stretch_width", margin=0, styles=styles)
        happens = pn.Column(
            above, self._failed, self._effect, self._pairs,
            sizing_mode="stretch_both", scroll="y-auto", margin=0, styles={"min-height": "0"},
        )  # fmt: skip
        self._tabs.extend([("What happens", happens), ("Your text", OwnText(self._state, self._reader))])
        left = pn.Column(
            pn.Column(self.sliders.layout, sizing_mode="stretch_both", scroll="y-auto", margin=0, styles={"min-height": "0"}),
            pn.Column(
                self._tools.panel, sizing_mode="stretch_width", margin=0,
                styles={"flex": "none", "border-top": "1px solid var(--rs-line)"},
            ),
            sizing_mode="stretch_both",
            margin=0,
            styles=_surface(30) | {"border-right": "1px solid var(--rs-line)", "min-width": "300px"},
        )  # fmt: skip
        right = pn.Column(self._tabs, sizing_mode="stretch_both", margin=0, styles=_surface(70))
        return pn.Row(left, right, sizing_mode="stretch_both", margin=0, styles={"min-height": "0"})

    # ---------------------------------------------------------------- behaviour

    def step(self, by: int) -> None:
        """Marks the next (1) or previous (-1) pair of those that change sides."""
        if self._problem or not self._flips:
            return
        pair = self._state.pair
        at = self._flips.index(pair) + by if pair in self._flips else 0
        self._state.pair = self._flips[min(max(at, 0), len(self._flips) - 1)]

    def _picked(self, event: Any) -> None:
        if event.new is not None and event.new != self._state.target and event.new != self._now:
            self._state.target = event.new

    @property
    def _now(self) -> str:
        return steering.target_of(self._state, self._reader)

    @property
    def _shown(self) -> bool:
        return self._state.view == "steering" and not self._state.present and not self._tabs.active

    def _on_live(self, _: Any) -> None:
        """A move: everything that is drawn follows, with short lists and an axis that does not shrink."""
        self._draw(at_rest=self._state.live_steering == self._state.steering)

    def _on_rest(self, *_: Any) -> None:
        self._draw(at_rest=True)

    def _draw(self, *, at_rest: bool) -> None:
        state, data, target = self._state, self._data, self._now
        wanted = (tuple(state.live_steering.items()), target, at_rest)
        if not self._shown or wanted == self._drawn:
            return
        self._drawn = wanted
        try:
            live = {one: by for one, by in state.live_steering.items() if one in self._reader.features}
            after = self._rewards.rewards(live)
            result = specificity(data, data.rewards, after, target)
        except RewardscopeError as error:
            says = f'<div class="rs-failed" role="alert">{esc(error if target else NO_TARGET)}</div>'
            self._failed.param.update(object=says, visible=True)
            return
        answers = np.concatenate(data.rows(target))
        self._span = span_of(data.rewards[answers], after[answers], None if at_rest else self._span)
        flips = flips_of(data, after, result)
        names = pair_names(self._reader)
        most = AT_REST if at_rest else UNDER_HAND
        with pn.io.hold():
            self._failed.visible = False
            self._target.value = target
            self._effect.content = as_json(effect_content(data, after, result, self._span, self.sliders.moves))
            self._pairs.content = as_json(pairs_content(names, flips, result, self._pair_link, most))
        self._flips = [names.ids[index] for index in flips[0][:most].tolist()]
        self._mark()

    def _mark(self) -> None:
        self._pairs.selected = self._state.pair or ""

    def _pair_link(self, pair: str) -> str:
        return self._state.link(view="pairs", pair=pair)


def target_options(concepts: list[str]) -> dict[str, str]:
    """The concepts as the picker shows them: 'privacy (domain)'."""
    options: dict[str, str] = {}
    for name in concepts:
        column, _, value = name.partition("=")
        title = f"{shorten(value, 50)} ({shorten(column, 24)})"
        options[title if title not in options else name] = name
    return options


def _pane(content: str = "", **params: Any) -> pn.pane.HTML:
    return pn.pane.HTML(
        content,
        stylesheets=[sheet("parts"), sheet("steering")],
        **{"sizing_mode": "stretch_width", "margin": 0, **params},
    )


def _surface(share: int) -> dict[str, str]:
    return {"background": "var(--rs-surface)", "min-width": "0", "min-height": "0", "flex": f"{share} 1 0"}
