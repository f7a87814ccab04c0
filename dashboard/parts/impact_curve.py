"""The curve: held-out accuracy or margin of a domain against the share of pairs changed, and every domain beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import param
from panel.custom import JSComponent

from dashboard.escape import known, signed
from dashboard.parts.impact_points import LIMIT, MEASURES, SHOWN, KnownPoints, Row
from dashboard.theme import script, sheet

NAMES = {
    "set": "this set",
    "random": "random",
    "margin": "reward margin",
    "loss": "loss",
    "length": "length",
}
"""Strategies as the drawing calls them."""
ACTED = {"flip": "flipped", "drop": "dropped"}
MEASURE_NAMES = {"accuracy": "held-out accuracy", "margin": "mean held-out margin"}
ALL = "all"


class ImpactCurve(JSComponent):
    """Draws what `curve_content` and `now_content` return; calls `on_ratio` while the marker is dragged and `on_domain`."""

    content = param.Dict({})
    now = param.Dict({})
    ratio = param.Number(0.05)

    _esm = script("impact_curve")
    _stylesheets: ClassVar[list[str]] = [sheet("impact")]

    def __init__(self, on_ratio: Callable[[float], None], on_domain: Callable[[str], None], **params: Any) -> None:
        super().__init__(**params)
        self._on_ratio, self._on_domain = on_ratio, on_domain

    def _handle_msg(self, data: Any) -> None:
        if not isinstance(data, dict):
            return
        ratio, domain = data.get("ratio"), data.get("domain")
        if isinstance(ratio, int | float) and 0 <= ratio <= 0.5:
            self._on_ratio(float(ratio))
        if isinstance(domain, str):
            self._on_domain(domain)


class RatioSlider(JSComponent):
    """A slider and a number box for the share of pairs that is changed; `ratio` follows every move."""

    ratio = param.Number(0.05, bounds=(0, 0.5))
    limit = param.Number(LIMIT, doc="Where the slider ends.")

    _esm = Path(__file__).with_name("ratio_slider.js").read_text(encoding="utf-8")
    _stylesheets: ClassVar[list[str]] = [sheet("impact")]


def domains_of(points: KnownPoints) -> list[str]:
    """'all', then the held-out domains, those with most pairs first."""
    rows = [row for name, row in points.unchanged.items() if name != ALL]
    rows.sort(key=lambda row: (-row["n"], row["domain"]))
    return [ALL, *(row["domain"] for row in rows)] if ALL in points.unchanged else [row["domain"] for row in rows]


def curve_content(
    points: KnownPoints,
    *,
    strategy: str,
    direction: str,
    action: str,
    members: str,
    measure: str,
    big: str,
    limit: float,
    retrained: Sequence[Row] = (),
) -> dict[str, Any]:
    """Everything the drawing needs, as JSON.

    Args:
        members: `set_key` of the open set, '' without one.
        measure: 'accuracy' or 'margin'.
        big: the domain drawn large.
        limit: right end of the axis.
        retrained: rows of the review store that belong here (same direction and action; their unchanged model is 'none').
    """
    value, low, high = MEASURES[measure]
    domains = []
    for name in domains_of(points):
        start = points.unchanged[name]
        lines = []
        for key in (*(one for one in SHOWN if one != strategy), strategy):  # the chosen one last, on top
            line = points.line(key, direction, action, members, name, measure)
            if len(line) > 1:
                seeds = points.seeds(direction, action)
                called = f"random, {seeds} seeds" if key == "random" and seeds > 1 else NAMES[key]
                shown = [_json(point) for point in line]
                lines.append({"key": key, "name": called, "main": key == strategy, "points": shown})
        domains.append(
            {
                "name": name,
                "title": domain_title(name),
                "help": f"{domain_title(name)}: {start['n']:,} held-out pairs of {start['n_prompts']:,} prompts",
                "n": start["n"],
                "unchanged": _none(start[value]),
                "text": amount(start[value], measure),
                "lines": lines,
                "band": [_json(point) for point in points.band(direction, action, name, measure)],
                "retrained": [
                    {
                        "ratio": row["ratio"],
                        "value": _none(row[value]),
                        "low": _none(row[low]),
                        "high": _none(row[high]),
                        "main": row["strategy"] in (strategy, "none"),
                        "said": retrained_text(row, measure),
                    }
                    for row in retrained
                    if row["domain"] == name
                ],
            }
        )
    return {
        "measure": measure,
        "big": big,
        "x_max": limit,
        "x_title": f"share of training pairs {ACTED[action]}",
        "summary": (
            f"{MEASURE_NAMES[measure].capitalize()} of {domain_title(big)} against the share of training pairs "
            f"{ACTED[action]}; the same figures stand in the table below."
        ),
        "domains": domains,
    }


def now_content(rows: dict[str, Row] | None, ratio: float, measure: str, state: str, big: str) -> dict[str, Any]:
    """The point at the slider's ratio for every domain.

    Args:
        rows: the plan's rows by domain, None while they are computed.
        state: 'done', 'computing' or 'failed'.
    """
    values = {name: _now(row, measure) for name, row in (rows or {}).items()}
    here = (rows or {}).get(big)
    if here:
        said = f"{percent_text(ratio)} → {values[big]['text']}{_interval(here, measure)}"
    else:
        said = percent_text(ratio) + {"computing": " · refitting …", "failed": " · no point"}.get(state, "")
    return {"ratio": ratio, "state": state, "values": values, "said": said}


def _now(row: Row, measure: str) -> dict[str, Any]:
    value, low, high = (_none(row[name]) for name in MEASURES[measure])
    changed = _none(row["accuracy_change"]) if measure == "accuracy" else None
    sure = changed is not None and known(row["change_low"]) and (row["change_low"] > 0 or row["change_high"] < 0)
    change = "" if changed is None else points_text(changed)
    return {"value": value, "low": low, "high": high, "text": amount(value, measure), "change": change, "sure": sure}


def domain_title(name: str) -> str:
    """How a domain is called on the page."""
    return "all domains" if name == ALL else name


def amount(value: Any, measure: str) -> str:
    """An accuracy in percent or a margin; 'n/a' where it is missing (plain text)."""
    if not known(value):
        return "n/a"
    return f"{100 * value:.1f} %" if measure == "accuracy" else signed(float(value))


def points_text(change: float) -> str:
    """A change of accuracy in percentage points."""
    return f"{100 * change:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0") + " pts"


def percent_text(ratio: float) -> str:
    return f"{100 * ratio:.4g} %"


def _interval(row: Row, measure: str) -> str:
    _, low, high = (row[name] for name in MEASURES[measure])
    if not known(low) or not known(high):
        return ""
    if measure == "accuracy":
        return f" ({100 * low:.1f}–{100 * high:.1f})"
    return f" ({signed(low)} to {signed(high)})"


def retrained_text(row: Row, measure: str) -> str:
    """A retrained point in words (plain text)."""
    scope = {"head": "head trained again", "lora": "LoRA", "full": "every weight"}.get(row["scope"], row["scope"])
    what = f"{percent_text(row['ratio'])} {ACTED[row['action']]} by {NAMES.get(row['strategy'], row['strategy'])}"
    what = "unchanged pairs" if row["strategy"] == "none" else what
    return f"Retrained ({scope}), {what}: {amount(row[MEASURES[measure][0]], measure)}{_interval(row, measure)}, n = {row['n']:,}"


def _json(point: Sequence[float]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in point]


def _none(value: Any) -> float | None:
    return float(value) if known(value) else None
