"""The open answer of a typed text: its reward, its tokens coloured, and the waterfall that sums to the reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui

from core.features.pieces import pieces_of
from core.rewards.decomposition import reward_scale
from core.store import pair_queries
from core.store.reader import RunReader
from dashboard.parts import own_text_words as words
from dashboard.parts.contributions import token_activations, token_contributions
from dashboard.parts.own_text_model import Draft
from dashboard.parts.own_text_ranks import Place
from dashboard.parts.pair_text import PAIR_SHEETS
from dashboard.parts.token_colour import colour_by, coloured_by
from dashboard.parts.token_strip import TokenStrip
from dashboard.parts.tokens import TOKEN_CSS, scale_legend, token_html
from dashboard.parts.waterfall import Waterfall
from dashboard.scoring_process import ScoredText
from dashboard.state import AppState
from dashboard.theme import sheet

MODES = {"total contribution": "total", "one feature": "feature"}


class OpenAnswer:
    """Shows one scored answer under the sliders as they stand.

    Attributes:
        box: what to put on the page.
        strip: its tokens.
    """

    def __init__(self, state: AppState, reader: RunReader) -> None:
        self.state, self.reader = state, reader
        self._labels = reader.labels()
        self._weights = reader.features.column("weight")
        self._pooling = str(reader.manifest.head["pooling"])
        with reader.cursor() as cursor:
            self._scale = reward_scale(pair_queries.all_rewards(cursor)["reward"].to_numpy())
        self._shown: tuple[ScoredText, Draft] | None = None

        def html(**params: Any) -> pn.pane.HTML:
            sheets = [*PAIR_SHEETS, TOKEN_CSS, sheet("own_text")]
            return pn.pane.HTML(stylesheets=sheets, sizing_mode="stretch_width", **({"margin": (4, 0)} | params))

        self._heading, self._legend, self._cut = html(margin=(10, 0, 2, 0)), html(), html()
        self._mode = pmui.RadioButtonGroup(label="", options=MODES, size="small", margin=(2, 0), width=270)
        self._mode.param.watch(self._mode_chosen, "value")
        self.strip = TokenStrip(sizing_mode="stretch_width", margin=(4, 0))
        self.waterfall = Waterfall(on_select=self._select, sizing_mode="stretch_width", margin=(8, 0))
        self.box = pn.Column(
            *(self._heading, self._mode, self._legend, self.strip, self._cut, self.waterfall),
            sizing_mode="stretch_width",
            margin=0,
            visible=False,
        )
        state.param.watch(lambda _: self._paint(), ["feature", "tokens"])
        state.param.watch(lambda _: self._guard(), "reveal")

    def open(self, answer: ScoredText, draft: Draft, place: Place, limit: int) -> None:
        """Shows an answer.

        Args:
            limit: tokens the model reads at most.
        """
        self._shown = (answer, draft)
        self.box.visible = True
        self._cut.object = words.cut_html(answer, limit)
        self.explain(place)
        self._paint()
        self._guard()

    def explain(self, place: Place) -> None:
        """What the reward is made of now: all that follows the hand."""
        if self._shown is None:
            return
        answer, draft = self._shown
        live = self.state.live_steering
        self._heading.object = words.answer_html(answer, draft, place, any(by != 1 for by in live.values()))
        self.waterfall.content = words.waterfall_of(
            answer, live, self._names, self._card_link, self._steer_link, self._scale
        )

    def _paint(self) -> None:
        """Colours the tokens of the open answer."""
        if self._shown is None:
            return
        answer, feature = self._shown[0], self._coloured_by
        with pn.io.hold():
            self._mode.value = "total" if feature is None else "feature"
            self.waterfall.selected = feature
            if feature is None:
                weights = self._weights.copy()
                for one, by in self.state.live_steering.items():
                    if 0 <= one < len(weights):
                        weights[one] *= by
                values = token_contributions(answer.token_features, answer.token_values, weights, self._pooling)
            else:
                values = token_activations(answer.token_features, answer.token_values, feature)
            scale = float(np.abs(values).max(initial=0.0))
            pieces = pieces_of(answer.text, answer.char)
            self.strip.content = token_html(pieces, values.tolist(), scale=scale, signed=feature is None)
            unit = "what each token adds" if feature is None else f"activation of feature {feature}"
            self._legend.object = scale_legend(scale, basis="this answer", unit=unit, signed=feature is None)

    def _guard(self) -> None:
        """Blurs an answer of the run that may be harmful, until it is revealed."""
        if self._shown is not None:
            self.strip.blurred = self._shown[1].sensitive and not self.state.reveal

    # ------------------------------------------------------------------- acting

    @property
    def _coloured_by(self) -> int | None:
        return coloured_by(self.state, self.reader)

    def _select(self, feature: int) -> None:
        colour_by(self.state, self.reader, feature)

    def _mode_chosen(self, event: Any) -> None:
        if event.new == ("total" if self._coloured_by is None else "feature"):
            return
        if event.new == "feature" and self.state.feature is None and self._shown is not None:
            answer = self._shown[0]
            strongest = int(answer.features[np.argmax(np.abs(answer.contributions))])
            self.state.param.update(feature=strongest, tokens="feature")
        else:
            self.state.tokens = event.new

    def _names(self, features: list[int]) -> Mapping[int, str | None]:
        return {feature: self._labels.get(feature) for feature in features}

    def _card_link(self, feature: int) -> str:
        return self.state.link(view="features", feature=feature)

    def _steer_link(self, feature: int) -> str:
        live = self.state.live_steering
        return self.state.link(view="steering", steering={**live, feature: live.get(feature, 1.0)})
