"""What the Benchmarks view shows: stored results, and the same under the steering of this session. No model is needed.

Opened results are shared by every session of the process; they are never changed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import polars as pl

from core.evaluate.items import BENCHMARKS
from core.evaluate.score_items import CellItems, benchmark_figures, cell_items
from core.rewards.feature_columns import FeatureColumns
from core.rewards.steering import SteeredRewards
from core.store.benchmarks import (
    Activations,
    BenchmarkResult,
    read_activations,
    read_benchmarks,
    read_items,
    read_weights,
)
from core.store.reader import RunReader
from dashboard import runs

LIVE = "steered-now"
"""Key of the row that follows this session's sliders."""
KEPT = 6
"""Opened results held in memory."""

WITHOUT_FEATURES = {"classifier": "ordinary reward model", "armorm": "objectives with a gate"}
"""Kinds of models whose rewards are no sums over features, in words."""


@dataclass(frozen=True)
class Opened:
    """A result with its items.

    Attributes:
        result: the stored one.
        items: ITEM_SCHEMA.
        activations, weights: of its answers and head; None for a model without features.
    """

    result: BenchmarkResult
    items: pl.DataFrame
    activations: Activations | None
    weights: np.ndarray | None

    @cached_property
    def rewards(self) -> list[np.ndarray]:
        """float64 [answers] of each item, as stored."""
        return [np.asarray(own, np.float64) for own in self.items["rewards"].to_list()]

    @cached_property
    def vectors(self) -> list[np.ndarray]:
        """The different answer behind each answer of each item."""
        return [np.asarray(own, np.int64) for own in self.items["vectors"].to_list()]

    @property
    def can_be_steered(self) -> bool:
        """Whether its rewards are those of a head on stored features."""
        return self.activations is not None and self.result.facts["model"]["kind"] != "classifier"

    @cached_property
    def _steered(self) -> SteeredRewards:
        assert self.activations is not None
        assert self.weights is not None
        flat = np.zeros(len(self.activations.ptr) - 1)
        flat[np.concatenate(self.vectors)] = np.concatenate(self.rewards)
        shape = (len(flat), self.activations.latents)
        columns = FeatureColumns(self.activations.ptr, self.activations.features, self.activations.values, shape)
        return SteeredRewards(columns, self.weights, flat)

    def steered(self, multipliers: Mapping[int, float]) -> list[np.ndarray]:
        """Rewards with other head weights: r' = r + sum_i (m_i - 1) w_i z_i."""
        flat = self._steered.another().rewards(multipliers)
        return [flat[rows] for rows in self.vectors]


@dataclass(frozen=True)
class Row:
    """One row of ours in the table.

    Attributes:
        key: how links name it.
        title, note: what it is called, and what makes it a variant.
        own: whether it is the open run's.
        opened: its items.
        multipliers: of the session's steering; {} for a stored row.
    """

    key: str
    title: str
    note: str
    own: bool
    result: BenchmarkResult
    multipliers: Mapping[int, float]

    @cached_property
    def opened(self) -> Opened:
        return open_result(self.result)

    @cached_property
    def rewards(self) -> list[np.ndarray]:
        return self.opened.steered(self.multipliers) if self.multipliers else self.opened.rewards

    @cached_property
    def figures(self) -> dict[str, dict[str, Any]]:
        """By name, in table order."""
        if not self.multipliers:
            return {one["name"]: one for one in self.result.figures}
        made = benchmark_figures(self.result.benchmark, self.opened.items, self.rewards)
        return {one.name: one.as_dict() for one in made}

    @property
    def weights(self) -> np.ndarray | None:
        """The head behind its rewards, float64 [M]."""
        weights = self.opened.weights
        if weights is None or not self.multipliers:
            return weights
        changed = weights.copy()
        for feature, by in self.multipliers.items():
            changed[feature] *= by
        return changed

    def cell(self, name: str) -> CellItems:
        """The items behind one of its figures."""
        return cell_items(self.result.benchmark, self.opened.items, self.rewards, name)


_opened: OrderedDict[tuple[str, str], Opened] = OrderedDict()
_lock = Lock()


def open_result(result: BenchmarkResult) -> Opened:
    """A result with its items, kept for the next caller.

    Raises:
        RunError: its files are missing or damaged.
    """
    key = (str(result.folder), str(result.facts.get("created")))
    with _lock:
        if key in _opened:
            _opened.move_to_end(key)
            return _opened[key]
    made = Opened(result, read_items(result), read_activations(result), read_weights(result))
    with _lock:
        _opened[key] = made
        while len(_opened) > KEPT:
            _opened.popitem(last=False)
    return made


def all_results() -> list[BenchmarkResult]:
    """Every stored result of the folder the page shows."""
    return read_benchmarks(runs.folder())


def benchmark_of(wanted: str, results: Sequence[BenchmarkResult], run_id: str) -> str:
    """The benchmark on show: the wanted one where it is one, else the first this run has results on, else the first."""
    if wanted in BENCHMARKS:
        return wanted
    own = [one.benchmark for one in results if one.run_id == run_id]
    there = own or [one.benchmark for one in results]
    return next((name for name in BENCHMARKS if name in there), BENCHMARKS[0])


def rows_of(
    benchmark: str, results: Sequence[BenchmarkResult], reader: RunReader, multipliers: Mapping[int, float]
) -> list[Row]:
    """The open run first, then it under this session's steering, its variants, and other runs and models."""
    run_id = reader.manifest.run_id
    here = [one for one in results if one.benchmark == benchmark]
    own = sorted((one for one in here if one.run_id == run_id), key=lambda one: one.tag)
    others = [one for one in here if one.run_id != run_id]
    rows = [
        Row(one.key, str(one.facts.get("title") or one.run_id), variant(one), one.run_id == run_id, one, {})
        for one in [*own, *others]
    ]
    changed = {feature: by for feature, by in multipliers.items() if by != 1}
    plain = next((row for row in rows if row.own and not row.result.tag), None)
    if changed and plain is not None and plain.opened.can_be_steered:
        what = f"the sliders' {len(changed)} feature{'' if len(changed) == 1 else 's'}"
        rows.insert(1, Row(LIVE, plain.title, f"steered now by {what}", True, plain.result, changed))
    return rows


def variant(result: BenchmarkResult) -> str:
    """What makes a result differ from the plain one, in words."""
    changed = result.facts.get("changed") or {}
    parts = [result.tag] if result.tag else []
    if steering := changed.get("steering"):
        n = len(steering["changes"])
        parts.append(f"steered, {n} feature{'' if n == 1 else 's'}")
    if head := changed.get("head"):
        parts.append(f"head {head['file']}")
    if words := WITHOUT_FEATURES.get(result.facts["model"]["kind"]):
        parts.append(words)
    return ", ".join(parts)
