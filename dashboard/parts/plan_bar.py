"""The plan: which set and strategy, which direction and action, how many pairs, and how to take it away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui

from core.store.reader import RunReader
from core.store.review import ReviewStore
from core.store.sets import FeatureSet
from dashboard import sets
from dashboard.escape import shorten
from dashboard.parts.impact_curve import RatioSlider
from dashboard.parts.impact_points import LIMIT
from dashboard.parts.plan_export import PlanExport, export_choices, plan_command
from dashboard.state import AppState

STRATEGIES = {
    "this safety set (SAFER)": "set",
    "random pairs": "random",
    "reward margin": "margin",
    "cross-validated loss": "loss",
    "length of the answers": "length",
}
DIRECTIONS = {"Poison": "poison", "Denoise": "denoise"}
ACTIONS = {"Flip": "flip", "Drop": "drop"}
USUAL = {"poison": "flip", "denoise": "drop"}
"""What the papers do to the pairs; the reviewer may do the other."""
DEFAULT_OPTION = "default (highest |s|)"


class PlanBar:
    """Widgets over the state; `on_ratio` is called with every move of the slider, `on_export` with a form."""

    def __init__(
        self,
        state: AppState,
        reader: RunReader,
        store: ReviewStore,
        on_ratio: Callable[[float], None],
        on_export: Callable[[str], None],
    ) -> None:
        self.state, self.reader, self.store = state, reader, store
        self._quiet = False
        small = {"size": "small", "description": "", "margin": (8, 5, 2, 5)}
        self._set = pmui.Select(label="Safety set", sizing_mode="stretch_width", min_width=150, **small)
        self._strategy = pmui.Select(
            label="Pairs chosen by", options=STRATEGIES, sizing_mode="stretch_width", min_width=150, **small
        )
        group = {"size": "small", "label": "", "margin": (12, 5, 2, 5), "align": "center"}
        self._direction = pmui.RadioButtonGroup(options=DIRECTIONS, width=148, **group)
        self._action = pmui.RadioButtonGroup(options=ACTIONS, width=112, **group)
        self.slider = RatioSlider(sizing_mode="stretch_width", min_width=150, margin=(0, 10))
        self.export = PlanExport(on_export, sizing_mode="stretch_width", margin=(2, 10, 8, 10))
        self._set.param.watch(self._picked("set_name"), "value")
        self._strategy.param.watch(self._picked("strategy"), "value")
        self._action.param.watch(self._picked("action"), "value")
        self._direction.param.watch(self._turned, "value")
        self.slider.param.watch(lambda event: None if self._quiet else on_ratio(event.new), "ratio")

    def layout(self, *says: Any) -> list[Any]:
        """What to put one below the other; `says` stands under the slider."""
        row = {"align-items": "center", "flex-wrap": "wrap"}
        pickers = pn.Row(
            *(self._set, self._strategy, self._direction, self._action),
            sizing_mode="stretch_width",
            margin=0,
            styles=row,
        )
        return [pickers, self.slider, *says, self.export]

    def show(self, one: FeatureSet | None, ratio: float, *, ready: bool) -> None:
        """Shows what the state says.

        Args:
            one: the open set, None without one.
            ready: whether there is a plan to take away.
        """
        state = self.state
        self._quiet = True
        try:
            with pn.io.hold():
                options = self._options()
                self._set.param.update(options=options, value=state.set_name)
                self._strategy.value, self._action.value = state.strategy, state.action
                self._direction.value = state.direction
                self.slider.param.update(limit=LIMIT if ratio <= LIMIT else 0.5, ratio=ratio)
                self.export.param.update(
                    choices=export_choices(state.direction),
                    disabled=not ready,
                    command=self.command(one, ratio),
                )
        finally:
            self._quiet = False

    def command(self, one: FeatureSet | None, ratio: float) -> str:
        """The command that makes the same plan; '' when it cannot name the set."""
        state = self.state
        if state.strategy == "set" and sets.is_unsaved(state):
            return ""
        name = self.reader.name
        return plan_command(name, state.strategy, state.direction, state.action, ratio, one)

    def _options(self) -> dict[str, str]:
        """The stored sets by name, the default first; the open one always among them."""
        options = {DEFAULT_OPTION: ""}
        options |= {shorten(one.name, 60): one.name for one in self.store.sets(sets.sae_of(self.reader))}
        name = self.state.set_name
        if name not in options.values():
            options[shorten(name, 60)] = name
        if sets.is_unsaved(self.state):
            options = {f"{label} · unsaved" if value == name else label: value for label, value in options.items()}
        return options

    def _picked(self, name: str) -> Callable[[Any], None]:
        def picked(event: Any) -> None:
            if not self._quiet and event.new is not None:
                setattr(self.state, name, event.new)

        return picked

    def _turned(self, event: Any) -> None:
        if not self._quiet and event.new is not None:
            self.state.param.update(direction=event.new, action=USUAL[event.new])
