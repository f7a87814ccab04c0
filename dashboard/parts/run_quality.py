"""What a run is worth, at a glance (the strip under the header) and in full (the "About this run" sheet)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from core.rewards.decomposition import SUM_TOLERANCE
from core.store.reader import RunReader
from dashboard.escape import MISSING, esc, figure, known, percent, plain, shorten

MAX_ABOUT_ROWS = 400
MUCH_SPREAD = 0.05
"""Spread of a reward over batch compositions, in standard deviations, from which the strip warns."""


def strip_html(reader: RunReader) -> str:
    """The strip: model, SAE, data, held-out accuracy beside its baselines, SAE quality, health. Escaped HTML."""
    manifest = reader.manifest
    sae, data = manifest.sae, manifest.data
    name = str(manifest.model.get("name", "")).rsplit("/", 1)[-1]
    held = reader.figure("held-out", "accuracy")
    dead = int((~reader.features.frame["alive"].to_numpy()).sum())
    pooling = esc(manifest.head.get("pooling", ""))
    tiles = [
        _tile("Model", esc(shorten(name, 26)), f"layer {_count(manifest.model.get('layer'))} · {pooling} pooling"),
        _tile("SAE", f"{_count(sae.get('latents'))} features", f"{_active(sae)} · {dead:,} dead"),
        _tile("Pairs", _count(data.get("n_pairs")), f"{_count(data.get('n_prompts'))} prompts" + _skipped(data)),
        *_reward_model(reader),
        _tile("Held-out accuracy", _share(reader, "held-out", "accuracy"), f"{_interval(held)}, n = {_n(held)}"),
        _tile("Longer answer wins", _share(reader, "length", "accuracy"), "baseline"),
        _tile("Raw-state probe", _share(reader, "probe", "accuracy_raw"), "same layer, no SAE"),
        _tile("Unexplained", _plain(reader, "sae", "fvu"), "variance, by the SAE"),
        _tile("Health", *_health(reader)),
    ]
    return f'<div class="strip" role="group" aria-label="Quality of this run">{"".join(tiles)}</div>'


def _active(sae: Mapping[str, Any]) -> str:
    """k; of an imported SAE with a varying number of active features their mean on a token."""
    quality = sae.get("quality", {})
    return f"k = {_count(sae.get('k'))}" if quality.get("cut_share") is None else f"{figure(quality.get('l0'))} active"


def _reward_model(reader: RunReader) -> list[str]:
    """The accuracy of the ordinary reward model the SAE stands beside; the next tile is then the head on its features."""
    own = reader.figure("reward-model held-out", "accuracy")
    if own is None:
        return []
    share = _share(reader, "reward-model held-out", "accuracy")
    return [_tile("Reward model, held-out", share, f"{_interval(own)}; next: head on features")]


def _tile(name: str, value: str, below: str) -> str:
    return f'<div class="tile"><span class="name">{name}</span><span class="value">{value}</span><span class="below">{below}</span></div>'


def _count(value: Any) -> str:
    """A whole number, also when a checkpoint's metadata carries it as text."""
    return figure(int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value, "count")


def _skipped(data: Mapping[str, Any]) -> str:
    n = data.get("n_skipped")
    return f" · <b>{n:,} rows skipped</b>" if isinstance(n, int) and n else ""


def _value(row: Mapping[str, Any] | None) -> Any:
    return row["value"] if row else None


def _share(reader: RunReader, benchmark: str, metric: str) -> str:
    return figure(_value(reader.figure(benchmark, metric)), "percent")


def _plain(reader: RunReader, benchmark: str, metric: str) -> str:
    return figure(_value(reader.figure(benchmark, metric)))


def _n(row: Mapping[str, Any] | None) -> str:
    return f"{row['n']:,}" if row else MISSING


def _interval(row: Mapping[str, Any] | None) -> str:
    if not row or not known(row["ci_low"]) or not known(row["ci_high"]):
        return "no interval"
    return f"{plain(100 * row['ci_low'])}–{plain(100 * row['ci_high'])} %"


def _health(reader: RunReader) -> tuple[str, str]:
    """The sum check in a word, and the spread over batch compositions."""
    check, spread = reader.figure("health", "sum_error"), reader.figure("health", "batch_spread_max")
    error = _value(check)
    if not known(error):
        word = '<span class="bad">not checked</span>'
    elif error <= SUM_TOLERANCE:
        word = f'<span class="ok" title="largest error {plain(error)}, n = {_n(check)}">✓ sums exact</span>'
    else:
        word = f'<span class="bad" title="n = {_n(check)}">✗ sums differ by {plain(error)}</span>'
    much = known(_value(spread)) and _value(spread) > MUCH_SPREAD
    says = "batch spread " + (f"<b>{plain(_value(spread), 2)} SD</b>" if much else f"{figure(_value(spread))} SD")
    return word, f'<span title="{esc(spread["note"]) if spread else ""}">{says}</span>'


def about_html(reader: RunReader) -> str:
    """Everything that was measured and recorded about the run, as escaped HTML."""
    manifest = reader.manifest
    facts = {
        "Run": f"{manifest.name} ({manifest.run_id})",
        "Made": f"{manifest.created}, code {manifest.code_version}",
        "Head": "Bradley-Terry, exact fit; r = Σ wᵢzᵢ",
    }
    groups = {"Model": manifest.model, "Data": manifest.data, "SAE": manifest.sae, "Head": manifest.head}
    groups |= {"Health": manifest.health, "Seeds": manifest.seeds, "Versions": manifest.versions}
    sections = [
        '<section><h3>Held-out accuracy</h3><p class="rs-muted rs-small">Share of held-out pairs whose chosen answer gets the '
        "higher reward, with a 95 % interval over prompts. Dashed: “the longer answer wins”; dotted: chance.</p>"
        + accuracy_figure(reader.evaluation)
        + "</section>",
        "<section><h3>This run</h3>" + _facts(facts) + "</section>",
        *(
            f"<section><h3>{esc(name)}</h3>{_facts(dict(_flat(group)))}</section>"
            for name, group in groups.items()
            if group
        ),
        "<section class='wide'><h3>Every measured figure</h3>" + _evaluation_table(reader.evaluation) + "</section>",
    ]
    return f'<div class="about">{"".join(sections)}</div>'


def _flat(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in group.items():
        if isinstance(value, list) and len(value) > 6:
            yield f"{prefix}{key}", f"{len(value)} values"
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _facts(facts: Mapping[str, Any]) -> str:
    rows = []
    for key, value in facts.items():
        shown = figure(value, "count" if isinstance(value, int) else "plain") if known(value) else esc(value)
        rows.append(f"<dt>{esc(key.replace('_', ' '))}</dt><dd>{MISSING if value is None else shown}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _evaluation_table(evaluation: pl.DataFrame) -> str:
    rows = "".join(
        f"<tr><td>{esc(row['benchmark'])}</td><td>{esc(row['subset'])}</td><td>{esc(row['metric'].replace('_', ' '))}</td>"
        f"<td class='rs-num'>{figure(row['value'], 'plain')}</td><td class='rs-num'>{_plain_interval(row)}</td>"
        f"<td class='rs-num'>{row['n']:,}</td><td>{esc(row['note'])}</td></tr>"
        for row in evaluation.head(MAX_ABOUT_ROWS).iter_rows(named=True)
    )
    heads = "".join(
        f"<th>{name}</th>" for name in ("benchmark", "subset", "metric", "value", "95 % interval", "n", "how")
    )
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _plain_interval(row: Mapping[str, Any]) -> str:
    return (
        f"{plain(row['ci_low'])} to {plain(row['ci_high'])}" if known(row["ci_low"]) and known(row["ci_high"]) else "–"
    )


def accuracy_figure(evaluation: pl.DataFrame) -> str:
    """Accuracy of each domain as a dot with its interval, on one scale with chance and the length baseline; inline SVG."""
    rows = evaluation.filter(benchmark="held-out", metric="accuracy").to_dicts()
    if not rows:
        return f"<p>{MISSING}</p>"
    rows.sort(key=lambda row: (row["subset"] != "all", row["subset"]))
    length = evaluation.filter(benchmark="length", metric="accuracy", subset="all")["value"].to_list()
    line, left, right, width = 22, 150, 150, 620
    span = width - left - right

    def x(share: float) -> float:
        return left + span * min(max(share, 0.0), 1.0)

    height = line * len(rows) + 24
    parts = [f'<line class="chance" x1="{x(0.5):.1f}" x2="{x(0.5):.1f}" y1="0" y2="{height - 22}"/>']
    if length and known(length[0]):
        parts.append(
            f'<line class="length" x1="{x(length[0]):.1f}" x2="{x(length[0]):.1f}" y1="0" y2="{height - 22}"/>'
        )
    for i, row in enumerate(rows):
        y = line * i + line / 2
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{esc(shorten(row["subset"], 22))}</text>')
        if not known(row["value"]):
            parts.append(f'<text class="none" x="{left}" y="{y + 4}">not computed</text>')
            continue
        if known(row["ci_low"]) and known(row["ci_high"]):
            parts.append(
                f'<line class="ci" x1="{x(row["ci_low"]):.1f}" x2="{x(row["ci_high"]):.1f}" y1="{y}" y2="{y}"/>'
            )
        parts.append(f'<circle cx="{x(row["value"]):.1f}" cy="{y}" r="{5 if row["subset"] == "all" else 4}"/>')
        parts.append(f'<text x="{width - right + 12}" y="{y + 4}">{percent(row["value"])} (n = {row["n"]:,})</text>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<text class="tick" x="{x(share):.1f}" y="{height - 4}" text-anchor="middle">{share:.0%}</text>')
    return (
        f'<svg class="accuracy" viewBox="0 0 {width} {height}" role="img" aria-label="Held-out accuracy by domain; the same '
        f'figures stand in the table below">{"".join(parts)}</svg>'
    )
