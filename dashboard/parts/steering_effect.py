"""What a steering does to rewards: both densities before and after, and the figures beside them."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import param
from panel.custom import JSComponent

from core.evaluate.specificity import AccuracyChange, Shift, Specificity, SteeringData
from dashboard.escape import known, percent, plain, shorten, signed
from dashboard.parts.impact_curve import points_text
from dashboard.theme import script, sheet

BINS = 60
TAIL = 0.002
"""Share of the steered rewards beyond each end of the axis; they are counted in the outermost bars."""
NARROW = 1e-9
"""Rewards closer together than this are drawn as one bar in the middle of an axis one unit wide."""
MISSING = "n/a"

Span = tuple[float, float]


class SteeringEffect(JSComponent):
    """Draws what `effect_content` returns, in place."""

    content = param.String("{}", doc="What it draws, as JSON: one string is quicker on its way than a tree of values.")

    _esm = script("steering_effect")
    _stylesheets: ClassVar[list[str]] = [sheet("parts"), sheet("steering")]


def as_json(content: dict[str, Any]) -> str:
    """Content as the components take it; every figure in it is finite or None."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def span_of(before: np.ndarray, after: np.ndarray, at_least: Span | None = None) -> Span:
    """The ends of the reward axis.

    Args:
        before, after: float64 [n], rewards of the answers drawn.
        at_least: ends it must reach too: while a slider is dragged the axis grows but never shrinks.
    """
    low, high = np.quantile(after, [TAIL, 1 - TAIL])
    low, high = min(float(low), float(before.min())), max(float(high), float(before.max()))
    if at_least is not None:
        return min(low, at_least[0]), max(high, at_least[1])
    air = 0.02 * (high - low) if high - low > NARROW else 0.5
    return low - air, high + air


def density(rewards: np.ndarray, span: Span) -> list[float]:
    """Share of the answers in each of BINS bars between the ends; beyond them counts in the outermost."""
    low, high = span
    place = np.clip(((rewards - low) * (BINS / (high - low))).astype(np.int64), 0, BINS - 1)
    return [round(float(share), 6) for share in np.bincount(place, minlength=BINS) / max(len(rewards), 1)]


def effect_content(data: SteeringData, after: np.ndarray, result: Specificity, span: Span, move: int) -> dict[str, Any]:
    """Everything that is drawn, as JSON.

    Args:
        after: float64 [n_responses], steered rewards.
        result: their specificity.
        span: ends of the reward axis.
        move: number of the slider move this belongs to.
    """
    name = shorten(result.slice, 60)
    target, complement = data.rows(result.slice)
    groups = [
        _group(f"Target: chosen answers of {name}", data.rewards[target], after[target], result.target, span),
        _group("Complement: every other answer", data.rewards[complement], after[complement], result.complement, span),
    ]
    return {
        "move": move,
        "low": span[0],
        "high": span[1],
        "groups": groups,
        "headline": headline(result),
        "tables": [_shifts(result), _accuracies(result, name)],
    }


def _group(title: str, before: np.ndarray, after: np.ndarray, shift: Shift, span: Span) -> dict[str, Any]:
    was, now = density(before, span), density(after, span)
    means = f"mean {_signed(shift.before)} → {_signed(shift.after)}"
    return {
        "title": title,
        "said": f"{shift.n:,} held-out answers of {shift.n_prompts:,} prompts, {means}",
        "before": was,
        "after": now,
        "tall": max(*was, *now),
        "mean_before": shift.before,
        "mean_after": shift.after,
    }


def _shifts(result: Specificity) -> dict[str, Any]:
    both = (result.target, result.complement)
    ratio = result.ratio
    if known(ratio.value):
        specific = {"text": f"{plain(float(ratio.value or 0), 2)} ×", "interval": span_text(ratio.low, ratio.high, 2)}
    else:
        specific = {"text": MISSING, "interval": ratio.why}
    return {
        "columns": ["target", "complement"],
        "rows": [
            {"name": "mean before", "cells": [{"text": _signed(one.before)} for one in both]},
            {"name": "mean after", "cells": [{"text": _signed(one.after)} for one in both]},
            {
                "name": "mean shift",
                "kind": "lead",
                "help": "after − before, with the 95 % interval over prompts",
                "cells": [{"text": _signed(one.shift), "interval": span_text(one.low, one.high, 2)} for one in both],
            },
            {
                "name": "answers moved",
                "help": "share of answers whose reward changes at all: a steered feature is active in them",
                "cells": [
                    {"text": MISSING if one.moved is None else percent(one.moved, 3), "interval": f"of {one.n:,}"}
                    for one in both
                ],
            },
            {
                "name": "specificity",
                "help": "mean shift of the target over mean shift of the complement, with Fieller's 95 % interval; far from 0 "
                "in either direction = the target moves more than the rest",
                "cells": [specific],
            },
        ],
    }


def _accuracies(result: Specificity, name: str) -> dict[str, Any]:
    both = (result.slice_accuracy, result.accuracy)
    return {
        "columns": [f"pairs of {shorten(name, 30)}", "all held-out pairs"],
        "rows": [
            {
                "name": "pair accuracy",
                "cells": [{"text": f"{one.n:,}", "interval": f"{one.n_prompts:,} prompts"} for one in both],
            },
            {"name": "before", "cells": [_share(one.before, one.before_low, one.before_high) for one in both]},
            {"name": "after", "cells": [_share(one.after, one.after_low, one.after_high) for one in both]},
            {
                "name": "change, points",
                "kind": "lead",
                "help": "paired by pair, in percentage points, with the 95 % interval over prompts",
                "cells": [accuracy_change(one) for one in both],
            },
        ],
    }


def accuracy_change(one: AccuracyChange) -> dict[str, str]:
    """A change of accuracy in points with its interval."""
    if one.change is None:
        return {"text": MISSING}
    return {"text": points_text(one.change).removesuffix(" pts"), "interval": points_span(one.low, one.high)}


def headline(result: Specificity) -> str:
    """One sentence for whoever reads nothing else."""
    shift, n_harmed = result.target.shift, int(result.domains["harmed"].sum())
    if not shift and not result.complement.shift:
        return "Nothing moves: every multiplier is 1, or the features are active in none of these answers."
    moves = "does not move" if not shift else f"moves by {_signed(shift)}"
    harmed = "no domain is harmed" if not n_harmed else f"{n_harmed} domain{'s are' if n_harmed > 1 else ' is'} harmed"
    return (
        f"The target’s mean reward {moves}, the rest’s by {_signed(result.complement.shift)}. Of {result.accuracy.n:,} held-out "
        f"pairs {len(result.fixed):,} turn right, {len(result.broken):,} turn wrong; {harmed}."
    )


def span_text(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval, '' where there is none."""
    return f"[{signed(low, digits)}, {signed(high, digits)}]" if low is not None and high is not None else ""


def points_span(low: float | None, high: float | None) -> str:
    """An interval of a change of accuracy, in points."""
    if low is None or high is None:
        return ""
    return f"[{_points(low)}, {_points(high)}]"


def _points(bound: float) -> str:
    """A bound in points; one that is not 0 is never written as 0.0, for on which side it lies decides."""
    if 0 < abs(100 * bound) < 0.05:
        return signed(100 * bound, 1)
    return points_text(bound).removesuffix(" pts")


def _share(value: float | None, low: float | None, high: float | None) -> dict[str, str]:
    if value is None:
        return {"text": MISSING}
    interval = f"[{100 * low:.1f}, {100 * high:.1f}]" if low is not None and high is not None else ""
    return {"text": f"{100 * value:.1f} %", "interval": interval}


def _signed(value: float | None) -> str:
    return MISSING if value is None else signed(value)
