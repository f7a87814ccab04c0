"""Which points of the curves are known, which are still to be computed, and how far previews are off. No widgets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from core.store.sets import FeatureSet
from dashboard.escape import known

SHOWN = ("set", "random", "margin", "loss", "length")
"""Strategies in the order in which they are computed and drawn."""
WIDER = (0.1, 0.15, 0.2)
"""Ratios beyond the papers', so that the slider's whole way has a curve."""
LIMIT = 0.2
"""Where the slider ends; a link or the number box may go to 0.5."""
DEFAULT_RATIOS = {"poison": (0.005, 0.01, 0.025, 0.05), "denoise": (0.02, 0.04, 0.06, 0.08, 0.10)}
MEASURES = {
    "accuracy": ("accuracy", "accuracy_low", "accuracy_high"),
    "margin": ("mean_margin", "margin_low", "margin_high"),
}

Row = dict[str, Any]
Point = tuple[float, float, float, float]
"""Ratio, value, low, high; NaN where missing."""


class PointKey(NamedTuple):
    """One plan, by how it is made."""

    strategy: str
    direction: str
    action: str
    ratio: float
    seed: int
    set_key: str
    """Hash of the safety set for strategy 'set', '' otherwise: the baselines know no set."""


def set_key(one: FeatureSet | None) -> str:
    """What tells one set's plans from another's: its members."""
    return "" if one is None else f"{one.plus}{one.minus}"


def key_of(strategy: str, direction: str, action: str, ratio: float, seed: int, members: str) -> PointKey:
    """The key of a plan; only random plans have seeds and only the set's have members."""
    return PointKey(
        strategy,
        direction,
        action,
        round(ratio, 6),
        seed if strategy == "random" else 0,
        members if strategy == "set" else "",
    )


def ratios_of(config: dict[str, Any], direction: str) -> list[float]:
    """The curve's ratios: the run's own and some wider ones."""
    own = config.get("impact", {}).get(direction, DEFAULT_RATIOS[direction])
    return sorted({round(float(ratio), 6) for ratio in (*own, *WIDER)})


@dataclass
class KnownPoints:
    """The points measured so far, by plan.

    Attributes:
        unchanged: the head on unchanged pairs, by domain.
    """

    unchanged: dict[str, Row] = field(default_factory=dict)
    _rows: dict[PointKey, dict[str, Row]] = field(default_factory=dict)

    def add(self, frame: pl.DataFrame, members: str) -> None:
        """Takes rows of the table `impact` (previews); those of strategy 'set' belong to the set with these members."""
        for row in frame.filter(kind="preview").iter_rows(named=True):
            if row["strategy"] == "none":
                self.unchanged[row["domain"]] = row
                continue
            key = key_of(row["strategy"], row["direction"], row["action"], row["ratio"], row["seed"], members)
            self._rows.setdefault(key, {})[row["domain"]] = row

    def get(self, key: PointKey) -> dict[str, Row] | None:
        """The rows of a plan by domain, None while it is not known; a plan that changes nothing is the unchanged head."""
        return (self.unchanged or None) if key.ratio == 0 else self._rows.get(key)

    def missing(self, keys: Iterable[PointKey]) -> list[PointKey]:
        """Those that are not known, in order."""
        return [key for key in keys if self.get(key) is None]

    def keys(self, strategy: str, direction: str, action: str, members: str) -> list[PointKey]:
        """The known plans of one strategy, by ratio and seed."""
        start = key_of(strategy, direction, action, 0, 0, members)
        return sorted(key for key in self._rows if key[:3] == start[:3] and key.set_key == start.set_key)

    def line(self, strategy: str, direction: str, action: str, members: str, domain: str, measure: str) -> list[Point]:
        """One strategy's curve from ratio 0; for 'random' the mean over its seeds, without an interval."""
        value, low, high = MEASURES[measure]
        start = self.unchanged.get(domain)
        points = [(0.0, *_figures(start, value, low, high))] if start else []
        grouped: dict[float, list[Row]] = {}
        for key in self.keys(strategy, direction, action, members):
            row = self._rows[key].get(domain)
            if row is not None:
                grouped.setdefault(key.ratio, []).append(row)
        for ratio, rows in grouped.items():
            if len(rows) == 1:
                points.append((ratio, *_figures(rows[0], value, low, high)))
            else:
                points.append((ratio, float(np.mean([_number(row[value]) for row in rows])), np.nan, np.nan))
        return points

    def band(self, direction: str, action: str, domain: str, measure: str) -> list[tuple[float, float, float]]:
        """Lowest and highest value of the random plans at each ratio with at least two seeds, from ratio 0."""
        value = MEASURES[measure][0]
        found: dict[float, list[float]] = {}
        for key in self.keys("random", direction, action, ""):
            row = self._rows[key].get(domain)
            if row is not None and known(row[value]):
                found.setdefault(key.ratio, []).append(row[value])
        spread = [(ratio, min(values), max(values)) for ratio, values in found.items() if len(values) > 1]
        start = self.unchanged.get(domain)
        if spread and start and known(start[value]):
            spread.insert(0, (0.0, start[value], start[value]))
        return spread

    def seeds(self, direction: str, action: str) -> int:
        """How many random plans stand behind a point of the band."""
        return len({key.seed for key in self.keys("random", direction, action, "")})

    def by_plan(self) -> dict[tuple[str, str], Row]:
        """Every known preview by (plan id, domain)."""
        rows = [*self._rows.values(), self.unchanged]
        return {(row["plan"], domain): row for domains in rows for domain, row in domains.items()}


def wanted(
    strategy: str, direction: str, action: str, ratios: Sequence[float], seeds: Sequence[int], members: str
) -> list[PointKey]:
    """Every point of the page's curves in the order in which they are worth having: the chosen strategy first, the other
    single lines, then the random plans, seed after seed."""
    order = [strategy, *(name for name in SHOWN if name not in (strategy, "random")), "random"]
    keys = []
    for name in dict.fromkeys(order):
        for seed in seeds if name == "random" else (0,):
            keys += [key_of(name, direction, action, ratio, seed, members) for ratio in ratios]
    return [key for key in keys if key.strategy != "set" or members]


@dataclass(frozen=True)
class PreviewError:
    """How far previews are from the retrained points of the same plans.

    Attributes:
        scope: what was retrained: 'head', 'lora' or 'full'.
        n: pairs of points compared (a plan and a domain each, 'all' left out where there are others); plans: distinct plans.
        change: mean absolute error of the accuracy change, None when no change could be compared.
        accuracy: mean absolute error of the accuracy itself, None when none could be.
    """

    scope: str
    n: int
    plans: int
    change: float | None
    accuracy: float | None


def preview_errors(retrained: pl.DataFrame, previews: dict[tuple[str, str], Row]) -> list[PreviewError]:
    """One figure a scope, over the plans that have both.

    Args:
        retrained: rows of the review store's table `impact`; only those of kind 'retrained' count.
        previews: rows by (plan, domain), as `KnownPoints.by_plan`.
    """
    found = []
    rows = retrained.filter(pl.col("kind") == "retrained", pl.col("strategy") != "none")
    for (scope,), part in rows.group_by(["scope"], maintain_order=True):
        several = part.filter(pl.col("domain") != "all")
        pairs = [
            (row, previews[row["plan"], row["domain"]])
            for row in (several if len(several) else part).iter_rows(named=True)
            if (row["plan"], row["domain"]) in previews
        ]
        if pairs:
            plans = len({row["plan"] for row, _ in pairs})
            change, accuracy = (_error(pairs, name) for name in ("accuracy_change", "accuracy"))
            found.append(PreviewError(str(scope), len(pairs), plans, change, accuracy))
    return found


def _error(pairs: list[tuple[Row, Row]], column: str) -> float | None:
    gaps = [abs(one[column] - other[column]) for one, other in pairs if known(one[column]) and known(other[column])]
    return float(np.mean(gaps)) if gaps else None


def _figures(row: Row | None, *names: str) -> tuple[float, float, float]:
    value, low, high = (_number(row[name]) if row else np.nan for name in names)
    return value, low, high


def _number(value: Any) -> float:
    return float(value) if known(value) else float("nan")
