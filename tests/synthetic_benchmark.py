"""Results of benchmarks beside a synthetic run, written as `rewardscope evaluate` writes them: known rewards, real rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.evaluate.items import Item
from core.evaluate.score_items import RULES, benchmark_figures, with_results
from core.store.benchmarks import Activations, BenchmarkResult, result_folder, write_benchmark
from core.store.reader import RunReader

SUBSETS = {
    "rewardbench": ("alpacaeval-easy", "llmbar-natural", "donotanswer", "hep-go", "of another name"),
    "rewardbench2": ("Safety", "Focus", "Math"),
    "rm-bench": ("chat", "code", "safety"),
}
STYLES = ("concise", "detailed_plain", "detailed_markdown")
OPENINGS = ("I would rather not do that,", "Here is one way:", "Nobody knows, but", "First of all,")


def write_synthetic_benchmark(
    runs: Path,
    run: Path,
    benchmark: str = "rewardbench2",
    *,
    tag: str = "",
    n: int = 36,
    bad: str = "",
    run_id: str = "",
    kind: str = "head",
    sae: str = "",
    seed: int = 0,
) -> BenchmarkResult:
    """A result of `n` prompts for a synthetic run; `bad` is put into every text."""
    rng = np.random.default_rng(seed)
    with RunReader.open(run) as reader:
        weights, manifest = reader.features.column("weight").copy(), reader.manifest
    items = [_item(benchmark, at, bad) for at in range(n)]
    counts = [len(item.answers) for item in items]
    activations = _activations(sum(counts), len(weights), rng)
    vectors = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    flat = activations.rewards(weights)
    each = [flat[rows] for rows in vectors]
    frame = with_results(benchmark, _frame(items, vectors), each)
    facts: dict[str, Any] = {
        "benchmark": benchmark,
        "tag": tag,
        "title": run.name + bad,
        "run_id": run_id or manifest.run_id,
        "created": f"2026-01-0{1 + seed}T00:00:00",
        "rules": RULES,
        "key": "synthetic",
        "data": {"path": "items.parquet", "n_items": n, "n_skipped": 0, "limit": None, "uniform": True},
        "model": {
            "kind": kind,
            "latents": len(weights),
            "sae_sha256": sae or manifest.sae["sha256"],
            "max_length": 512,
        },
        "changed": {},
        "offset": 0.0,
        "counts": {
            "items": n,
            "answers": sum(counts),
            "different_answers": sum(counts),
            "answer_tokens": 99,
            "truncated": 0,
        },
        "seconds": 1.0,
        "skipped": [],
        "figures": [one.as_dict() for one in benchmark_figures(benchmark, frame, each)],
    }
    folder = result_folder(runs, facts["run_id"], benchmark, tag)
    featureless = kind == "classifier"
    return write_benchmark(folder, facts, frame, None if featureless else activations, None if featureless else weights)


def _item(benchmark: str, at: int, bad: str) -> Item:
    names = SUBSETS[benchmark]
    subset = names[at % len(names)]
    n_answers = {"rewardbench": 2, "rewardbench2": 4, "rm-bench": 6}[benchmark]
    answers = [f"{OPENINGS[(at + i) % 4]} answer {i} to question {at}{bad}" for i in range(n_answers)]
    styles = (*STYLES, *STYLES) if benchmark == "rm-bench" else ()
    messages = [{"role": "user", "content": f"Question {at}: what would you do?{bad}"}]
    n_correct = 3 if benchmark == "rm-bench" else 1
    return Item(f"item-{at:02d}{bad}", messages, answers, n_correct, subset, "", styles)  # type: ignore[arg-type]


def _activations(n: int, latents: int, rng: np.random.Generator) -> Activations:
    rows = [np.sort(rng.choice(latents, 12, replace=False)) for _ in range(n)]
    values = rng.gamma(2.0, 1.0, 12 * n).astype(np.float32)
    return Activations(12 * np.arange(n + 1), np.concatenate(rows).astype(np.uint32), values, latents)


def _frame(items: list[Item], vectors: list[np.ndarray]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item_index": range(len(items)),
            "item_id": [item.item_id for item in items],
            "subset": [item.subset for item in items],
            "group": [item.group for item in items],
            "prompt_id": [item.prompt for item in items],
            "messages": [json.dumps(list(item.messages)) for item in items],
            "answers": [list(item.answers) for item in items],
            "n_correct": [item.n_correct for item in items],
            "styles": pl.Series([list(item.styles) for item in items], dtype=pl.List(pl.String)),
            "vectors": [rows.tolist() for rows in vectors],
            "truncated": [[False] * len(rows) for rows in vectors],
        }
    )
