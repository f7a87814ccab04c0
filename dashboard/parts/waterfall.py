"""The waterfall of a pair: which features make the chosen and the rejected reward, and the margin between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import param
import polars as pl
from panel.custom import JSComponent

from core.rewards.decomposition import SUM_TOLERANCE
from dashboard.escape import signed
from dashboard.parts.aligned import aligned
from dashboard.parts.contributions import SIDES, WaterfallTable
from dashboard.theme import script, sheet

CUT = 2.0
"""Bars of "other" and of the sum are cut when they are this much longer than the longest feature bar."""


class Waterfall(JSComponent):
    """A table whose cells are bars: one row a feature, columns chosen, rejected and difference.

    It is a real `<table>`, so that the same element is the chart, its table view and what a screen reader reads; text
    only ever enters as text nodes. Updated in place: set `content` and `selected`.
    """

    content = param.Dict({}, doc="What `waterfall_content` returns; {} draws nothing.")
    selected = param.Integer(None, allow_None=True, doc="feature_id of the marked row.")

    _esm = script("waterfall")
    _stylesheets: ClassVar[list[str]] = [sheet("waterfall")]

    def __init__(self, *, on_select: Callable[[int], None], **params: Any) -> None:
        """`on_select` is called with a feature_id when its row is clicked."""
        super().__init__(**params)
        self._on_select = on_select

    def _handle_msg(self, data: Any) -> None:
        feature = data.get("feature") if isinstance(data, dict) else None
        if isinstance(feature, int):
            self._on_select(feature)


def waterfall_content(
    table: WaterfallTable,
    names: Mapping[int, str | None],
    link: Callable[[int], str],
    titles: tuple[str, str] = ("Chosen", "Rejected"),
    steer: Callable[[int], str] | None = None,
) -> dict[str, Any]:
    """The waterfall as plain values to draw: geometry in reward units, all numbers already written out.

    The bars of both answers start at zero and share one scale, so that they compare by length; the difference is
    stacked from 0 to the margin, feature by feature.

    Args:
        names: label of each listed feature, None where it has none.
        link: the href of a feature's card.
        titles: what the two answers are called.
        steer: the href that puts a feature on a slider; None = no such link.
    """
    rows = table.rows.to_dicts()
    others = dict(zip((*SIDES, "difference"), table.other, strict=True))
    totals = {"chosen": table.chosen.total, "rejected": table.rejected.total, "difference": table.difference}
    write = aligned([row[key] for row in rows for key in totals] or list(totals.values()))
    limit = _side_limit(
        [abs(row[side]) for row in rows for side in SIDES],
        [total[side] for total in (totals, others) for side in SIDES],
    )

    drawn, level, levels = [], 0.0, [0.0]
    for row in rows:
        cells = [
            _side_cell(row[side], limit, write, _why(row, side), active=row[f"{side}_activation"] is not None)
            for side in SIDES
        ]
        drawn.append(_feature_row(row, names, link, [*cells, _step_cell(level, row["difference"], write)], steer))
        level += row["difference"]
        levels.append(level)
    if table.n_other:
        why = f"sum over {table.n_other:,} features"
        cells = [_side_cell(others[side], limit, write, why) for side in SIDES]
        cells.append(_step_cell(level, others["difference"], write))
        name = f"other ({table.n_other:,} feature{'' if table.n_other == 1 else 's'})"
        drawn.append({"feature": None, "kind": "other", "name": name, "cells": cells})
        levels.append(level + others["difference"])
    cells = [_side_cell(totals[side], limit, write, "sum over all features") for side in SIDES]
    cells.append(_step_cell(0.0, totals["difference"], write))
    drawn.append({"feature": None, "kind": "sum", "name": "sum = reward", "cells": cells})

    low, high = min(levels), max(levels)
    state, sentence = sum_sentence(table)
    sides = [{"title": title, "kind": "side", "low": -limit, "high": limit} for title in titles]
    return {
        "caption": "Contributions to the reward by feature, largest difference first",
        "columns": [*sides, {"title": "Chosen − rejected", "kind": "stack", "low": low, "high": high}],
        "rows": drawn,
        "state": state,
        "sentence": sentence,
    }


def token_content(
    rows: pl.DataFrame, total: float, title: str, names: Mapping[int, str | None], link: Callable[[int], str]
) -> dict[str, Any]:
    """What the features of one token add to the reward, as content of a Waterfall with one column.

    Args:
        rows: from `token_features`.
        total: what the token adds, over all its features.
        title: what the column is called.
    """
    listed = rows.to_dicts()
    write = aligned([row["contribution"] for row in listed] or [total])
    limit = _side_limit([abs(row["contribution"]) for row in listed], [total])
    drawn = [
        _feature_row(
            row, names, link, [_side_cell(row["contribution"], limit, write, f"activation {row['activation']:.4g}")]
        )
        for row in listed
    ]
    drawn.append(
        {
            "feature": None,
            "kind": "sum",
            "name": "sum over all its features",
            "cells": [_side_cell(total, limit, write, "")],
        }
    )
    return {
        "caption": title,
        "columns": [{"title": title, "kind": "side", "low": -limit, "high": limit}],
        "rows": drawn,
        "state": "",
        "sentence": "",
    }


def _feature_row(
    row: Mapping[str, Any],
    names: Mapping[int, str | None],
    link: Callable[[int], str],
    cells: list[dict[str, Any]],
    steer: Callable[[int], str] | None = None,
) -> dict[str, Any]:
    feature = int(row["feature_id"])
    return {
        "feature": feature,
        "name": names.get(feature) or "",
        "weight": f"w {signed(row['weight'])}",
        "link": link(feature),
        "steer": steer(feature) if steer is not None and row["weight"] else "",
        "cells": cells,
    }


def sum_sentence(table: WaterfallTable) -> tuple[str, str]:
    """Whether the contributions sum to the rewards: ('ok', 'wrong' or 'missing', one sentence with the error)."""
    if math.isnan(table.error):
        return "missing", "The reward is missing, so the sum of the contributions cannot be checked."
    sums = f"chosen {signed(table.chosen.total, 6)}, rejected {signed(table.rejected.total, 6)}"
    if table.exact:
        error = f"{table.error:.0e}".replace("e-0", "e-") if table.error else "0"
        return "ok", f"contributions sum to the reward (error {error}): {sums}"
    allowed = SUM_TOLERANCE * table.scale
    return "wrong", (
        f"Contributions do not sum to the reward: error {table.error:.2g}, allowed {allowed:.1g} ({sums}; stored "
        f"{signed(table.chosen.reward, 6)} and {signed(table.rejected.reward, 6)}). Do not rely on this decomposition; "
        "run `rewardscope doctor` on the run."
    )


def _side_limit(features: list[float], totals: list[float]) -> float:
    """Half the width of the answers' axis: everything, unless a sum would squeeze the features' bars out of sight."""
    longest = max(features, default=0.0)
    whole = max([longest, *(abs(total) for total in totals)])
    return (min(whole, CUT * longest) if longest > 0 else whole) or 1.0


def _side_cell(
    value: float, limit: float, write: Callable[[float], str], why: str, active: bool = True
) -> dict[str, Any]:
    end = max(-limit, min(limit, value))
    return {
        "start": 0.0,
        "end": end,
        "text": write(value) if active else "–",
        "why": (why if active else "not active in this answer") + ("; the bar is cut" if abs(value) > limit else ""),
        "cut": abs(value) > limit,
    }


def _step_cell(level: float, value: float, write: Callable[[float], str]) -> dict[str, Any]:
    return {"start": level, "end": level + value, "text": write(value), "why": "chosen − rejected", "cut": False}


def _why(row: Mapping[str, Any], side: str) -> str:
    activation = row[f"{side}_activation"]
    return "" if activation is None else f"activation {activation:.4g} × weight {signed(row['weight'], 4)}"
