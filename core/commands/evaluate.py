"""`rewardscope evaluate`: scores a benchmark and stores the result beside the runs (docs/benchmarks.md)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from core.commands.common import AsJson, RunName, Runs, app, command, out, plain, print_json
from core.errors import ConfigError

if TYPE_CHECKING:
    from core.store.benchmarks import BenchmarkResult

Benchmark = Annotated[str, typer.Argument(help="rewardbench, rewardbench2, rm-bench or pairs.")]


@app.command()
@command
def evaluate(
    benchmark: Benchmark,
    run: RunName = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="A file (the Hub's own or the uniform pair schema) or a dataset's name; default: the Hub's."
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Score this checkpoint instead of a run: SARM or a reward model.")
    ] = None,
    steering: Annotated[Path | None, typer.Option("--steering", help="A steering file: changed head weights.")] = None,
    head: Annotated[Path | None, typer.Option("--head", help="Another head.safetensors for the same features.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many prompts, evenly taken.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Name of this variant; '' replaces the plain one.")] = None,
    dtype: Annotated[str, typer.Option(help="Of --model: float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Score a benchmark by its own rules; figures carry n and a 95 % interval."""
    from core.evaluate.items import BENCHMARKS, read_items
    from core.store.benchmarks import result_folder

    if benchmark not in BENCHMARKS:
        raise ConfigError(f"There is no benchmark {benchmark!r}; use {', '.join(BENCHMARKS)}.")
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"--dtype {dtype!r} is not known; use float32 or bfloat16.")
    result_folder(Path(), "", benchmark, tag or "")  # a tag that cannot be used is said before anything is read
    items = read_items(benchmark, data, limit)

    from core.evaluate.benchmark_model import chosen_weights, open_folder, open_run, with_features_of
    from core.evaluate.run_benchmark import evaluate as score
    from core.paths import runs_folder
    from core.progress import RichProgress, Silent
    from core.runs import find_run
    from core.store.manifest import read_manifest

    found = find_run(run, runs) if model is None or run is not None else None
    opened = open_folder(model, dtype=dtype, device=device) if model else open_run(_given(found), device)
    run_id, title = f"model-{opened.facts['weights_sha256'][:12]}", str(opened.facts["name"])
    if found is not None:
        manifest, opened = read_manifest(found), with_features_of(opened, found)
        run_id, title = manifest.run_id, manifest.name
    if tag is None:
        tag = _default_tag(steering, head, model if found is not None else None)
    result = score(
        items,
        opened,
        runs or runs_folder(),
        run_id,
        Silent() if as_json else RichProgress(),
        title=title,
        tag=tag,
        weights=chosen_weights(opened, steering, head),
    )
    if as_json:
        print_json({"folder": str(result.folder), **result.facts})
    else:
        _print(result)


def _given(folder: Path | None) -> Path:
    assert folder is not None
    return folder


def _default_tag(*files: Path | None) -> str:
    """The names of what makes this a variant; '' for the run as it is."""
    names = [file.resolve().stem if file.is_file() else file.resolve().name for file in files if file is not None]
    return "-".join("".join(c if c.isalnum() or c in "._-" else "-" for c in name) for name in names)[:60].lstrip("._-")


def _print(result: BenchmarkResult) -> None:
    from core.evaluate.published import comparability

    counts, facts = result.facts["counts"], result.facts
    name = f"{facts['title']}{f' ({result.tag})' if result.tag else ''}"
    table = Table(title=plain(f"{name} on {result.benchmark}"), title_justify="left")
    for column, justify in (("", "left"), ("score", "right"), ("95 %", "left"), ("n", "right"), ("note", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for one in result.figures:
        table.add_row(*_row(one))
    out.print(table)
    out.print(
        f"{counts['items']:,} items, {counts['answers']:,} answers ({counts['different_answers']:,} different, "
        f"{counts['truncated']:,} cut at {facts['model']['max_length']:,} tokens, {counts['prompt_cut']:,} with a cut prompt). "
        "Intervals: bootstrap over prompts.",
        highlight=False,
    )
    if skipped := facts["data"].get("n_skipped"):
        out.print(f"{skipped:,} rows were left out; the first: {facts['skipped'][0]['reason']}", highlight=False)
    for sentence in comparability(result.benchmark, facts["data"]):
        out.print(plain(sentence))
    out.print(plain(f"Stored in {result.folder}."))


def _row(one: dict[str, Any]) -> list[Any]:
    name = one["name"] if one["kind"] != "subset" else f"  {one['name']}"
    if one["value"] is None:
        return [plain(name), "missing", "", "", plain(one["note"])]
    interval = "" if one["low"] is None else f"[{100 * one['low']:.1f}, {100 * one['high']:.1f}]"
    return [plain(name), f"{100 * one['value']:.1f}", interval, f"{one['n']:,}", plain(one["note"])]
