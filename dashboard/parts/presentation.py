"""Presentation mode: the sliders, the text and its ranking in large type, and nothing else."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui

from core.store.reader import RunReader
from dashboard.parts.own_text import OwnText
from dashboard.parts.steering_sliders import SteeringSliders
from dashboard.state import AppState
from dashboard.theme import sheet

LINE = {"border-bottom": "1px solid var(--rs-line)", "align-items": "center"}


class Presentation(pn.viewable.Viewer):
    """Sliders on the left, text and ranking on the right; Esc, or its button, leaves the mode."""

    def __init__(self, state: AppState, reader: RunReader, **params: Any) -> None:
        super().__init__(**params)
        self.state = state
        self._sliders = SteeringSliders(state, reader, large=True)
        self._text = OwnText(state, reader, large=True)
        self._head = pn.pane.HTML(
            stylesheets=[sheet("parts"), sheet("rail"), sheet("own_text")],
            sizing_mode="stretch_width",
            margin=0,
        )
        self._exit = pmui.Button(
            label="Exit (Esc)",
            variant="outlined",
            margin=(8, 20, 8, 0),
            sx={"fontSize": "15px"},
            on_click=lambda _: state.param.update(present=False),
        )
        state.param.watch(lambda _: self._draw_head(), "live_steering")
        self._draw_head()

    def __panel__(self) -> pn.viewable.Viewable:
        sliders = _side(self._sliders.layout, "1 1 0", {"border-right": "1px solid var(--rs-line)"})
        text = _side(self._text, "1.9 1 0", {"padding": "8px 20px"})
        body = pn.Row(sliders, text, sizing_mode="stretch_both", margin=0, styles={"min-height": "0"})
        head = pn.Row(self._head, self._exit, sizing_mode="stretch_width", margin=0, styles=LINE)
        return pn.Column(
            head,
            body,
            sizing_mode="stretch_both",
            margin=0,
            styles={"min-height": "0", "background": "var(--rs-surface)"},
        )

    def _draw_head(self) -> None:
        moved = sum(by != 1 for by in self.state.live_steering.values())
        badge = (
            f'<span class="rs-steered big">Steered: {moved} feature{"" if moved == 1 else "s"}</span>' if moved else ""
        )
        self._head.object = f'<div class="presenting"><b>What does this reward model prefer?</b>{badge}</div>'


def _side(part: Any, flex: str, styles: dict[str, str]) -> pn.Column:
    given = {"min-width": "0", "min-height": "0", "flex": flex, **styles}
    return pn.Column(part, sizing_mode="stretch_both", scroll="y-auto", margin=0, styles=given)
