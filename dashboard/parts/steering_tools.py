"""Keeping a steering: presets in the review store, files to take away and bring back, the link."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from core.errors import DataError, RewardscopeError
from core.store.reader import RunReader
from core.store.review import ReviewStore
from dashboard import steering
from dashboard.escape import shorten
from dashboard.parts.steering_sliders import SteeringSliders
from dashboard.sets import sae_of
from dashboard.state import AppState
from dashboard.theme import script, sheet


class ToolPanel(JSComponent):
    """The buttons; what they do is in SteeringTools."""

    presets = param.List([], item_type=dict, doc="key, name, title of each, newest first.")
    empty = param.Boolean(True, doc="Nothing is on the sliders.")
    said = param.String("")
    file = param.String("", doc="Name of the file in `data`.")
    data = param.String("", doc="The file the browser is to save; emptied once it is there.")

    _esm = script("steering_tools")
    _stylesheets: ClassVar[list[str]] = [sheet("parts"), sheet("steering")]

    def __init__(self, on_message: Callable[[dict[str, Any]], None], **params: Any) -> None:
        super().__init__(**params)
        self._on_message = on_message

    def _handle_msg(self, data: Any) -> None:
        if isinstance(data, dict):
            self._on_message(data)


class SteeringTools:
    """Saves, opens, imports and exports what stands on the sliders. Runs are never written to.

    Attributes:
        panel: what to put on the page.
    """

    def __init__(self, state: AppState, reader: RunReader, store: ReviewStore, sliders: SteeringSliders) -> None:
        self.state, self.reader, self.store, self.sliders = state, reader, store, sliders
        self.panel = ToolPanel(self._handle, sizing_mode="stretch_width", margin=0)
        state.param.watch(lambda _: self._show(), "steering")
        self._fill()
        self._show()

    def _show(self) -> None:
        self.panel.param.update(empty=not self.state.steering, said="")

    def _fill(self) -> None:
        try:
            stored = self.store.steerings(sae_of(self.reader))
        except RewardscopeError as error:
            self.panel.said = str(error)
            return
        self.panel.presets = [
            {
                "key": f"{one.name}@{one.version}",
                "name": one.name,
                "title": f"{shorten(one.name, 60)} · {len(one)} feature{'s' if len(one) != 1 else ''} · version {one.version}",
            }
            for one in stored
        ]

    def _handle(self, message: dict[str, Any]) -> None:
        try:
            said = self._act(message)
        except RewardscopeError as error:
            said = str(error)
        if said is not None:
            self.panel.said = said

    def _act(self, message: dict[str, Any]) -> str | None:
        """Does it; returns what is said of it, None for nothing new."""
        match message:
            case {"save": str(name)}:
                one = steering.to_steering(self.state.live_steering, name.strip(), self.reader)
                saved = self.store.save_steering(one)
                self._fill()
                return f"Saved “{shorten(saved.name, 60)}”, version {saved.version}."
            case {"open": str(key)}:
                name, _, version = key.rpartition("@")
                stored = self.store.steerings(sae_of(self.reader))
                found = next((one for one in stored if (one.name, str(one.version)) == (name, version)), None)
                if found is None:
                    raise DataError(f"The preset “{shorten(name, 60)}” is no longer there.")
                return self._put(found, f"Opened “{shorten(found.name, 60)}”, version {found.version}.")
            case {"upload": str(content), "name": str(filename)}:
                one = steering.read_upload(content, filename, self.reader)
                n = len(one)
                return self._put(one, f"Imported {n} feature{'s' if n != 1 else ''} from “{shorten(filename, 60)}”.")
            case {"too_large": str(filename)}:
                return f"“{shorten(filename, 60)}” is larger than 1 MB; a steering is not that large."
            case {"download": "own" | "sarm" as kind}:
                one = steering.to_steering(self.state.live_steering, "steering", self.reader)
                content = steering.own_file(one) if kind == "own" else steering.sarm_file(one)
                self.panel.param.update(file=f"steering{'' if kind == 'own' else '-sarm'}.json", data=content)
            case {"saved": _}:
                self.panel.data = ""
        return None

    def _put(self, one: steering.Steering, said: str) -> str:
        multipliers, note = steering.multipliers_of(one, self.reader)
        self.sliders.put(multipliers)
        return f"{said} {note}".strip()
