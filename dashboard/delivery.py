"""From other threads into a session's own: how what a process answers reaches the page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import panel as pn


class Delivery:
    """Calls what it is given in the thread of the session it was made in; at once where there is no session (tests).

    What comes before the browser has the page is kept until then: Panel 1.9.4 loses what changes under `hold` while the
    page is on its way.
    """

    def __init__(self) -> None:
        self._document: Any = pn.state.curdoc
        self._early: list[Callable[[], None]] | None = None
        if self._document is not None and not pn.state.loaded:
            self._early = []
            pn.state.onload(self._on_load)

    def __call__(self, call: Callable[[], None]) -> None:
        if self._document is None:
            call()
        else:
            self._document.add_next_tick_callback(partial(self._receive, call))

    def _receive(self, call: Callable[[], None]) -> None:
        if self._early is None:
            call()
        else:
            self._early.append(call)

    def _on_load(self) -> None:
        early, self._early = self._early, None
        for call in early or []:
            call()
