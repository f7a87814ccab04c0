"""From the rewards of a benchmark's answers to results of items and figures of cells. Pure: a steering calls it again.

Items come as the frame that core/store/benchmarks keeps (ITEM_SCHEMA); rewards as one array for each item, right answers
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from core.evaluate.figures import Figure, Prompts, figure
from core.evaluate.rewardbench import SECTIONS, rewardbench_figures, right
from core.evaluate.rewardbench2 import TIES, best_of, rewardbench2_figures
from core.evaluate.rm_bench import DIFFICULTIES, STYLES, comparisons, rm_bench_figures

RULES = "1"
"""Raise it when a rule changes what a figure means."""

Rewards = Sequence[np.ndarray]


def benchmark_figures(benchmark: str, items: pl.DataFrame, rewards: Rewards) -> list[Figure]:
    """Every figure of a benchmark, in table order.

    Args:
        items: ITEM_SCHEMA.
        rewards: float64 [answers] of each item.
    """
    subset, prompt = items["subset"].to_list(), items["prompt_id"].to_list()
    if benchmark == "rewardbench":
        return rewardbench_figures(subset, _outcomes(items, rewards)[0] > 0, prompt)
    if benchmark == "rewardbench2":
        correct = items["n_correct"].to_list()
        return rewardbench2_figures(
            subset, items["item_id"].to_list(), [each.tolist() for each in rewards], correct, prompt
        )
    if benchmark == "rm-bench":
        chosen, rejected = by_style(items, rewards)
        return rm_bench_figures(subset, chosen, rejected, prompt)
    return _pair_figures(items, rewards)


@dataclass(frozen=True)
class CellItems:
    """The items behind one cell.

    Attributes:
        index: int64 [n], their item_index, ascending.
        result: float64 [n], what each adds to the cell's mean: 1 right, 0 wrong, in between where a rule shares
            (RewardBench 2: a tie for the best; RM-Bench: the share of its comparisons).
        margin: float64 [n], reward of the right answer less that of the strongest wrong one (several right ones: the
            lowest of them; RM-Bench: the smallest among the cell's comparisons).
    """

    index: np.ndarray
    result: np.ndarray
    margin: np.ndarray


def cell_items(benchmark: str, items: pl.DataFrame, rewards: Rewards, cell: str) -> CellItems:
    """The items a figure is made of; none for a cell the benchmark does not have."""
    subset = items["subset"].to_numpy()
    if benchmark == "rm-bench":
        return _style_cell(items, rewards, cell)
    result, margin = _outcomes(items, rewards)
    if benchmark == "rewardbench2":
        shared = [float("nan") if name == TIES else best_of(own) for name, own in zip(subset, rewards, strict=True)]
        result = np.where(
            np.isnan(shared), result, shared
        )  # Ties has no result of one prompt: all right above all wrong
    if cell in ("", "overall"):
        here = np.ones(len(subset), bool)
    elif benchmark == "rewardbench" and cell in SECTIONS:
        here = np.isin(subset, list(SECTIONS[cell]))
    else:
        here = subset == cell
    at = np.flatnonzero(here)
    return CellItems(at, result[at], margin[at])


def by_style(items: pl.DataFrame, rewards: Rewards) -> tuple[np.ndarray, np.ndarray]:
    """RM-Bench: rewards by style of the right and of the wrong answers, float64 [n, 3] each, NaN = no such answer."""
    found = np.full((2, len(items), len(STYLES)), np.nan)
    rows = zip(items["styles"].to_list(), items["n_correct"].to_list(), rewards, strict=True)
    for at, (styles, n_correct, own) in enumerate(rows):
        for position, style in enumerate(styles):
            found[int(position >= n_correct), at, STYLES.index(style)] = own[position]
    return found[0], found[1]


def _outcomes(items: pl.DataFrame, rewards: Rewards) -> tuple[np.ndarray, np.ndarray]:
    """Whether every right answer is strictly above every wrong one (float64 [n]), and by how much."""
    n_correct = items["n_correct"].to_list()
    lowest = np.array([own[:n].min() for own, n in zip(rewards, n_correct, strict=True)])
    highest = np.array([own[n:].max() for own, n in zip(rewards, n_correct, strict=True)])
    return right(lowest, highest).astype(np.float64), lowest - highest


def _style_cell(items: pl.DataFrame, rewards: Rewards, cell: str) -> CellItems:
    domain, _, difficulty = cell.rpartition(" ") if cell.rpartition(" ")[2] in DIFFICULTIES else (cell, "", "")
    if cell in DIFFICULTIES:
        domain, difficulty = "", cell
    chosen, rejected = by_style(items, rewards)
    won, there = comparisons(chosen, rejected)
    i, j = np.indices((3, 3))
    counted = {"hard": i < j, "normal": i == j, "easy": i > j}.get(difficulty, np.ones((3, 3), bool))
    there = there & counted
    subset = items["subset"].to_numpy()
    everything = domain in ("", "overall") or domain.startswith("mean of ")
    here = np.ones(len(subset), bool) if everything else subset == domain
    at = np.flatnonzero(here & there.any(axis=(1, 2)))
    margins = np.where(there, chosen[:, :, None] - rejected[:, None, :], np.inf).min(axis=(1, 2))
    shares = (won & there).sum(axis=(1, 2))[at] / there.sum(axis=(1, 2))[at]
    return CellItems(at, shares, margins[at])


def _pair_figures(items: pl.DataFrame, rewards: Rewards) -> list[Figure]:
    """Accuracy over all pairs and by domain; a pair is right when its lowest right answer is above its highest wrong one."""
    correct, _ = _outcomes(items, rewards)
    subset, prompt = items["subset"].to_numpy(), items["prompt_id"].to_numpy()

    def accuracy(name: str, kind: str, here: np.ndarray) -> Figure:
        drawn = Prompts(prompt[here].tolist(), f"pairs/{name}")
        return figure(name, kind, float(correct[here].mean()), drawn.means(correct[here]), int(here.sum()), drawn.n)

    everything = accuracy("overall", "overall", np.ones(len(subset), bool))
    return [everything, *(accuracy(str(name), "section", subset == name) for name in np.unique(subset))]


def with_results(benchmark: str, items: pl.DataFrame, rewards: Rewards) -> pl.DataFrame:
    """The items with their rewards, and result and margin over the whole benchmark."""
    found = cell_items(benchmark, items, rewards, "overall")
    columns: dict[str, Any] = {
        "rewards": pl.Series([own.tolist() for own in rewards], dtype=pl.List(pl.Float64)),
        "result": pl.Series(found.result, dtype=pl.Float64),
        "margin": pl.Series(found.margin, dtype=pl.Float64),
    }
    return items.with_columns(**columns)
