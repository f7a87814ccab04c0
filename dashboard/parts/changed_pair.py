"""One pair beside the plan that changes it: why it ranks where it does, and both answers as the safety set sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import polars as pl

from core.store.reader import RunReader
from core.store.sets import FeatureSet
from dashboard.escape import esc, shorten
from dashboard.impact_tasks import Ranked
from dashboard.parts import pair_change, pair_text
from dashboard.parts.answer_pane import AnswerPane
from dashboard.parts.contributions import SIDES
from dashboard.parts.open_pair import Answer, OpenPair, open_pair
from dashboard.parts.pair_text import PAIR_SHEETS
from dashboard.parts.tokens import TOKEN_CSS, plain_html, scale_legend, token_html
from dashboard.sensitive import is_sensitive
from dashboard.state import AppState
from dashboard.theme import sheet


class ChangedPair:
    """Shows `state.pair`; the view says which set is open and what the plan makes of the pair."""

    def __init__(self, state: AppState, reader: RunReader) -> None:
        self.state, self.reader = state, reader
        self._pair: OpenPair | None = None
        self._set: FeatureSet | None = None
        self._signs = np.zeros(len(reader.features))
        self._opening = False

        def html(**params: Any) -> pn.pane.HTML:
            return pn.pane.HTML(
                stylesheets=[*PAIR_SHEETS, TOKEN_CSS, sheet("impact")],
                sizing_mode="stretch_width",
                **({"margin": (4, 8)} | params),
            )

        self._status, self._title, self._place, self._why, self._prompt, self._legend = (html() for _ in range(6))
        self._reveal = pmui.Button(
            label="", size="small", variant="outlined", margin=(2, 8), on_click=lambda _: self._flip_reveal()
        )
        self._panes = {side: AnswerPane(side, lambda _: None, self._paint) for side in SIDES}
        answers = pn.Row(
            *(pane.box for pane in self._panes.values()),
            sizing_mode="stretch_width",
            margin=8,
            styles={"gap": "12px", "flex-wrap": "wrap", "align-items": "stretch"},
        )
        self._body = pn.Column(
            *(self._title, self._place, self._why, self._prompt, self._reveal, self._legend, answers),
            sizing_mode="stretch_width",
            margin=0,
        )
        state.param.watch(lambda _: self._guard(), "reveal")

    def layout(self) -> list[Any]:
        """What to put one below the other."""
        return [self._status, self._body]

    def open(self, pair_id: str | None) -> None:
        """Reads and draws a pair."""
        pair = self._pair = None if pair_id is None else open_pair(self.reader, pair_id)
        with pn.io.hold():
            self._body.visible, self._status.visible = pair is not None, pair is None
            if pair is None:
                missing = f"This run has no pair “{shorten(pair_id or '', 60)}”; pick one from the list."
                self._status.object = pair_text.state_html("Pick a pair from the list." if pair_id is None else missing)
                return
            link = self.state.link(view="pairs", pair=pair.row["pair_id"])
            go = f'<a href="{esc(link)}">open in Pairs</a>'
            self._title.object = pair_text.title_html(pair.row).replace("</div>", f"{go}</div>", 1)
            self._prompt.object = pair_text.prompt_html(pair.row["prompt"], pair.row["messages"])
            self._opening = True  # both pickers change before anything is drawn
            for side, pane in self._panes.items():
                pane.open(pair.answers[side], pair.best(side))
            self._opening = False
            self._guard()
            self._paint()

    def use(self, one: FeatureSet | None) -> None:
        """Colours the tokens by another set."""
        self._set = one
        self._signs = one.signs(len(self.reader.features)) if one else np.zeros(len(self.reader.features))
        self._paint()

    def explain(self, ranked: Ranked | None, rank: int | None, n_changed: int, choice: tuple[str, str, str]) -> None:
        """Says where the pair stands and why.

        Args:
            ranked: the plan's ranking, None while there is none; rank: 1-based place of the pair in it.
            choice: strategy, direction and action.
        """
        strategy, direction, action = choice
        if self._pair is None or ranked is None:
            self._place.object = self._why.object = ""
            return
        self._place.object = pair_change.place_html(rank, n_changed, len(ranked.order), direction, action)
        if rank is None:
            self._why.object = ""
            return
        score = float(ranked.score[self._pair.row["pair_index"]])
        if strategy == "set" and self._set is not None:
            parts = pair_change.score_parts(self._pair.activations, self._rows(), self._set)
            names = self._names([part.feature for part in parts[: pair_change.SHOWN_PARTS]])
            self._why.object = pair_change.set_why_html(parts, score, names, self._card_link, ranked.what)
        else:
            lengths = {side: [row["n_tokens"] for row in rows] for side, rows in self._rows().items()}
            self._why.object = pair_change.other_why_html(strategy, score, ranked.what, lengths)

    # ------------------------------------------------------------------ drawing

    def _paint(self) -> None:
        """Tints both answers by what the set sees in each token, on one scale; sentence ends are underlined."""
        pair = self._pair
        if pair is None or self._opening:
            return
        with pn.io.hold():
            if pair.problem or self._set is None:
                why = (
                    f"The tokens cannot be coloured. {pair.problem}"
                    if pair.problem
                    else "No set: nothing to colour by."
                )
                self._legend.object = pair_text.state_html(why, "failed" if pair.problem else "empty")
                for pane in self._panes.values():
                    pane.strip.content = f'<div class="tokens" dir="auto">{plain_html(pane.answer.row["text"])}</div>'
                return
            values = {side: self._values(pane.answer) for side, pane in self._panes.items()}
            scale = max(float(np.abs(each).max(initial=0.0)) for each in values.values())
            for side, pane in self._panes.items():
                pane.strip.content = token_html(
                    pane.answer.pieces,
                    values[side].tolist(),
                    scale=scale,
                    signed=True,
                    marked=self._boundaries(pane.answer),
                )
            key = scale_legend(scale, basis="both answers", unit="activation of the set, S+ minus S−", signed=True)
            note = (
                "Underlined tokens end a sentence: the pair score reads these alone."
                if scale
                else "No feature of the set is active here."
            )
            self._legend.object = f'{key}<div class="rs-small rs-muted">{note}</div>'

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

    def _values(self, answer: Answer) -> np.ndarray:
        return pair_change.set_values(answer.features, answer.values, self._signs)

    def _boundaries(self, answer: Answer) -> set[int]:
        tokens = self.reader.arrays.tokens_of(answer.response_id)
        return set(np.flatnonzero(np.asarray(self.reader.arrays.token_boundary[tokens])).tolist())

    def _rows(self) -> dict[str, list[dict[str, Any]]]:
        assert self._pair is not None
        return {side: [answer.row for answer in answers] for side, answers in self._pair.answers.items()}

    def _names(self, features: list[int]) -> dict[int, str | None]:
        rows: pl.DataFrame = self.reader.features.take(np.array(features, dtype=np.int64))
        return dict(zip(rows["feature_id"].to_list(), rows["label"].to_list(), strict=True))

    def _card_link(self, feature: int) -> str:
        return self.state.link(view="features", feature=feature)

    def _flip_reveal(self) -> None:
        self.state.reveal = not self.state.reveal
