"""The address bar, plain links and keys of the page, as one invisible component (what it does is in bridge.js)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import param
from panel.custom import JSComponent


class Bridge(JSComponent):
    """Mirrors `search` into the address bar and back, follows links that start with `?` in place, passes keys on."""

    search = param.String("", doc="The query string, '' or '?…'.")
    dark = param.Boolean(False)
    reveal = param.Boolean(False)
    present = param.Boolean(False, doc="Presentation mode: the page's header and rail are out of sight.")
    unsaved = param.Boolean(False, doc="Leaving the page would lose something; the browser asks before it does.")

    _esm = "".join(
        Path(__file__).with_name(f"{name}.js").read_text(encoding="utf-8") for name in ("late_rows", "bridge")
    )

    def __init__(self, on_key: Callable[[str], None], **params: Any) -> None:
        super().__init__(**params)
        self._on_key = on_key

    def _handle_msg(self, data: Any) -> None:
        if isinstance(data, dict) and isinstance(data.get("key"), str):
            self._on_key(data["key"])
