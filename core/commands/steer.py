"""`rewardscope steer`: other weights for a few features, judged on held-out pairs and written as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from core.commands.common import AsJson, RunName, Runs, app, command, out, plain, print_json
from core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from core.evaluate.specificity import AccuracyChange, Shift, Specificity, SteeringData
    from core.store.steerings import Steering


@app.command()
@command
def steer(
    run: RunName = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="feature=multiplier, 1 = unchanged, 0 = taken out; give it again for more features."
        ),
    ] = None,
    steering: Annotated[
        Path | None, typer.Option("--steering", help="A steering file, rewardscope's or SARM's.")
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="A stored steering: NAME or NAME@version.")] = None,
    search: Annotated[
        str | None,
        typer.Option("--search", help="Find the best steering for this slice (column=value) on training pairs."),
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", help="With --search: largest mean |shift| elsewhere, in standard deviations.")
    ] = 0.1,
    drift: Annotated[
        float, typer.Option("--drift", help="With --search: largest |mean shift| elsewhere, in standard deviations.")
    ] = 0.02,
    total: Annotated[float, typer.Option("--total", help="With --search: largest sum of |multiplier - 1|.")] = 8.0,
    candidates: Annotated[
        int, typer.Option("--candidates", min=1, help="With --search: features to choose from.")
    ] = 64,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Slice whose chosen answers are the target; default: that of the search."),
    ] = None,
    pairs: Annotated[str, typer.Option("--pairs", help="Pairs the figures are about: held-out or all.")] = "held-out",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the steering to this JSON file.")] = None,
    head: Annotated[
        Path | None, typer.Option("--write-head", help="Write the steered head (for evaluate --head) to this file.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--write-model", help="Write a steered SARM model (for evaluate --model) to this folder."),
    ] = None,
    save: Annotated[str | None, typer.Option("--save", help="Store it as a preset of this name.")] = None,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Change the head weights of a few features and say whom it hits; the run itself is never changed."""
    from core.evaluate.specificity import SteeringData, specificity, specificity_facts
    from core.rewards.steered_model import outside, write_head, write_model
    from core.rewards.steering import steering_to_json
    from core.runs import find_run
    from core.store.reader import RunReader
    from core.store.review import ReviewStore

    if sum(bool(given) for given in (change, steering, preset, search)) != 1:
        raise ConfigError(
            "Say what to do in one way: --set feature=multiplier, --steering FILE, --preset NAME or --search SLICE."
        )
    if pairs not in ("held-out", "all"):
        raise ConfigError(f"--pairs {pairs!r} is not known; use held-out or all.")
    folder = find_run(run, runs)
    for path in (output, head, model):
        if path is not None:
            outside(path, folder)
    store = ReviewStore(runs)
    with RunReader.open(folder) as reader:
        data = SteeringData.of(reader)
        if search:
            made = _searched(data, search, budget, drift, total, candidates)
        elif preset:
            made = store.find_steering(data.sae, preset)
        elif steering:
            from core.rewards.steering import read_steering

            made = read_steering(steering, sae=data.sae, latents=len(data.steered.weights))
        else:
            made = _by_hand(change or [], data)
        after = data.steered.steered(made)
        slice = _target(data, target or search, made)
        found = specificity(data, data.rewards, after, slice, which="all" if pairs == "all" else "held-out")
        labels = reader.labels()
        weights = data.steered.weights
    if save:
        from dataclasses import replace

        made = store.save_steering(replace(made, name=save))
    written = {}
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(steering_to_json(made), encoding="utf-8")
        written["steering"] = str(output)
    if head is not None:
        write_head(head, folder, made)
        written["head"] = str(head)
    if model is not None:
        write_model(model, folder, made)
        written["model"] = str(model)
    notes = [note for note in (made.note, data.note) if note]
    if as_json:
        from core.store.steerings import changes_to_json

        print_json(
            {
                "name": made.name,
                "version": made.version or None,
                "sae_sha256": made.sae,
                "changes": changes_to_json(made),
                "how": made.how,
                "notes": notes,
                "specificity": specificity_facts(found),
                "written": written,
            }
        )
        return
    _print_changes(made, weights, labels)
    _print(found)
    for note in notes:
        out.print(plain(note))
    if save:
        out.print(plain(f"Stored as {made.name}@{made.version}."))
    for what, where in written.items():
        out.print(plain(f"Wrote the {what} to {where}."))


def _searched(data: SteeringData, slice: str, budget: float, drift: float, total: float, candidates: int) -> Steering:
    from core.evaluate.steering_comparison import search_steering
    from core.rewards.steering_search import Bounds

    found = search_steering(data, slice, Bounds(side=budget, drift=drift, total=total, candidates=candidates))
    return found[0]


def _by_hand(entries: list[str], data: SteeringData) -> Steering:
    """--set feature=multiplier, given once or more often."""
    from core.rewards.steering import Steering

    multipliers: dict[int, float] = {}
    for entry in entries:
        feature, found, by = entry.partition("=")
        try:
            number, factor = int(feature), float(by)
        except ValueError:
            found = ""
        if not found or number < 0:
            raise ConfigError(f"--set {entry!r} is not understood; write feature=multiplier, for example 4127=1.5.")
        if number in multipliers:
            raise ConfigError(f"--set names feature {number} twice; give each feature one multiplier.")
        multipliers[number] = factor
    made = Steering.of_multipliers(multipliers, sae=data.sae, how={"method": "hand", "run_id": data.run_id})
    made.check(len(data.steered.weights))
    return made


def _target(data: SteeringData, given: str | None, made: Steering) -> str:
    """The slice the figures are about: the one given, the one the steering was made for, else the run's first."""
    from core.evaluate.specificity import targets

    names = targets(data)
    if given:
        return given
    if made.how.get("slice") in data.slices:
        return str(made.how["slice"])
    if not names:
        raise DataError(
            "No slice of this run has 20 held-out pairs; name one with --target column=value and --pairs all."
        )
    return names[0]


def _print_changes(made: Steering, weights: Any, labels: dict[int, str]) -> None:
    table = Table(box=None, title="Steering", title_justify="left")
    for column, justify in (("feature", "right"), ("change", "right"), ("weight", "right"), ("label", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    steered = made.weights(weights)
    for feature, change in made.changes.items():
        moved = "unchanged" if change.op == "add" else f"{weights[feature]:+.4g} -> {steered[feature]:+.4g}"
        label = plain(labels.get(feature) or "no label")
        table.add_row(str(feature), f"{change.symbol} {change.value:.4g}", moved, label)
    out.print(table)
    if made.how.get("method") == "search":
        out.print(
            f"Found on {made.how['n_target']:,} training answers to {made.how['n_prompts']:,} prompts: mean shift "
            f"{made.how['objective']:.4f}, proven optimum at most {made.how['bound']:.4f} standard deviations.",
            highlight=False,
        )


def _print(found: Specificity) -> None:
    table = Table(box=None, title=plain(f"Aimed at {found.slice}, {found.which} pairs"), title_justify="left")
    for column in ("", "n", "prompts", "before", "after", "change", "95 %", "moved"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("target", *_shift(found.target))
    table.add_row("complement", *_shift(found.complement))
    table.add_row("accuracy", *_accuracy(found.accuracy), "")
    table.add_row("accuracy in the slice", *_accuracy(found.slice_accuracy), "")
    out.print(table)
    ratio = found.ratio
    said = (
        f"missing: {ratio.why}" if ratio.value is None else f"{ratio.value:.2f} {_range(ratio.low, ratio.high, '.2f')}"
    )
    out.print(f"Specificity (target shift / complement shift): {said}.", highlight=False)
    out.print(f"Pairs that became right: {len(found.fixed)}; that became wrong: {len(found.broken)}.", highlight=False)
    few = found.domains["harmed"].null_count()
    left = f" ({few} with too few pairs to say)" if few else ""
    out.print(plain(f"Domains harmed: {', '.join(found.harmed) or 'none'}{left}."), highlight=False)


def _shift(one: Shift) -> list[str]:
    figures = [_number(value, "+.4f") for value in (one.before, one.after, one.shift)]
    moved = "missing" if one.moved is None else f"{one.n_moved:,} ({100 * one.moved:.1f} %)"
    return [f"{one.n:,}", f"{one.n_prompts:,}", *figures, _range(one.low, one.high, "+.4f"), moved]


def _accuracy(one: AccuracyChange) -> list[str]:
    percent = [
        None if value is None else 100 * value for value in (one.before, one.after, one.change, one.low, one.high)
    ]
    figures = [_number(value, form) for value, form in zip(percent[:3], (".1f", ".1f", "+.2f"), strict=True)]
    return [f"{one.n:,}", f"{one.n_prompts:,}", *figures, _range(percent[3], percent[4], "+.2f")]


def _number(value: float | None, form: str) -> str:
    return "missing" if value is None else format(value, form)


def _range(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"
