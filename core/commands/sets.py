"""`rewardscope sets ...`: list, make, import and export safety sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from core.commands.common import AsJson, RunName, Runs, app, command, out, plain, print_json
from core.errors import ConfigError

sets = typer.Typer(no_args_is_help=True, help="Safety sets S+ and S-: list, make, import, export.")
app.add_typer(sets, name="sets")

Slice = Annotated[str, typer.Option(help="Pairs the salience is taken from: all, or column=value.")]
Pooling = Annotated[
    str | None,
    typer.Option(
        help="last, mean, max or boundary_sum; SAFER's boundary_sum when left out (the head's pooling where no feature is "
        "active at a sentence boundary)."
    ),
]


@sets.command("list")
@command
def list_sets(run: RunName = None, runs: Runs = None, as_json: AsJson = False) -> None:
    """The stored sets of a run's SAE, newest first."""
    from core.runs import find_run
    from core.store.manifest import read_manifest
    from core.store.review import ReviewStore

    found = ReviewStore(runs).sets(read_manifest(find_run(run, runs)).sae["sha256"])
    if as_json:
        print_json([_facts(one) for one in found])
        return
    if not found:
        typer.echo("There is no set yet; make one with `rewardscope sets make NAME`.")
        return
    table = Table(box=None)
    for column in ("name", "version", "S+", "S-", "made by", "created"):
        table.add_column(column)
    for one in found:
        how = str(one.how.get("method", "?"))
        table.add_row(
            plain(one.name), str(one.version), str(len(one.plus)), str(len(one.minus)), plain(how), one.created[:19]
        )
    out.print(table)


@sets.command("make")
@command
def make(
    name: Annotated[str, typer.Argument(help="Name of the set; a set of that name gets a new version.")],
    run: Annotated[str | None, typer.Option("--run", help="Name or folder of the run.")] = None,
    runs: Runs = None,
    slice: Slice = "split=train",
    pooling: Pooling = None,
    size: Annotated[int, typer.Option(min=1, help="At most this many features.")] = 32,
    order: Annotated[str, typer.Option(help="Rank by |s|, |effect_size| or |effect|.")] = "s",
    max_q: Annotated[float | None, typer.Option(min=0, max=1, help="Only features with q at most this.")] = None,
    length_adjusted: Annotated[bool, typer.Option(help="Judge sign and q at equal length.")] = False,
    min_rating: Annotated[
        int | None, typer.Option(min=1, max=5, help="Only features rated this safety-related or more (SAFER takes 5).")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="With --min-rating: of so many highest |s|.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Make a set from salience thresholds, or from safety ratings as SAFER does, and store it."""
    from core.runs import find_run
    from core.salience.sets import DEFAULT_POOLING, set_by_rating, set_by_salience
    from core.store.reader import RunReader
    from core.store.review import ReviewStore

    if order not in ("s", "effect_size", "effect"):
        raise ConfigError(f"--order {order!r} is not known; use s, effect_size or effect.")
    store = ReviewStore(runs)
    with RunReader.open(find_run(run, runs)) as reader:
        sae = reader.manifest.sae["sha256"]
        if pooling is None:
            pooling = DEFAULT_POOLING
            if reader.salience(slice, pooling).is_empty():
                pooling = str(reader.manifest.head["pooling"])
        rows = reader.salience(slice, pooling)
        if min_rating is None:
            made = set_by_salience(
                rows,
                name=name,
                sae=sae,
                size=size,
                order=order,
                max_q=max_q,
                length_adjusted=length_adjusted,
                slice=slice,
                pooling=pooling,
            )
        else:
            from core.features.labels.merged import preferred_labels

            ratings = preferred_labels(reader, store)
            made = set_by_rating(
                rows,
                ratings.select("feature_id", "safety_rating"),
                name=name,
                sae=sae,
                min_rating=min_rating,
                candidates=candidates,
                size=size,
                slice=slice,
                pooling=pooling,
            )
    _print(store.save_set(made), as_json)


@sets.command("import")
@command
def import_set(
    file: Annotated[Path, typer.Argument(help="JSON file with s_plus and s_minus.")],
    run: Annotated[str | None, typer.Option("--run", help="Name or folder of the run.")] = None,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Store a set from a file."""
    from core.runs import find_run
    from core.store.manifest import read_manifest
    from core.store.review import ReviewStore
    from core.store.sets import read_set

    sae = read_manifest(find_run(run, runs)).sae
    _print(ReviewStore(runs).save_set(read_set(file, sae=sae["sha256"], latents=int(sae["latents"]))), as_json)


@sets.command("export")
@command
def export_set(
    name: Annotated[str, typer.Argument(help="Name of the set, or name@version.")],
    target: Annotated[Path, typer.Argument(help="New JSON file.")],
    run: Annotated[str | None, typer.Option("--run", help="Name or folder of the run.")] = None,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Write a set to a file that `sets import` and `plan --set` read."""
    from core.errors import RunError
    from core.runs import find_run
    from core.store.manifest import read_manifest
    from core.store.review import ReviewStore
    from core.store.sets import set_to_json

    one = ReviewStore(runs).find_set(read_manifest(find_run(run, runs)).sae["sha256"], name)
    if target.exists():
        raise RunError(f"{target} is there already; give a new file.")
    target.write_text(set_to_json(one), encoding="utf-8")
    _print(one, as_json)


def _facts(one: Any) -> dict[str, Any]:
    return {
        "name": one.name,
        "version": one.version,
        "s_plus": list(one.plus),
        "s_minus": list(one.minus),
        "how": one.how,
        "created": one.created,
    }


def _print(one: Any, as_json: bool) -> None:
    if as_json:
        print_json(_facts(one))
    else:
        out.print(plain(f"Set {one.name!r} version {one.version}: {len(one.plus)} in S+, {len(one.minus)} in S-."))
