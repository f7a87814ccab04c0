"""The boxes for a prompt and answers: typed or pasted, added and removed, sent off with Ctrl+Enter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from dashboard.theme import script, sheet


class OwnTextEditor(JSComponent):
    """Shows `content`, reports what is typed. Text enters the page only as the value of a box or as a text node."""

    content = param.Dict({}, doc="prompt, answers [{text, note, sensitive}], earlier, version, example (a label).")
    limits = param.Dict({}, doc="answers, characters: the most there may be.")
    blocked = param.String("", doc="Why nothing can be scored now; '' = it can.")
    busy = param.Boolean(False, doc="A request is on its way; another one may still be sent.")
    large = param.Boolean(False)

    _esm = script("own_text_editor")
    _stylesheets: ClassVar[list[str]] = [sheet("parts"), sheet("own_text")]

    def __init__(self, *, on_message: Callable[[str, dict[str, Any]], None], **params: Any) -> None:
        """`on_message` is called with 'write' (its dict: prompt, answers), 'score', 'example', 'earlier' or 'seen'."""
        super().__init__(**params)
        self._on_message = on_message

    def _handle_msg(self, data: Any) -> None:
        if not isinstance(data, dict):
            return
        texts = data.get("texts")
        if (
            isinstance(texts, dict)
            and isinstance(texts.get("prompt"), str)
            and isinstance(texts.get("answers"), list)
            and all(isinstance(answer, str) for answer in texts["answers"])
        ):
            self._on_message("write", texts)
        for name in ("score", "example", "earlier", "seen"):
            if data.get(name) is True:
                self._on_message(name, {})
