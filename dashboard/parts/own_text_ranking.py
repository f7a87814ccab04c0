"""The answers by reward, highest first, re-ordered as the sliders move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from dashboard.escape import shorten
from dashboard.parts.aligned import aligned
from dashboard.parts.own_text_model import Draft
from dashboard.parts.own_text_ranks import Place
from dashboard.theme import script, sheet


class OwnTextRanking(JSComponent):
    """One line an answer, with its place, its bar and its reward before and after; lines glide to their new place.

    Text enters the page only as text nodes. Set `content` (`ranking_content`) and `selected`.
    """

    content = param.Dict({})
    selected = param.Integer(None, allow_None=True, doc="Index of the open answer.")
    large = param.Boolean(False)

    _esm = script("own_text_ranking")
    _stylesheets: ClassVar[list[str]] = [sheet("parts"), sheet("own_text")]

    def __init__(self, *, on_open: Callable[[int], None], **params: Any) -> None:
        """`on_open` is called with the index of the answer whose line is clicked."""
        super().__init__(**params)
        self._on_open = on_open

    def _handle_msg(self, data: Any) -> None:
        index = data.get("open") if isinstance(data, dict) else None
        if isinstance(index, int) and not isinstance(index, bool):
            self._on_open(index)


def ranking_content(
    places: Sequence[Place], drafts: Sequence[Draft], changed: int, *, number: int, large: bool
) -> dict[str, Any]:
    """The ranking as plain values to draw.

    Args:
        places: in order of rank.
        drafts: the scored answers, by index.
        changed: features whose slider is not at 1.
        number: of the scoring; a new one is brought into sight.
        large: whole texts instead of one line of each.
    """
    write = aligned([value for place in places for value in (place.before, place.after)], digits=4)
    ends = [0.0, *(value for place in places for value in (place.before, place.after))]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    zero = -low / span

    def at(value: float) -> float:
        return 100 * (value - low) / span

    rows = [
        {
            "index": place.index,
            "rank": place.rank,
            "was": place.was,
            "name": f"Answer {place.index + 1}",
            "note": drafts[place.index].note,
            "sensitive": drafts[place.index].sensitive,
            "text": drafts[place.index].text if large else shorten(drafts[place.index].text, 300),
            "before": write(place.before),
            "after": write(place.after),
            "bar": [min(100 * zero, at(place.after)), abs(at(place.after) - 100 * zero)],
            "up": place.after >= 0,
            "mark": at(place.before),
        }
        for place in places
    ]
    moved = sum(place.rank != place.was for place in places)
    by = f"Steered by {changed} feature{'' if changed == 1 else 's'}"
    if not changed:
        said = "By reward, highest first."
        if len(places) == 1:
            said = "One answer; add another to see which one the model prefers."
    elif all(place.before == place.after for place in places):
        said = f"{by}, active in none of these answers: nothing changes."
    elif len(places) == 1:
        said = f"{by}."
    else:
        said = f"{by}: {moved} of {len(places)} answers change place." if moved else f"{by}: same order."
    return {"rows": rows, "zero": 100 * zero, "steered": bool(changed), "said": said, "number": number}
