"""`rewardscope label`: descriptions and ratings of features from an OpenAI-compatible endpoint, each with held-out scores."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.commands.common import AsJson, RunName, Runs, app, command, out, plain, print_json
from core.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from core.features.labels.cost import Cost
    from core.features.labels.endpoint import EndpointSettings
    from core.features.labels.labeller import Job, Summary
    from core.store.reader import RunReader
    from core.store.review import ReviewStore

DEFAULT_TOP = 256
KEPT = ("text", "safety_rating", "monosemanticity", "prompt_tokens", "completion_tokens")
_LABEL_PROBLEM = re.compile(r"(?:^|; )(?:detection|fuzzing): ")


@app.command()
@command
def label(
    run: RunName = None,
    model: Annotated[str, typer.Option(help="Model name as the endpoint knows it; labels carry it.")] = "",
    base_url: Annotated[
        str | None, typer.Option(help="Address of the API with its /v1 (default: $OPENAI_BASE_URL).")
    ] = None,
    key_env: Annotated[str, typer.Option(help="Environment variable that holds the key.")] = "OPENAI_API_KEY",
    features: Annotated[str, typer.Option(help="Feature ids: 12,40-45.")] = "",
    set_name: Annotated[str, typer.Option("--set", help="Features of a set: name, name@version, or JSON file.")] = "",
    top: Annotated[
        int | None, typer.Option(min=1, help=f"The features with the largest |s| (default: {DEFAULT_TOP}).")
    ] = None,
    contexts: Annotated[int, typer.Option(min=5, max=100, help="Passages shown for each feature.")] = 10,
    score_contexts: Annotated[int, typer.Option(min=20, max=100, help="Held-out passages behind either score.")] = 40,
    score: Annotated[bool, typer.Option(help="Test each label by detection and fuzzing.")] = True,
    again: Annotated[bool, typer.Option("--again", help="Also features this model has labelled before.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=512, help="Requests under way at once.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=8, help="Limit of a reply; more for models that think first.")] = 300,
    retries: Annotated[int, typer.Option(min=0, help="Tries after the first, with growing pauses.")] = 4,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for a reply.")] = 120.0,
    price_in: Annotated[float | None, typer.Option(min=0, help="Price of a million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Price of a million reply tokens.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before starting.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cost and one request; ask nothing.")] = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Label features with a language model: description, safety rating, monosemanticity, and how well the label predicts.

    Answers are stored as they arrive; the same command goes on where it stopped. See docs/labels.md.
    """
    from core.features.labels.cost import estimate, token_counter
    from core.features.labels.labeller import requests_of
    from core.runs import find_run
    from core.store.reader import RunReader
    from core.store.review import ReviewStore

    settings = endpoint_settings(
        model, base_url, key_env, max_tokens=max_tokens, concurrency=concurrency, retries=retries, timeout=timeout
    )
    if as_json and not (yes or dry_run):
        raise ConfigError("--json does not ask questions; add --yes to start, or --dry-run to see the cost.")
    store = ReviewStore(runs)
    with RunReader.open(find_run(run, runs)) as reader:
        wanted, how = chosen_features(reader, store, features, set_name, top)
        jobs, skipped = plan_jobs(reader, store, wanted, model, contexts, score_contexts if score else 0, again=again)
        requests = [messages for job in jobs for messages in requests_of(job, score)]
        count, counted_with = token_counter(reader.manifest.model)
        cost = estimate(requests, count, counted_with, max_tokens=max_tokens, price_in=price_in, price_out=price_out)
        facts: dict[str, Any] = {
            "run": reader.name,
            "model": model,
            "endpoint": shown_url(settings.base_url),
            "features": {"chosen": len(wanted), "by": how, "to_do": len(jobs), **skipped},
            "estimate": vars(cost),
        }
        if not as_json:
            announce(facts, cost, settings, as_error=not dry_run)
        if dry_run:
            first = requests[0] if requests else []
            if as_json:
                print_json({**facts, "request": first})
            else:
                for message in first:
                    out.print(plain(f"\n--- {message['role']} ---\n{message['content']}"), soft_wrap=True)
            return
        if jobs and not yes:
            typer.confirm("Start?", abort=True, err=True)
        summary = run_jobs(jobs, settings, reader, store, score=score, quiet=as_json)
    facts["done"] = {**vars(summary), "problems": {str(f): why for f, why in sorted(summary.problems.items())}}
    if as_json:
        print_json(facts)
    else:
        report(summary)


def endpoint_settings(model: str, base_url: str | None, key_env: str, **limits: Any) -> EndpointSettings:
    """Where to ask, from options and environment; the key comes from the environment alone.

    Raises:
        ConfigError: something is missing or cannot be used.
    """
    from urllib.parse import urlsplit

    try:
        from core.features.labels.endpoint import EndpointSettings
    except ImportError:
        raise ConfigError(
            "Labels from an endpoint need the `openai` package: pip install 'rewardscope[labels]'."
        ) from None

    if not model.strip():
        raise ConfigError("Say which model to ask: --model NAME.")
    if model in ("offline", "reviewer"):
        raise ConfigError(f"--model {model} is the name of another source of labels; give the model another name.")
    url = base_url or os.environ.get("OPENAI_BASE_URL", "")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("Give the endpoint's address: --base-url http://127.0.0.1:8000/v1, or OPENAI_BASE_URL.")
    if parts.username or parts.password:
        raise ConfigError("Leave user name and password out of --base-url; a key belongs in an environment variable.")
    key = os.environ.get(key_env) or None
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key):
        raise ConfigError(f"The variable {key_env} does not hold a key: it has spaces or characters no key has.")
    return EndpointSettings(url, model, key, **limits)


def chosen_features(
    reader: RunReader, store: ReviewStore, ids: str, set_name: str, top: int | None
) -> tuple[list[int], str]:
    """The features to label, and how they were chosen in words.

    Raises:
        ConfigError: more than one choice, or ids the run does not have.
    """
    import polars as pl

    if sum((bool(ids), bool(set_name), top is not None)) > 1:
        raise ConfigError("Choose features in one way: --features, --set or --top.")
    if ids:
        found = feature_ids(ids)
        unknown = [f for f in found if f not in reader.features]
        if unknown:
            raise ConfigError(f"This run has no feature {unknown[0]}; it has 0 to {int(reader.features.ids[-1])}.")
        return found, "id"
    if set_name:
        from core.commands.ablate import find_set

        one = find_set(set_name, reader, store)
        return list(one.features), f"set {one.name!r}"
    n = top or DEFAULT_TOP
    salience = reader.salience("split=train", "boundary_sum")
    ranked, column, how = salience, "s", "largest |s| on the training pairs"
    if ranked["s"].is_null().all():
        alive = reader.features.frame.filter(pl.col("alive"))
        ranked, column, how = alive, "weight", "largest |w|, for this run has no salience"
    ranked = ranked.filter(pl.col(column).is_not_null()).sort(
        pl.col(column).abs(), "feature_id", descending=[True, False]
    )
    return [int(f) for f in ranked["feature_id"].head(n)], how


def feature_ids(text: str) -> list[int]:
    """Ids from `12,40-45`, each once, in the order given.

    Raises:
        ConfigError: it says something else.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*#?(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part, re.ASCII)
        if match is None:
            raise ConfigError(f"--features {text!r} is no list of ids; write it like 12,40-45.")
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low or high - low > 1_000_000:
            raise ConfigError(f"--features: {part.strip()!r} is no range of ids.")
        found |= dict.fromkeys(range(low, high + 1))
    return list(found)


def plan_jobs(
    reader: RunReader,
    store: ReviewStore,
    wanted: list[int],
    model: str,
    contexts: int,
    scored: int,
    *,
    again: bool,
) -> tuple[list[Job], dict[str, int]]:
    """What is left to do, and how many features are left out for which reason.

    A feature with a label from this model is finished, or lacks only its scores; one whose label is missing is asked
    about again.
    """
    from core.features.labels.labeller import Job, can_label
    from core.features.labels.passages import feature_passages

    known = known_labels(store.labels(reader.manifest.sae["sha256"]), model)
    finished = {
        f
        for f, row in known.items()
        if not again and (not scored or None not in (row["detection_n"], row["fuzzing_n"]))
    }
    open_ = [f for f in wanted if f not in finished]
    jobs, few = [], 0
    for passages in feature_passages(reader, open_, shown=contexts, scored=scored):
        earlier = known.get(passages.feature)
        if not can_label(passages):
            few += 1
        elif earlier is None or again:
            jobs.append(Job(passages, earlier=earlier is not None))
        else:
            problem = _LABEL_PROBLEM.split(earlier["problem"] or "")[0] or None
            kept = {**{name: earlier[name] for name in KEPT}, "problem": problem}
            jobs.append(Job(passages, earlier["text"], kept))
    return jobs, {"finished": len(wanted) - len(open_), "too_few_passages": few}


def known_labels(labels: pl.DataFrame, model: str) -> dict[int, dict[str, Any]]:
    """The stored rows with a label from this model, by feature."""
    import polars as pl

    rows = labels.filter(pl.col("source") == model, pl.col("text").is_not_null())
    return {row["feature_id"]: row for row in rows.iter_rows(named=True)}


def run_jobs(
    jobs: list[Job],
    settings: EndpointSettings,
    reader: RunReader,
    store: ReviewStore,
    *,
    score: bool,
    quiet: bool,
) -> Summary:
    """Asks the endpoint and stores what comes."""
    import asyncio

    from core.features.labels.endpoint import Endpoint
    from core.features.labels.labeller import label_features
    from core.progress import Progress, RichProgress, Silent

    ours = {"sae": reader.manifest.sae["sha256"], "run_id": reader.manifest.run_id, "source": settings.model}
    progress: Progress = Silent() if quiet else RichProgress()

    async def work() -> Summary:
        with progress.task("labels", len(jobs), "features") as bar:
            async with Endpoint(settings) as endpoint:
                return await label_features(
                    jobs, endpoint, lambda row: store.save_labels([{**ours, **row}]), bar, score=score
                )

    return asyncio.run(work())


def shown_url(url: str) -> str:
    """The address without what may be secret in it."""
    return url.partition("?")[0].partition("#")[0]


def announce(facts: dict[str, Any], cost: Cost, settings: EndpointSettings, *, as_error: bool) -> None:
    """Says what is going to happen, before it does."""
    from urllib.parse import urlsplit

    chosen = facts["features"]
    lines = [f"{chosen['chosen']} features by {chosen['by']}: {chosen['to_do']} to do, {chosen['finished']} finished."]
    if chosen["too_few_passages"]:
        lines.append(f"{chosen['too_few_passages']} have too few passages to be labelled; they stay without a label.")
    price = "no price: give --price-in and --price-out" if cost.price is None else f"price at most {cost.price:,.2f}"
    lines.append(
        f"{cost.requests:,} requests, about {cost.prompt_tokens:,} prompt tokens (counted with {cost.counted_with}), "
        f"at most {cost.completion_tokens:,} reply tokens; {price}."
    )
    parts = urlsplit(settings.base_url)
    if not is_local(parts.hostname or ""):
        lines.append(f"Passages of this run's data are sent to {parts.hostname}.")
        if parts.scheme == "http":
            lines.append("The address is http: passages and key are sent unencrypted.")
    for line in lines:
        typer.echo("".join(c if c.isprintable() else " " for c in line), err=as_error)


def is_local(host: str) -> bool:
    """Whether a host is this machine."""
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def report(summary: Summary) -> None:
    """Says what came of it."""
    out.print(
        plain(
            f"{summary.labelled} features labelled, {summary.rated} with a safety rating, {summary.scored} with a "
            f"detection score. {summary.requests:,} requests, {summary.prompt_tokens:,} prompt tokens, "
            f"{summary.completion_tokens:,} reply tokens."
        )
    )
    if summary.uncounted:
        out.print(plain(f"The server gave no token count for {summary.uncounted} replies; they are not in the sum."))
    if summary.problems:
        out.print(plain(f"Something is missing for {len(summary.problems)} features:"))
        for why, n in Counter(summary.problems.values()).most_common(8):
            out.print(plain(f"  {n:>4}  {why}"))
        if len(set(summary.problems.values())) > 8:
            out.print(plain("  ...  see --json for all"))
