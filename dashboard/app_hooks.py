"""What `panel serve` calls around the page: security headers, warm caches, one log line a session."""

from __future__ import annotations

import logging
from threading import Thread
from typing import Any

from panel.io.server import DocHandler

from dashboard import runs, scoring, worker

log = logging.getLogger("rewardscope.dashboard")

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' blob:",  # Bokeh's boot script is inline, custom components are blobs
        "script-src-attr 'none'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' ws: wss: blob: data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""A second line behind escaping: event handlers in attributes, remote images and remote scripts do not work."""

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def _add_headers() -> None:
    original = DocHandler.set_default_headers
    if getattr(original, "adds_policy", False):  # this file is imported twice
        return

    def set_default_headers(self: Any) -> None:
        original(self)
        for name, value in HEADERS.items():
            self.set_header(name, value)

    set_default_headers.adds_policy = True  # type: ignore[attr-defined]
    DocHandler.set_default_headers = set_default_headers


_add_headers()


def on_server_loaded(server_context: Any) -> None:
    """Opens the newest run and builds a page that nobody sees, so that the first visitor waits for neither."""
    from dashboard.app import App

    app = App("")
    if app.failure:
        log.warning("%s", app.failure)  # the page says the same to its visitor
    elif app.reader:
        Thread(target=app.reader.search, args=("ready",), daemon=True).start()  # reads what searches look through


def on_server_unloaded(server_context: Any) -> None:
    """Ends the processes that compute, and closes the databases."""
    scoring.close()
    worker.close()
    runs.close_all()


def on_session_created(session_context: Any) -> None:
    """One line a session (Bokeh calls this one synchronously)."""
    log.info("session %s opened", session_context.id[:8])


def on_session_destroyed(session_context: Any) -> None:
    """One line a session."""
    log.info("session %s closed", session_context.id[:8])
