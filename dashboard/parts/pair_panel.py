"""One pair: its prompt, the answers side by side with coloured tokens, and the waterfall that explains the margin."""

from __future__ import annotations

from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import polars as pl

from core.rewards.decomposition import reward_scale
from core.store import pair_queries
from core.store.reader import RunReader
from dashboard.escape import known, shorten, signed
from dashboard.parts import pair_text
from dashboard.parts.answer_pane import AnswerPane
from dashboard.parts.contributions import (
    SIDES,
    pair_contributions,
    token_activations,
    token_contributions,
    token_features,
)
from dashboard.parts.open_pair import OpenPair, open_pair
from dashboard.parts.pair_text import PAIR_SHEETS
from dashboard.parts.steer_link import steer_href, steer_html
from dashboard.parts.token_colour import colour_by, coloured_by
from dashboard.parts.tokens import TOKEN_CSS, plain_html, scale_legend, spoken, token_html
from dashboard.parts.waterfall import Waterfall, token_content, waterfall_content
from dashboard.sensitive import is_sensitive
from dashboard.state import AppState

MODES = {"total contribution": "total", "one feature": "feature"}
SCALES = {"largest of this pair": "pair", "largest of the run": "run"}


class PairPanel:
    """Shows `state.pair`. Everything is built once; a new pair replaces what the parts show."""

    def __init__(self, state: AppState, reader: RunReader) -> None:
        self.state, self.reader = state, reader
        self._weights = reader.features.column("weight")
        self._pooling = str(reader.manifest.head["pooling"])
        with reader.cursor() as cursor:
            self._scale = reward_scale(pair_queries.all_rewards(cursor)["reward"].to_numpy())
        self._pair: OpenPair | None = None
        self._listed: list[int] = []  # features of the waterfall, largest difference first
        self._token: tuple[str, int] | None = None  # the picked token
        self._opening = False

        def html(**params: Any) -> pn.pane.HTML:
            return pn.pane.HTML(
                stylesheets=[*PAIR_SHEETS, TOKEN_CSS], sizing_mode="stretch_width", **({"margin": (4, 8)} | params)
            )

        self._status, self._title, self._labels, self._prompt = html(), html(), html(), html(margin=(8, 8))
        self._mode = pmui.RadioButtonGroup(label="", options=MODES, size="small", margin=0, width=270)
        self._basis = pmui.Select(
            label="Strongest colour", options=SCALES, value="pair", size="small", width=190, margin=0
        )
        self._reveal = pmui.Button(
            label="", size="small", variant="outlined", margin=0, on_click=lambda _: self._flip_reveal()
        )
        self._legend, self._feature = html(), html()
        self._panes = {side: AnswerPane(side, self._token_picker(side), self._compare) for side in SIDES}
        self._waterfall = Waterfall(on_select=self._select, sizing_mode="stretch_width", margin=(8, 0))
        self._token_title = html(margin=(4, 8, 0, 8))
        self._token_parts = Waterfall(on_select=self._select, sizing_mode="stretch_width", margin=(0, 0, 4, 0))
        self._token_box = pn.Column(
            self._token_title,
            self._token_parts,
            sizing_mode="stretch_width",
            visible=False,
            margin=(10, 8, 4, 8),
            styles={
                "border-left": "3px solid var(--rs-focus)",
                "background": "var(--rs-sunken)",
                "border-radius": "4px",
            },
        )
        tools = pn.Row(
            pn.pane.HTML(
                '<span class="rs-small rs-muted">Colour tokens by</span>', stylesheets=PAIR_SHEETS, margin=(6, 0)
            ),
            self._mode,
            self._basis,
            self._reveal,
            margin=(8, 8, 2, 8),
            styles={"gap": "10px", "flex-wrap": "wrap", "align-items": "center"},
        )
        answers = pn.Row(
            *(pane.box for pane in self._panes.values()),
            sizing_mode="stretch_width",
            margin=(8, 8),
            styles={"gap": "12px", "flex-wrap": "wrap", "align-items": "stretch"},
        )
        self._body = pn.Column(
            *(self._title, self._labels, self._prompt, tools, self._legend, self._feature, answers),
            *(self._token_box, self._waterfall),
            sizing_mode="stretch_width",
            margin=0,
        )
        self._mode.param.watch(self._mode_chosen, "value")
        self._basis.param.watch(lambda _: self._paint(), "value")
        state.param.watch(lambda _: self._open(), "pair")
        state.param.watch(lambda _: self._paint(), ["feature", "tokens"])
        state.param.watch(lambda _: self._guard(), "reveal")
        self._open()

    def layout(self) -> list[Any]:
        """What to put one below the other."""
        return [self._status, self._body]

    # ------------------------------------------------------------------ drawing

    def _open(self) -> None:
        """Reads and draws `state.pair`."""
        wanted = self.state.pair
        pair = self._pair = None if wanted is None else open_pair(self.reader, wanted)
        self._token = None
        with pn.io.hold():
            self._body.visible, self._status.visible = pair is not None, pair is None
            if pair is None:
                unknown = f"This run has no pair “{shorten(wanted or '', 60)}”; pick one from the list."
                self._status.object = pair_text.state_html("Pick a pair from the list." if wanted is None else unknown)
                return
            self._title.object = pair_text.title_html(pair.row)
            self._labels.object = pair_text.labels_html(pair.row)
            self._prompt.object = pair_text.prompt_html(pair.row["prompt"], pair.row["messages"])
            self._opening = True  # both pickers change before anything is compared
            for side, pane in self._panes.items():
                pane.open(pair.answers[side], pair.best(side))
            self._opening = False
            self._compare()

    def _compare(self) -> None:
        """Draws the two answers on show and their waterfall."""
        if self._pair is None or self._opening:
            return
        chosen, rejected = (self._panes[side].answer for side in SIDES)
        table = pair_contributions(
            self._pair.activations,
            self._weights,
            pooling=self._pooling,
            chosen=chosen.response_id,
            rejected=rejected.response_id,
            rewards=(chosen.row["reward"], rejected.row["reward"]),
            scale=self._scale,
        )
        self._listed = table.rows["feature_id"].to_list()
        with pn.io.hold():
            self._guard()
            self._waterfall.content = waterfall_content(
                table, self._names(self._listed), self._card_link, steer=self._steer_link
            )
            self._paint()
            self._show_token()

    def _paint(self) -> None:
        """Colours the tokens of both answers, on one scale."""
        pair, feature = self._pair, self._coloured_by
        if pair is None:
            return
        with pn.io.hold():
            self._mode.value = "total" if feature is None else "feature"
            self._waterfall.selected = self._token_parts.selected = feature
            self._basis.visible = self._feature.visible = feature is not None and not pair.problem
            if pair.problem:
                self._legend.object = pair_text.state_html(f"The tokens cannot be coloured. {pair.problem}", "failed")
                for pane in self._panes.values():
                    pane.strip.content = f'<div class="tokens" dir="auto">{plain_html(pane.answer.row["text"])}</div>'
                return
            values = {side: self._token_values(side, feature) for side in SIDES}
            scale, basis = self._scale_of(feature, values)
            for side, pane in self._panes.items():
                pane.strip.content = token_html(
                    pane.answer.pieces, values[side].tolist(), scale=scale, signed=feature is None
                )
            if feature is None:
                self._legend.object = pair_text.total_legend(scale, basis, self._pooling)
            else:
                row = self.reader.features.take(np.array([feature])).row(0, named=True)
                active = {side: (int((v != 0).sum()), len(v)) for side, v in values.items()}
                self._legend.object = scale_legend(scale, basis=basis, unit=f"activation of feature {feature}")
                self._feature.object = pair_text.feature_html(
                    row, active, self._card_link(feature), steer_html(self.state, feature, row["weight"])
                )

    def _token_values(self, side: str, feature: int | None) -> np.ndarray:
        """float64 [n_tokens]: what each token adds to the reward, or the activation of one feature."""
        answer = self._panes[side].answer
        if feature is None:
            return token_contributions(answer.features, answer.values, self._weights, self._pooling)
        return token_activations(answer.features, answer.values, feature)

    def _scale_of(self, feature: int | None, values: dict[str, np.ndarray]) -> tuple[float, str]:
        """The value that gets the strongest colour, and what it is the largest of."""
        if feature is not None and self._basis.value == "run":
            largest = self.reader.features.take(np.array([feature]))["max_active"][0]
            if known(largest):
                return float(largest), "the whole run"
        return max(float(np.abs(v).max(initial=0.0)) for v in values.values()), "both answers"

    def _guard(self) -> None:
        """Blurs what may be harmful until it is revealed, and draws the headings."""
        if self._pair is None:
            return
        revealed, domain = self.state.reveal, self._pair.row["domain"]
        with pn.io.hold():
            for side, pane in self._panes.items():
                pane.draw(blurred=is_sensitive(domain, side) and not revealed)
            self._reveal.visible = any(is_sensitive(domain, side) for side in SIDES)
            self._reveal.label = "Blur rejected answers (r)" if revealed else "Show rejected answers (r)"

    def _show_token(self) -> None:
        """What the picked token is made of."""
        with pn.io.hold():
            self._token_box.visible = self._token is not None
            for side, pane in self._panes.items():
                pane.strip.picked = self._token[1] if self._token is not None and self._token[0] == side else None
            if self._token is None:
                return
            side, token = self._token
            answer = self._panes[side].answer
            adds = self._token_values(side, None)
            pooled = len(adds) if self._pooling == "mean" else 1
            counts = self._pooling == "mean" or token == len(adds) - 1
            rows = token_features(answer.features[token], answer.values[token], self._weights, n_pooled=pooled)
            what = f"adds {signed(float(adds[token]))} to the reward"
            if not counts:
                what = "adds nothing: only the last token is pooled"
            name = f"Token {token} {spoken(answer.pieces[token])} of the {side} answer"
            self._token_title.object = (
                f'<div class="line">{plain_html(f"{name} {what}. Pick it again to close.")}</div>'
            )
            names = self._names(rows["feature_id"].to_list())
            content = token_content(rows, float(adds[token]), "Adds to the reward", names, self._card_link)
            self._token_parts.content = content if counts else {}

    # ------------------------------------------------------------------ acting

    @property
    def _coloured_by(self) -> int | None:
        return coloured_by(self.state, self.reader)

    def _select(self, feature: int) -> None:
        colour_by(self.state, self.reader, feature)

    def _mode_chosen(self, event: Any) -> None:
        if event.new == ("total" if self._coloured_by is None else "feature"):
            return
        if event.new == "feature" and self.state.feature is None and self._listed:
            self.state.param.update(feature=self._listed[0], tokens="feature")
        else:
            self.state.tokens = event.new

    def _token_picker(self, side: str) -> Any:
        def pick(token: int) -> None:
            pair = self._pair
            if pair is None or pair.problem or not 0 <= token < len(self._panes[side].answer.pieces):
                return
            self._token = None if self._token == (side, token) else (side, token)
            self._show_token()

        return pick

    def _flip_reveal(self) -> None:
        self.state.reveal = not self.state.reveal

    def _names(self, features: list[int]) -> dict[int, str | None]:
        rows: pl.DataFrame = self.reader.features.take(np.array(features, dtype=np.int64))
        return dict(zip(rows["feature_id"].to_list(), rows["label"].to_list(), strict=True))

    def _card_link(self, feature: int) -> str:
        return self.state.link(view="features", feature=feature)

    def _steer_link(self, feature: int) -> str:
        return steer_href(self.state, feature)
