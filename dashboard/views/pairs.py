"""The Pairs view: which pairs there are, and what makes the difference in one of them."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui

from core.store.reader import RunReader
from dashboard.parts.pair_list import FILTERS, PairList
from dashboard.parts.pair_panel import PairPanel
from dashboard.parts.pair_text import PAIR_SHEETS
from dashboard.state import AppState

SURFACE = {"background": "var(--rs-surface)", "min-width": "0", "min-height": "0", "padding": "0 8px 12px"}


class PairsView:
    """List on the left, the open pair on the right; `step` moves through the list."""

    def __init__(self, state: AppState, reader: RunReader) -> None:
        self.state = state
        self._list = PairList(state, reader)
        self._panel = PairPanel(state, reader)
        self._where = pn.pane.HTML(stylesheets=PAIR_SHEETS, margin=(6, 8))
        self._back = pmui.Button(
            label="↑ Previous (k)", size="small", variant="text", margin=2, on_click=lambda _: self.step(-1)
        )
        self._next = pmui.Button(
            label="↓ Next (j)", size="small", variant="text", margin=2, on_click=lambda _: self.step(1)
        )
        state.param.watch(self._refresh, ["pair", "pair_sort", *FILTERS])
        state.param.watch(self._open_first, "view")
        self._open_first()
        self._refresh()

    def step(self, by: int) -> None:
        """Opens the next (1) or previous (-1) pair of the list."""
        self._list.step(by)

    def _open_first(self, *_: Any) -> None:
        """A first look at this view shows a pair, not an instruction."""
        if self.state.view == "pairs" and self.state.pair is None:
            self.state.pair = self._list.listed.at(0)

    def _refresh(self, *_: Any) -> None:
        place, count = self._list.listed.place(self.state.pair), self._list.listed.count
        with pn.io.hold():
            self._back.disabled = place is None or place == 0
            self._next.disabled = count == 0 or place == count - 1
            where = "not among the pairs listed" if place is None else f"{place + 1:,} of {count:,} listed"
            self._where.object = f'<div class="rs-small rs-muted">{where if self.state.pair is not None else ""}</div>'

    def __panel__(self) -> pn.viewable.Viewable:
        steps = pn.Row(self._back, self._next, self._where, margin=(4, 0, 0, 0))
        side = {"flex": "3 1 0", "min-width": "300px", "border-right": "1px solid var(--rs-line)"}
        return pn.Row(
            pn.Column(
                *self._list.layout(), sizing_mode="stretch_both", scroll="y-auto", margin=0, styles=SURFACE | side
            ),
            pn.Column(
                steps,
                *self._panel.layout(),
                sizing_mode="stretch_both",
                scroll="y-auto",
                margin=0,
                styles=SURFACE | {"flex": "7 1 0"},
            ),
            sizing_mode="stretch_both",
            margin=0,
            styles={"min-height": "0"},
        )
