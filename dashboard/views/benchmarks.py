"""The Benchmarks view."""

from __future__ import annotations

from typing import Any

import panel as pn

from core.store.reader import RunReader
from dashboard.state import AppState


class BenchmarksView(pn.viewable.Viewer):
    def __init__(self, state: AppState, reader: RunReader, **params: Any) -> None:
        super().__init__(**params)
        self._state, self._reader = state, reader

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.pane.HTML("")

    def step(self, by: int) -> None:
        """Selects the next (1) or previous (-1) row."""
