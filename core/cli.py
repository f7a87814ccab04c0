"""`rewardscope ...`: parses, calls, prints. Exit code 0 = ok, 1 = failed, 2 = wrong usage."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from core import __version__
from core.commands import ablate, evaluate, impact, import_, label, pretrain, retrain, sets, steer, train  # noqa: F401  (importing a module adds its verbs)
from core.commands.common import AsJson, RunName, Runs, app, command, out, plain, print_json


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
@command
def build(
    config: Annotated[Path, typer.Argument(help="YAML file that describes the run (docs/configuration.md).")],
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Build a run, or finish one that was interrupted. Unchanged stages are skipped."""
    from core.config import load_config

    loaded = load_config(config)
    _build(loaded.model_copy(update={"runs": runs}) if runs else loaded, as_json)


@app.command()
@command
def demo(runs: Runs = None, as_json: AsJson = False) -> None:
    """Build the demo run from nothing: the built-in pairs through the embedded model."""
    from core.config import load_config
    from core.paths import ROOT

    loaded = load_config(ROOT / "core" / "demo.yaml")
    _build(loaded.model_copy(update={"runs": runs}) if runs else loaded, as_json)


def _build(config: Any, as_json: bool) -> None:
    from core.build import build as run_build
    from core.progress import RichProgress, Silent

    result = run_build(config, Silent() if as_json else RichProgress())
    facts = _summary(result.folder, result.manifest)
    if as_json:
        print_json({"unchanged": result.unchanged, **facts})
        return
    typer.echo("Nothing has changed; the run is as it was." if result.unchanged else f"Published {result.folder}.")
    _print_summary(facts)


@app.command()
@command
def info(run: RunName = None, runs: Runs = None, as_json: AsJson = False) -> None:
    """Say what a run is: model, data, SAE, head, held-out accuracy and health."""
    from core.runs import find_run
    from core.store.manifest import read_manifest

    folder = find_run(run, runs)
    facts = _summary(folder, read_manifest(folder))
    if as_json:
        print_json(facts)
    else:
        _print_summary(facts)


def _summary(folder: Path, manifest: Any) -> dict[str, Any]:
    return {"folder": str(folder), **manifest.model_dump(mode="json", exclude={"config"})}


def _print_summary(facts: dict[str, Any]) -> None:
    from core.summary import summary_lines

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, text in summary_lines(facts):
        table.add_row(f"[bold]{name}[/bold]", text)
    out.print(table)


@app.command()
@command
def score(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What the user said.")],
    answer: Annotated[list[str], typer.Option("--answer", "-a", help="An answer; give the option again for more.")],
    run: RunName = None,
    runs: Runs = None,
    top: Annotated[int, typer.Option(min=1, help="How many contributions to print.")] = 10,
    model: Annotated[
        Path | None, typer.Option("--model", help="A SARM or ArmoRM-style model folder instead of a run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score answers to a prompt with a run's model and show what each reward is made of."""
    if model is not None:
        from core.commands.score_model import score_model

        score_model(model, prompt, answer, top, as_json)
        return
    from core.rewards.score import load_scorer
    from core.runs import find_run
    from core.store.reader import RunReader

    folder = find_run(run, runs)
    scorer = load_scorer(folder)
    scored = scorer.score([{"role": "user", "content": prompt}], answer)
    with RunReader.open(folder) as reader:
        labels = reader.labels()
    results: list[dict[str, Any]] = []
    for one in scored:
        order = sorted(range(len(one.features)), key=lambda i: -abs(one.contributions[i]))[:top]
        largest: list[dict[str, Any]] = [
            {
                "feature": int(one.features[i]),
                "label": labels.get(int(one.features[i])),
                "contribution": float(one.contributions[i]),
                "activation": float(one.pooled[i]),
            }
            for i in order
        ]
        rest = one.reward - sum(entry["contribution"] for entry in largest)
        results.append(
            {
                "answer": one.text,
                "reward": one.reward,
                "contributions": largest,
                "other": {"features": len(one.features) - len(order), "contribution": rest},
            }
        )
    if as_json:
        print_json({"run": scorer.manifest.name, "pooling": scorer.head.pooling, "answers": results})
        return
    for result in results:
        table = Table(title=f"reward {result['reward']:+.4f}", title_justify="left", caption=None)
        table.add_column("feature", justify="right")
        table.add_column("contribution", justify="right")
        table.add_column("label")
        for entry in result["contributions"]:
            table.add_row(str(entry["feature"]), f"{entry['contribution']:+.4f}", plain(entry["label"] or "no label"))
        table.add_row("", f"{result['other']['contribution']:+.4f}", f"other ({result['other']['features']} features)")
        out.print(plain(result["answer"]), style="dim", highlight=False)
        out.print(table)


@app.command()
@command
def doctor(
    run: RunName = None,
    runs: Runs = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch the embedded model into the cache if it is missing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is installed, which device and models there are, and check a run's integrity."""
    from core.doctor import examine

    report = examine(run, runs, fetch=fetch)
    if as_json:
        print_json(report.as_dict())
    else:
        table = Table(show_header=False, box=None, pad_edge=False)
        for check in report.checks:
            mark = {"ok": "[green]ok[/green]", "missing": "[yellow]--[/yellow]", "failed": "[red]failed[/red]"}[
                check.state
            ]
            table.add_row(mark, f"[bold]{check.name}[/bold]", plain(check.detail))
        out.print(table)
    if report.failed:
        raise typer.Exit(1)


@app.command()
@command
def export(
    target: Annotated[Path, typer.Argument(help="New folder to write into.")],
    run: Annotated[str | None, typer.Option("--run", help="Name or folder of the run.")] = None,
    runs: Runs = None,
    table: Annotated[list[str] | None, typer.Option("--table", help="Only this table; again for more.")] = None,
    format: Annotated[str, typer.Option(help="parquet, csv or jsonl.")] = "parquet",
    bundle: Annotated[bool, typer.Option("--bundle", help="Write the compact form a run ships in instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's tables as files anyone can read, or the whole run as a bundle."""
    from core.bundle import write_bundle
    from core.export import export_tables
    from core.runs import find_run

    folder = find_run(run, runs)
    if bundle:
        write_bundle(folder, target)
        written = {
            str(path.relative_to(target)): path.stat().st_size for path in sorted(target.rglob("*")) if path.is_file()
        }
    else:
        written = export_tables(folder, target, tables=table, format=format)
    if as_json:
        print_json({"target": str(target), "files": written})
    else:
        typer.echo(f"Wrote {len(written)} files, {sum(written.values()) / 1e6:.1f} MB, to {target}.")


@app.command()
@command
def serve(
    runs: Annotated[
        Path | None, typer.Argument(help="Folder that holds the runs (default: ./runs, else the demo run).")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535)] = 5006,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    show: Annotated[bool, typer.Option("--show", help="Open a browser.")] = False,
) -> None:
    """Serve the dashboard at http://localhost:5006/dashboard."""
    import os

    from core.errors import RunError
    from core.paths import ROOT

    environment = dict(os.environ)
    if runs is not None:
        if not runs.is_dir():
            raise RunError(f"There is no folder {runs}; give the folder that holds your runs.")
        environment["REWARDSCOPE_RUNS"] = str(runs.resolve())
    command = [
        sys.executable,
        "-m",
        "panel",
        "serve",
        str(ROOT / "dashboard"),
        "--address",
        address,
        "--port",
        str(port),
    ]
    command += ["--allow-websocket-origin", f"localhost:{port}", "--allow-websocket-origin", f"127.0.0.1:{port}"]
    command += ["--show"] if show else []
    os.execve(sys.executable, command, environment)  # the server takes this process's place: one id to stop it by


def main() -> None:
    """Entry point of the `rewardscope` script and of `python -m core`."""
    app()


if __name__ == "__main__":
    main()
