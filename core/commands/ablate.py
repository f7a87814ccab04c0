"""`rewardscope ablate`: what taking the features of a set away does to margins, against matched random features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from core.commands.common import AsJson, RunName, Runs, app, command, out, plain, print_json
from core.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from core.rewards.ablation_plan import CheckPlan
    from core.rewards.ablation_rerun import Rerun
    from core.store.reader import RunReader
    from core.store.review import ReviewStore
    from core.store.sets import FeatureSet

WITH_RANDOM = "set and random features"


@app.command()
@command
def ablate(
    run: RunName = None,
    set_name: Annotated[str, typer.Option("--set", help="Name of a set, name@version, or a set's JSON file.")] = "",
    method: Annotated[
        str | None,
        typer.Option(
            help="head: weight to 0, exact and immediate; residual: the feature is removed from the hidden states and "
            "the model run again. Default: head, or residual for an ordinary reward model."
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(min=10, help="residual: at most so many pairs for each feature.")] = 24,
    random: Annotated[int, typer.Option(min=8, help="residual: matched random features for each feature.")] = 8,
    seed: Annotated[int, typer.Option(help="residual: which pairs are taken.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="residual: measure again what was measured before.")] = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Check causally what a set's features do: "verified" or "correlated only" (docs/causal.md)."""
    from core.rewards.ablation_plan import is_classifier
    from core.runs import find_run
    from core.store.reader import RunReader
    from core.store.review import ReviewStore

    if not set_name:
        raise ConfigError("Say which features to check: --set NAME, or --set FILE.json.")
    if method not in (None, "head", "residual"):
        raise ConfigError(f"--method {method!r} is not known; use head or residual.")
    store = ReviewStore(runs)
    with RunReader.open(find_run(run, runs)) as reader:
        one = find_set(set_name, reader, store)
        if method == "head" and is_classifier(reader):
            raise ConfigError("This run's reward is an ordinary reward model's, not a head's; use --method residual.")
        chosen = method or ("residual" if is_classifier(reader) else "head")
        if chosen == "head":
            facts = check_head(reader, one, store)
        else:
            facts = check_residual(
                reader, one, store, pairs=pairs, random=random, seed=seed, device=device, force=force, quiet=as_json
            )
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def find_set(name: str, reader: RunReader, store: ReviewStore) -> FeatureSet:
    """A set from its file, or a stored one by name.

    Raises:
        DataError: the file is no set of this SAE.
        RunError: there is no set of that name.
    """
    from core.store.sets import read_set

    sae = reader.manifest.sae
    if Path(name).is_file():
        one = read_set(Path(name), sae=sae["sha256"], latents=int(sae["latents"]))
    else:
        one = store.find_set(sae["sha256"], name)
    if not len(one):
        raise ConfigError(f"The set {one.name!r} is empty; put features into it first.")
    return one


def check_head(reader: RunReader, one: FeatureSet, store: ReviewStore) -> dict[str, Any]:
    """Ablates every member in the head, stores the rows and says what came out."""
    import polars as pl

    from core.rewards.ablation import MIN_PROMPTS, head_ablation

    weights = reader.features.frame["weight"].to_numpy()
    table = head_ablation(
        reader.arrays,
        reader.table("pair"),
        reader.table("response"),
        weights,
        reader.manifest.head["pooling"],
        signs=one.signs(reader.arrays.latents),
        exclude=one.features,
    )
    rows = table.filter(pl.col("feature_id").is_in(one.features))
    store.save_causal([{"run_id": reader.manifest.run_id, **row} for row in rows.to_dicts()])
    checked = set(rows["feature_id"].to_list())
    why = f"active in fewer than {MIN_PROMPTS} prompts, or of weight 0"
    return _facts(reader, one, "head", rows, {f: why for f in one.features if f not in checked})


def check_residual(
    reader: RunReader,
    one: FeatureSet,
    store: ReviewStore,
    *,
    pairs: int,
    random: int,
    seed: int,
    device: str,
    force: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Runs the model again without each member, storing each row as soon as it is known."""
    from core.paths import cache_folder
    from core.progress import RichProgress, Silent
    from core.rewards.ablation_checks import load_rerun, run_checks
    from core.rewards.ablation_plan import plan_checks

    run_id = reader.manifest.run_id
    plan = plan_checks(reader, one, pairs=pairs, random=random, seed=seed)
    journal = cache_folder() / "causal" / f"{run_id}.jsonl"
    if force:
        journal.unlink(missing_ok=True)

    def load() -> Rerun:
        if not quiet:
            _announce(plan)
        return load_rerun(reader, device)

    def estimate(seconds: float) -> None:
        if not quiet:
            typer.echo(f"About {_duration(seconds)} to go.", err=True)

    result = run_checks(
        plan,
        reader,
        one,
        load,
        journal=journal,
        progress=Silent() if quiet else RichProgress(),
        on_row=lambda row: store.save_causal([{"run_id": run_id, **row}]),
        on_estimate=estimate,
    )
    return _facts(reader, one, "residual", result.rows, plan.not_checked, result.random)


def _announce(plan: CheckPlan) -> None:
    pairs = len(set().union(*(set(own.tolist()) for own in plan.sampled.values())))
    checks = sum(map(len, plan.sampled.values()))
    typer.echo(
        f"{len(plan.members)} features of the set and {len(plan.pool)} random ones like them, on {pairs:,} pairs: "
        f"{checks:,} checks, less those measured before.",
        err=True,
    )


def _facts(
    reader: RunReader,
    one: FeatureSet,
    method: str,
    rows: pl.DataFrame,
    not_checked: dict[int, str],
    random: pl.DataFrame | None = None,
) -> dict[str, Any]:
    """Everything that is printed."""
    import polars as pl

    from core.rewards.rank_correlation import rank_correlation
    from core.rewards.verdict import why_not

    labels = reader.labels()
    correlation = {}
    if method == "residual":  # a head's attribution is its ablation: nothing to correlate
        own = rows.select("attribution", "effect").cast(pl.Float64)
        groups = {"set": own}
        if random is not None:
            groups[WITH_RANDOM] = pl.concat([own, random.select("attribution", "effect")])
        for name, frame in groups.items():
            correlation[name] = vars(rank_correlation(frame["attribution"].to_numpy(), frame["effect"].to_numpy()))
    checked = [
        {
            "feature": row.pop("feature_id"),
            "label": labels.get(row_id),
            "sign": one.sign(row_id),
            **row,
            "why": why_not(row),
        }
        for row in rows.sort("effect", descending=True, nulls_last=True).to_dicts()
        for row_id in (row["feature_id"],)
    ]
    missing = [
        {"feature": f, "label": labels.get(f), "sign": one.sign(f), "verdict": "not checked", "why": why}
        for f, why in not_checked.items()
    ]
    return {
        "run": reader.name,
        "set": one.name,
        "version": one.version,
        "method": method,
        "features": checked + missing,
        "rank_correlation": correlation,
        "n_verified": sum(row["verdict"] == "verified" for row in checked),
        "n_checked": len(checked),
    }


def _print(facts: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("feature", "set", "attribution", "effect", "95 % interval", "random", "pairs"):
        table.add_column(name, justify="left" if name == "set" else "right", no_wrap=True)
    table.add_column("verdict")
    table.add_column("label", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in facts["features"]:
        side, label = "S+" if row["sign"] > 0 else "S-", plain(row["label"] or "no label")
        verdict = f"{row['verdict']}: {row['why']}" if row["why"] else row["verdict"]
        figures = [""] * 5
        if row["verdict"] != "not checked":
            figures = [
                _number(row["attribution"]),
                _number(row["effect"]),
                f"{_number(row['ci_low'])} .. {_number(row['ci_high'])}",
                f"{_number(row['random_low'])} .. {_number(row['random_high'])} ({row['n_random']})",
                str(row["n_pairs"]),
            ]
        table.add_row(str(row["feature"]), side, *figures, verdict, label)
    out.print(table)
    out.print(plain(f"{facts['n_verified']} of {facts['n_checked']} features checked are verified."))
    if facts["method"] == "head":
        out.print(plain("Attribution is ablation here: a head is linear, so both are the same number."))
    for name, found in facts["rank_correlation"].items():
        from core.rewards.rank_correlation import RankCorrelation

        out.print(plain(f"Rank correlation of attribution with ablation, {name}: {RankCorrelation(**found)}"))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:+.4f}"
