"""The demo model on the local benchmark files, as a table in docs/benchmarks.md; nothing is done where they are not here.

    python -m benchmarks.embedded_benchmarks --runs runs [--limit N]

Evaluations that are stored already under the folder of runs are read, interrupted ones go on where they stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markers import put_between
from core.evaluate.benchmark_model import Weights, open_run
from core.evaluate.items import TITLES, read_items
from core.evaluate.run_benchmark import evaluate
from core.evaluate.score_items import benchmark_figures
from core.paths import ROOT
from core.progress import RichProgress
from core.runs import find_run
from core.store.benchmarks import BenchmarkResult, read_benchmarks
from core.store.benchmarks import read_items as stored_items
from core.store.manifest import read_manifest
from core.store.reader import RunReader

FILES = {
    "rewardbench": "rewardbench_style_eval.parquet",
    "rewardbench2": "rewardbench2_safety.parquet",
    "rm-bench": "rm_bench.parquet",
}


def scored(run: Path, data: Path, runs: Path, limit: int | None, stored: bool) -> list[BenchmarkResult]:
    """The run's results on the three files, computed (or, with `stored`, left out) where they are not there yet."""
    run_id = read_manifest(run).run_id
    results, model = [], None
    for benchmark, name in FILES.items():
        items = read_items(benchmark, str(data / name), limit)
        wanted = (items.origin["sha256"], limit)
        there = [
            one
            for one in read_benchmarks(runs, run_id)
            if one.benchmark == benchmark
            and not one.facts["changed"]
            and (one.facts["data"].get("sha256"), one.facts["data"].get("limit")) == wanted
        ]
        if not there and stored:
            continue
        if not there:
            model = model or open_run(run)
            assert model.scorer is not None
            own = Weights(model.scorer.head.weights)
            there = [evaluate(items, model, runs, run_id, RichProgress(), title="demo", weights=own)]
        results.append(there[0])
    return results


def table(results: list[BenchmarkResult], prompts: set[str]) -> list[str]:
    """The figures that there are, with what the longer answer would score by the same rules; then what is missing."""
    lines = [
        "| benchmark | figure | score, % | 95 % | n | prompts | longer answer, % |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    for result in results:
        items = stored_items(result)
        lengths = [np.array([len(text) for text in texts], np.float64) for texts in items["answers"].to_list()]
        longer = {one.name: one.value for one in benchmark_figures(result.benchmark, items, lengths)}
        title, known = TITLES[result.benchmark], [one for one in result.figures if one["value"] is not None]
        lines += [_line(title, one, longer[one["name"]]) for one in known]
        absent = [one["name"] for one in result.figures if one["value"] is None]
        facts = result.facts["counts"]
        seen = len(prompts & set(items["prompt_id"].to_list()))
        notes.append(
            f"{title}: {facts['items']:,} items, {facts['answers']:,} answers ({facts['different_answers']:,} different, "
            f"{facts['truncated']:,} cut); {seen} of its prompts are also in the run's training data. Missing: "
            f"{', '.join(absent) or 'nothing'}."
        )
        notes += [
            f"In {title}, {one['name']}: {one['note']}." for one in known if one["note"] and one["kind"] != "subset"
        ]
    there = {result.benchmark for result in results}
    notes += [f"{TITLES[benchmark]}: not measured yet." for benchmark in FILES if benchmark not in there]
    return [*lines, "", *(f"- {note}" for note in notes)]


def _line(title: str, one: dict[str, Any], longer: float | None) -> str:
    name = f"**{one['name']}**" if one["kind"] != "subset" else one["name"]
    span = "" if one["low"] is None else f"{100 * one['low']:.1f}–{100 * one['high']:.1f}"
    beside = "" if longer is None else f"{100 * longer:.1f}"
    return f"| {title} | {name} | {100 * one['value']:.1f} | {span} | {one['n']:,} | {one['n_prompts']:,} | {beside} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="demo")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--stored", action="store_true", help="only results that are stored already; no model is run")
    given = parser.parse_args()
    lacking = [name for name in FILES.values() if not (given.data / name).is_file()]
    if lacking:
        print(f"Nothing measured: {', '.join(lacking)} not in {given.data}; these research files are not shipped.")
        return
    run = find_run(given.run, given.runs)
    with RunReader.open(run) as reader:
        pairs = reader.table("pair")
    prompts = set(pairs.filter(pairs["split"] == "train")["prompt_id"].to_list())
    lines = table(scored(run, given.data, given.runs, given.limit, given.stored), prompts)
    print("\n".join(lines))
    put_between(ROOT / "docs" / "benchmarks.md", "embedded-benchmarks", lines)


if __name__ == "__main__":
    main()
