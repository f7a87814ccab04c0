"""From other threads into a session's own: how what a process answers reaches the page."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import panel as pn
from tornado.ioloop import IOLoop

log = logging.getLogger("rewardscope.dashboard")


class Delivery:
    """Calls what it is given in the thread of the session it was made in; at once where there is no session (tests).

    From another thread only the server's loop may be told something: a document that is just being held, or whose session is
    just being made, loses callbacks that another thread adds. What comes before the browser has the page is kept until
    then: Panel 1.9.4 loses what changes under `hold` while the page is on its way.
    """

    def __init__(self) -> None:
        self._document: Any = pn.state.curdoc
        self._early: list[Callable[[], None]] | None = None
        if self._document is not None:
            self._loop = IOLoop.current()
            if not pn.state.loaded:
                self._early = []
                pn.state.onload(self._on_load)

    def __call__(self, call: Callable[[], None]) -> None:
        if self._document is None:
            call()
        else:
            self._loop.add_callback(self._receive, call)

    def _receive(self, call: Callable[[], None]) -> None:
        if self._early is not None:
            self._early.append(call)
            return
        try:
            self._document.add_next_tick_callback(call)
        except (AttributeError, RuntimeError):  # the session has ended
            log.debug("an answer came after its session", exc_info=True)

    def _on_load(self) -> None:
        early, self._early = self._early, None
        for call in early or []:
            call()
