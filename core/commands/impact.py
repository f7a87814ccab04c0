"""`rewardscope plan` and `rewardscope impact`: which pairs to change, and what the head becomes when they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from core.commands.common import AsJson, RunName, Runs, app, command, out, plain, print_json
from core.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from core.impact.inputs import ImpactInputs
    from core.impact.plans import Plan
    from core.store.reader import RunReader
    from core.store.sets import FeatureSet

SetName = Annotated[
    str | None,
    typer.Option(
        "--set", help="A stored set (name or name@version) or a set's file; the run's default set when left out."
    ),
]
Direction = Annotated[str, typer.Option(help="poison (most typical pairs first) or denoise (least typical first).")]
Action = Annotated[
    str | None, typer.Option(help="flip or drop; when left out flip for poison and drop for denoise, as in SAFER.")
]


@app.command()
@command
def plan(
    run: RunName = None,
    runs: Runs = None,
    set_name: SetName = None,
    strategy: Annotated[str, typer.Option(help="set, random, margin, loss or length.")] = "set",
    direction: Direction = "poison",
    action: Action = None,
    ratio: Annotated[str, typer.Option(help="Share of the training pairs, 0.05 or 5%.")] = "5%",
    seed: Annotated[int, typer.Option(min=0, help="Of the strategy random.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; it must not be there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a plan: a small file that lists which training pairs are flipped or dropped."""
    from core.impact.inputs import load_inputs
    from core.impact.plans import make_plan, save_plan
    from core.impact.strategies import WHAT

    share = ratios_of(ratio)[0]
    with _open(run, runs) as reader:
        chosen = feature_set_of(reader, set_name, runs) if strategy == "set" else None
        inputs = load_inputs(reader)
    made = make_plan(
        inputs,
        strategy=strategy,
        direction=direction,
        action=action or default_action(direction),
        ratio=share,
        seed=seed,
        feature_set=chosen,
    )
    path = output or Path(f"plan-{made.direction}-{made.action}-{made.strategy}-{made.id}.json")
    save_plan(made, path)
    if as_json:
        print_json({"file": str(path), **plan_facts(made)})
        return
    typer.echo(
        f"Wrote {path}: {made.action} {len(made.edits)} of {made.n_train} training pairs, to {made.direction}, "
        f"chosen by {WHAT[made.strategy]}."  # type: ignore[index]
    )


@app.command()
@command
def impact(
    run: RunName = None,
    runs: Runs = None,
    set_name: SetName = None,
    plans: Annotated[
        list[Path] | None, typer.Option("--plan", help="A plan's file; again for more. No curve then.")
    ] = None,
    ratios: Annotated[
        str | None, typer.Option(help="Shares with commas, 0.5%,1%,5%; the run's own when left out.")
    ] = None,
    strategies: Annotated[str, typer.Option(help="Which, with commas.")] = "set,random,margin,loss,length",
    direction: Direction = "poison",
    action: Action = None,
    seeds: Annotated[int, typer.Option(min=1, help="Random plans at each ratio.")] = 5,
    save: Annotated[bool, typer.Option("--save", help="Keep the points in review.sqlite, for the page.")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Folder to write the edited pairs of one plan into.")
    ] = None,
    format: Annotated[str, typer.Option(help="Of --export: parquet or jsonl.")] = "parquet",
    as_json: AsJson = False,
) -> None:
    """Refit the head on changed training pairs and say what becomes of the held-out ones. Not a retrain of the model."""
    from core.impact.edit import FORMATS, export_edited
    from core.impact.inputs import load_inputs
    from core.impact.plans import load_plan
    from core.impact.preview import preview
    from core.impact.strategies import suspected_errors
    from core.progress import RichProgress, Silent

    if format not in FORMATS:
        raise ConfigError(f"Format {format!r} is not known; use parquet or jsonl.")
    with _open(run, runs) as reader:
        inputs = load_inputs(reader)
        if plans:
            wanted = [load_plan(path, inputs) for path in plans]
        else:
            wanted = _curve(reader, inputs, runs, set_name, ratios, strategies, direction, action, seeds)
        if export is not None and not plans and len(wanted) > 1:
            raise ConfigError("--export writes the pairs of one plan; give --plan, or one strategy and one ratio.")
        frame = preview(inputs, wanted, Silent() if as_json else RichProgress())
        written = [str(export_edited(reader, one, _folder(export), format)) for one in wanted] if export else []
    if save:
        save_points(frame, wanted, inputs.run_id, runs)
    suspected = suspected_errors(inputs) if any(one.direction == "denoise" for one in wanted) else None
    if as_json:
        facts = [plan_facts(one) for one in wanted]
        print_json(
            {
                "run": inputs.run,
                "plans": facts,
                "points": frame.to_dicts(),
                "suspected_errors": suspected,
                "saved": save,
                "exported": written,
            }
        )
        return
    _print(frame)
    if suspected is not None:
        n = int(inputs.train.sum())
        typer.echo(
            f"Confident learning takes about {suspected} of {n} training pairs ({suspected / n:.1%}) for mislabelled."
        )
    for path in written:
        typer.echo(f"Wrote {path}.")


def ratios_of(text: str) -> list[float]:
    """'0.5%,1%' or '0.005,0.01' as shares.

    Raises:
        ConfigError: not such a list, or a share outside 0..1.
    """
    found = []
    for part in text.split(","):
        try:
            value = float(part.strip().removesuffix("%")) / (100 if part.strip().endswith("%") else 1)
        except ValueError:
            raise ConfigError(f"{part.strip()!r} is not a ratio; write 0.05 or 5%.") from None
        if not 0 <= value <= 1:
            raise ConfigError(
                f"The ratio {part.strip()} is not between 0 and 1 (100%); write 0.05 or 5% for one in twenty."
            )
        found.append(value)
    return found


def default_action(direction: str) -> str:
    """What SAFER does in each direction: poisoning flips, denoising drops."""
    return "drop" if direction == "denoise" else "flip"


def feature_set_of(reader: RunReader, name: str | None, runs: Path | None) -> FeatureSet:
    """A set by its file, by its stored name, or the run's default one.

    Raises:
        DataError, RunError: there is none, or it was made for another SAE.
    """
    from core.salience.sets import default_set_of
    from core.store.review import ReviewStore
    from core.store.sets import read_set

    sae, latents = str(reader.manifest.sae.get("sha256", "")), int(reader.manifest.sae["latents"])
    if name is None:
        return default_set_of(reader)
    if Path(name).is_file():
        return read_set(Path(name), sae=sae, latents=latents)
    return ReviewStore(runs).find_set(sae, name)


def plan_facts(one: Plan) -> dict[str, Any]:
    """A plan for `--json`, without its list of pairs."""
    chosen = one.feature_set
    return {
        "plan": one.id,
        "run": one.run,
        "strategy": one.strategy,
        "direction": one.direction,
        "action": one.action,
        "ratio": one.ratio,
        "seed": one.seed,
        "changed": len(one.edits),
        "n_train": one.n_train,
        "set": None if chosen is None else f"{chosen.get('name')}@{chosen.get('version')}",
        "data_sha256": one.data_sha256,
    }


def save_points(frame: pl.DataFrame, plans: list[Plan], run_id: str, runs: Path | None) -> None:
    """Keeps points in review.sqlite, with the set each plan was made with."""
    from core.store.review import ReviewStore

    sets = {one.id: one.feature_set or {} for one in plans}
    rows = [
        {
            "run_id": run_id,
            "set_name": sets.get(row["plan"], {}).get("name"),
            "set_version": sets.get(row["plan"], {}).get("version"),
            **row,
        }
        for row in frame.to_dicts()
    ]
    ReviewStore(runs).save_impact(rows)


def _curve(
    reader: RunReader,
    inputs: ImpactInputs,
    runs: Path | None,
    set_name: str | None,
    ratios: str | None,
    strategies: str,
    direction: str,
    action: str | None,
    seeds: int,
) -> list[Plan]:
    from core.impact.curve import curve_plans

    names = [name.strip() for name in strategies.split(",") if name.strip()]
    shares = ratios_of(ratios) if ratios else list(getattr(inputs.impact, direction, ()))
    chosen = feature_set_of(reader, set_name, runs) if "set" in names else None
    return curve_plans(inputs, chosen, direction, action or default_action(direction), shares, names, seeds)


def _open(run: str | None, runs: Path | None) -> RunReader:
    from core.runs import find_run
    from core.store.reader import RunReader

    return RunReader.open(find_run(run, runs))


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _print(frame: pl.DataFrame) -> None:
    """A row for each strategy and ratio (random: the mean over its seeds and their spread), a column for each domain."""
    import polars as pl

    keys = ["strategy", "direction", "action", "ratio"]
    domains = frame["domain"].unique(maintain_order=True).to_list()
    table = Table(
        title="held-out accuracy and its change, 95 % interval; head refit, not a retrain", title_justify="left"
    )
    for name in ("strategy", "to", "by", "ratio"):
        table.add_column(name)
    sizes = dict(frame.select("domain", "n").unique().iter_rows())
    for domain in domains:
        table.add_column(plain(f"{domain} (n {sizes[domain]})"), justify="right")
    for values, group in frame.group_by(keys, maintain_order=True):
        strategy, direction, action, ratio = str(values[0]), str(values[1]), str(values[2]), float(str(values[3]))
        cells = [_cell(group.filter(pl.col("domain") == domain)) for domain in domains]
        unchanged = strategy == "none"
        label = "unchanged" if unchanged else strategy
        table.add_row(label, *("", "") if unchanged else (direction, action), f"{ratio:.1%}", *cells)
    out.print(table)


def _cell(rows: pl.DataFrame) -> str:
    one = rows.row(0, named=True)
    if one["strategy"] == "none":
        low, high = one["accuracy_low"], one["accuracy_high"]
        return f"{one['accuracy']:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else "")
    if len(rows) > 1:
        accuracy, change = rows["accuracy"].to_numpy(), rows["accuracy_change"].to_numpy()
        return f"{accuracy.mean():.3f} {change.mean():+.3f} (seeds {change.min():+.3f} to {change.max():+.3f})"
    low, high = one["change_low"], one["change_high"]
    interval = f" [{low:+.3f}, {high:+.3f}]" if low is not None else ""
    return f"{one['accuracy']:.3f} {one['accuracy_change']:+.3f}{interval}"
