"""`rewardscope retrain`: trains the model again on a plan's edited pairs and puts the points beside the preview's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from core.commands.common import AsJson, RunName, Runs, app, command, out, print_json

SCOPES = "What is trained: the head alone, low-rank updates of the blocks and the head, or every weight."


@app.command()
@command
def retrain(
    run: RunName = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="Plan file; without one only the baseline is trained.")
    ] = None,
    scope: Annotated[str, typer.Option(help=f"head, lora or full. {SCOPES}")] = "lora",
    epochs: Annotated[float, typer.Option(min=0.001, help="Passes over the training pairs.")] = 1.0,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            min=0,
            help="Of the blocks: 2e-4 lora, 2e-5 full. Of a lone head: 1e-2 on features, 1e-3 on states.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pairs in one optimiser step.")] = 8,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=16, help="Tokens kept while training (default: as the run).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many training pairs, taken evenly.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Train on the unchanged pairs only (kept, and used by every plan).")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, mps or cuda (default: as the run).")] = None,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Train the model again on a plan's edited pairs and measure it on the held-out ones, beside the preview.

    The model trained on unchanged pairs with the same settings is the baseline; it is trained once and kept.
    """
    from core.errors import ConfigError
    from core.impact.inputs import load_inputs
    from core.impact.plans import load_plan
    from core.impact.preview import preview
    from core.impact.retrain import Retraining
    from core.progress import RichProgress, Silent
    from core.runs import find_run
    from core.store.reader import RunReader
    from core.store.review import ReviewStore

    if (plan is None) != baseline:
        raise ConfigError("Give either --plan FILE or --baseline.")
    folder = find_run(run, runs)
    progress = Silent() if as_json else RichProgress()
    with RunReader.open(folder) as reader:
        inputs = load_inputs(reader)
        edits = None if plan is None else load_plan(plan, inputs)
        settings = _settings(scope, epochs, learning_rate, batch, max_length, seed)
        points = Retraining(reader, inputs, settings, progress, limit=limit, device=device).points(edits)
        refits = preview(inputs, [] if edits is None else [edits]).to_dicts()
    ReviewStore(folder.parent).save_impact(points)
    previews = {(row["plan"], row["domain"]): row for row in refits}
    results = [{**point, "preview": previews.get((point["plan"], point["domain"]))} for point in points]
    if as_json:
        print_json({"run": reader.manifest.name, "plan": None if edits is None else edits.id, "points": results})
    else:
        _print(results)


def _settings(
    scope: str, epochs: float, learning_rate: float | None, batch: int, max_length: int | None, seed: int
) -> Any:
    from pydantic import ValidationError

    from core.config import RewardTrainingConfig, explain
    from core.errors import ConfigError

    try:
        return RewardTrainingConfig.model_validate(
            {
                "scope": scope,
                "epochs": epochs,
                "learning_rate": learning_rate,
                "batch": batch,
                "max_length": max_length,
                "seed": seed,
            }
        )
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def _print(results: list[dict[str, Any]]) -> None:
    table = Table(title="accuracy on held-out pairs, 95 % intervals over prompts", title_justify="left")
    for name in ("pairs", "domain", "n", "retrained", "change", "preview: change"):
        table.add_column(name, justify="left" if name in ("pairs", "domain") else "right")
    for row in results:
        changed = row["plan"] != "none"
        table.add_row(
            f"{row['strategy']} {row['ratio']:.1%} {row['action']}" if changed else "unchanged",
            row["domain"],
            f"{row['n']:,}",
            _figure(row, "accuracy", "accuracy_low", "accuracy_high", "{:.3f}"),
            _figure(row, "accuracy_change", "change_low", "change_high", "{:+.3f}") if changed else "",
            _figure(row["preview"], "accuracy_change", "change_low", "change_high", "{:+.3f}") if changed else "",
        )
    out.print(table)


def _figure(row: dict[str, Any] | None, value: str, low: str, high: str, style: str) -> str:
    if row is None or row[value] is None:
        return "missing"
    if row[low] is None:
        return style.format(row[value])
    return f"{style.format(row[value])} [{style.format(row[low])}, {style.format(row[high])}]"
