"""A feature's card as escaped HTML: what it is, how often, how strongly, on what, and what is near it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from core.store.reader import FeatureCard
from dashboard.escape import MISSING, esc, figure, known, percent, plain, shorten, signed, tone
from dashboard.parts.histogram import histogram_svg
from dashboard.parts.steer_link import steer_html
from dashboard.parts.tokens import scale_legend, token_html
from dashboard.sensitive import is_sensitive
from dashboard.state import AppState

BANDS = {
    "top": "Strongest",
    "q4": "Highest quarter",
    "q3": "Third quarter",
    "q2": "Second quarter",
    "q1": "Lowest quarter",
    "random": "Random active answers",
    "near_miss": "Near misses",
}
BRIEF = {"top": 5, "q4": 2, "q3": 2, "q2": 2, "q1": 2, "random": 3, "near_miss": 3}
NEIGHBOUR_KINDS = {"decoder": "Similar direction", "coactive": "Active together"}
NEIGHBOUR_NOTES = {"decoder": "cosine of decoder columns", "coactive": "Jaccard overlap over answers"}


def empty_html() -> str:
    """The card while nothing is selected."""
    return (
        '<div class="rs-empty"><b>No feature selected</b>Choose a row or a dot on the map; <kbd>j</kbd> and <kbd>k</kbd> '
        "step through the list.</div>"
    )


def card_html(
    card: FeatureCard, state: AppState, n_features: int, full: bool, labels: pl.DataFrame | None = None
) -> str:
    """The whole card.

    Args:
        card: the reader's answer for the feature.
        state: where links point to.
        n_features: features in the run (what ranks are out of).
        full: every stored context, else a few of each band.
        labels: every label of the feature (core.features.labels.merged); None = only those the run was built with.
    """
    figures = card.figures
    return (
        f'<article class="card" aria-label="Feature {figures["feature_id"]}">'
        f'<div class="who">{_identity(card, state, n_features, card.labels if labels is None else labels)}{_histogram(card)}</div>'
        f'<div class="evidence">{_contexts(card, state, full)}</div>'
        f'<div class="related">{_neighbours(card, state)}</div></article>'
    )


def _identity(card: FeatureCard, state: AppState, n_features: int, labels: pl.DataFrame) -> str:
    f = card.figures
    label = f"<h2>{esc(f['label'])}</h2>" if f["label"] else '<h2 class="rs-muted">No label</h2>'
    weight = f["weight"]
    says = "raises the reward" if weight > 0 else "lowers the reward" if weight < 0 else "does not enter the reward"
    dead = "" if f["alive"] else '<span class="rs-tag">never active in this run</span>'
    cluster = (
        f'<span class="rs-tag" title="Cluster on the map">{esc(shorten(str(f["cluster_name"]), 40))}</span>'
        if f["cluster_name"]
        else ""
    )
    cells = (
        ("density", figure(f["density"], "percent"), "share of answer tokens on which it is active"),
        ("max", figure(f["max_active"]), "largest activation in the run"),
        ("mean", figure(f["mean_active"]), "mean activation over the tokens where it is active"),
        (
            "answers",
            figure(f["n_responses"], "count"),
            f"answers in which it is active, of {figure(f['n_pairs'], 'count')} pairs",
        ),
        ("mean contrib.", _toned(f["mean_contribution"]), "mean over pairs of w × (z chosen − z rejected)"),
        (
            "length corr.",
            figure(f["length_corr"], "signed"),
            "Spearman correlation with answer length; n/a below 30 active answers",
        ),
    )
    stats = "".join(
        f'<div title="{esc(about)}"><dt>{name}</dt><dd class="rs-num">{value}</dd></div>'
        for name, value, about in cells
    )
    return (
        f'<header><span class="id rs-num">#{f["feature_id"]}</span>{label}{steer_html(state, f["feature_id"], weight)}</header>'
        f'<p class="weight"><span class="{tone(weight)} rs-num">w {signed(weight)}</span> {says} '
        f'<span class="rs-muted">· rank {f["weight_rank"]:,} of {n_features:,} by |w|</span> {dead}{cluster}</p>'
        f"<dl class='stats'>{stats}</dl>{_labels(labels, f['label'])}"
    )


def _toned(value: Any) -> str:
    return f'<span class="{tone(value)}">{figure(value, "signed")}</span>'


def _labels(labels: pl.DataFrame, heading: str | None) -> str:
    """Each label with who wrote it and how well it predicts: a label without its score is only a guess."""
    lines = []
    for row in labels.iter_rows(named=True):
        by = esc(row["model"]) if row["model"] == row["source"] else f"{esc(row['model'])} ({esc(row['source'])})"
        text = "" if row["text"] in (None, heading) else f"“{esc(row['text'])}” "
        if row["text"] is None:
            facts = []
        else:
            facts = [*_ratings(row), _score(row, "detection", DETECTION), _score(row, "fuzzing", FUZZING)]
        if problem := row.get("problem"):
            facts.append(f"<span class='rs-missing'>missing</span>: {esc(shorten(problem, 240))}")
        lines.append(f"<li>{text}<span class='rs-muted'>label by {by}:</span> {' · '.join(facts)}</li>")
    return f"<ul class='labels rs-small'>{''.join(lines)}</ul>" if lines else ""


def _ratings(row: Mapping[str, Any]) -> list[str]:
    """Both ratings, 1 to 5; a rule that finds words rates nothing."""
    if row["source"] == "offline":
        return []
    kinds = (
        ("safety", "safety_rating", "how much it has to do with safety: 1 not at all, 5 plainly"),
        ("monosemanticity", "monosemanticity", "1 no pattern, 5 one clear pattern"),
    )
    return [
        f"<span title='{about}'>{name} {row[column] if known(row.get(column)) else MISSING}{' of 5' if known(row.get(column)) else ''}</span>"
        for name, column, about in kinds
    ]


DETECTION = (
    "balanced accuracy at telling held-out contexts where it is active from random ones and near misses; 0.5 is chance"
)
FUZZING = "balanced accuracy at telling rightly from wrongly marked tokens in held-out contexts; 0.5 is chance"


def _score(row: Mapping[str, Any], kind: str, about: str) -> str:
    value, low, high, n = (row.get(f"{kind}_{name}") for name in ("score", "low", "high", "n"))
    if not known(value):
        return f"{kind} {MISSING}"
    assert isinstance(value, float)
    interval = f" [{plain(low, 2)}, {plain(high, 2)}]" if known(low) and known(high) else ""  # type: ignore[arg-type]
    return f"<span title='{about}'>{kind} {plain(value, 2)}{interval}{f', n = {n:,}' if n else ''}</span>"


def _histogram(card: FeatureCard) -> str:
    if card.histogram is None:
        why = "it was never active" if not card.figures["alive"] else "not stored"
        return f"<section><h3>Activation</h3><p class='rs-muted rs-small'>No histogram: {why}.</p></section>"
    edges, counts = card.histogram
    cuts = [row["low"] for row in card.bands.iter_rows(named=True) if row["band"] != "q1"]
    note = "Bars count answer tokens where it is active"
    if known(card.figures["density"]):
        note += (
            f" ({percent(float(str(card.figures['density'])))} of all), in the SAE's activation units, not normalised"
        )
    note += "; lines: the quarters below." if cuts else "."
    return (
        f"<section><h3>Activation</h3>{histogram_svg(edges, counts, what='activation over active tokens', cuts=cuts)}"
        f"<p class='rs-muted rs-small'>{note}</p></section>"
    )


def _neighbours(card: FeatureCard, state: AppState) -> str:
    if not len(card.neighbours):
        return "<section><h3>Neighbours</h3><p class='rs-muted rs-small'>None stored.</p></section>"
    groups = []
    for kind, title in NEIGHBOUR_KINDS.items():
        rows = [_neighbour(row, state) for row in card.neighbours.filter(pl.col("kind") == kind).iter_rows(named=True)]
        if rows:
            more = (
                f"<details><summary>{len(rows) - 4} more</summary><ul>{''.join(rows[4:])}</ul></details>"
                if len(rows) > 4
                else ""
            )
            groups.append(
                f"<div><h4 title='{NEIGHBOUR_NOTES[kind]}'>{title}</h4><ul>{''.join(rows[:4])}</ul>{more}</div>"
            )
    return f"<section class='near'><h3>Neighbours</h3><div class='two'>{''.join(groups)}</div></section>"


def _neighbour(row: Mapping[str, Any], state: AppState) -> str:
    label = shorten(row["label"], 60) if row["label"] else "no label"
    href = esc(state.link(view="features", feature=row["other_id"]))
    arrow = {"rs-up": "▲", "rs-down": "▼"}.get(tone(row["weight"]), "·")
    return (
        f'<li><a href="{href}" title="#{row["other_id"]} {esc(label)}, w {figure(row["weight"], "signed")}">'
        f'<span class="{tone(row["weight"])} arrow" aria-hidden="true">{arrow}</span>'
        f'<span class="rs-num rs-muted">{row["other_id"]}</span> <span class="text">{esc(label)}</span>'
        f'<span class="rs-num rs-muted">{plain(row["score"], 2)}</span></a></li>'
    )


def _contexts(card: FeatureCard, state: AppState, full: bool) -> str:
    if not len(card.contexts):
        why = "it was never active in this run" if not card.figures["alive"] else "none are stored"
        return f"<div class='rs-empty'><b>No contexts</b>{why}.</div>"
    scale = float(card.figures["max_active"]) if known(card.figures["max_active"]) else 0.0
    limits = {row["band"]: row for row in card.bands.iter_rows(named=True)}
    parts = [scale_legend(scale, basis="this feature in the whole run", unit="activation")]
    for band, title in BANDS.items():
        rows = card.contexts.filter(pl.col("band") == band)
        if not len(rows):
            continue
        shown = rows if full else rows.head(BRIEF[band])
        strips = "".join(_context(row, state, scale) for row in shown.iter_rows(named=True))
        rest = f"<span class='rs-muted rs-small'>{len(shown)} of {len(rows)}</span>" if len(shown) < len(rows) else ""
        parts.append(
            f"<section class='band'><h3>{title} {_interval(band, limits.get(band))} {rest}</h3>{strips}</section>"
        )
    return "".join(parts)


def _interval(band: str, limits: Mapping[str, Any] | None) -> str:
    if limits is not None:
        text = f"Interval {plain(limits['low'])}–{plain(limits['high'])} (contains {percent(limits['share'], 2)} of its active answers)"
    else:
        text = {"near_miss": "not active here, on a token where it often is", "random": "drawn evenly"}.get(band, "")
    return f"<span class='rs-muted rs-small'>{text}</span>"


def _context(row: Mapping[str, Any], state: AppState, scale: float) -> str:
    values = row["values"]
    peak = row["peak"]
    blurred = " rs-blur" if is_sensitive(row["domain"], row["side"]) else ""
    strip = token_html(row["tokens"], values, scale=scale, anchor=peak if values[peak] else None, first=row["start"])
    end = row["start"] + len(row["tokens"])
    before, after = "…" if row["start"] else "", "…" if row["n_tokens"] and end < row["n_tokens"] else ""
    where = [
        f"<span class='rs-tag'>{esc(row['side'] or 'unknown side')}</span>",
        f"<span>{esc(shorten(row['domain'] or 'no domain', 30))}</span>",
        f"<span>reward {figure(row['reward'], 'signed')}</span>",
    ]
    link = ""
    if row["pair_id"] is not None:
        href = esc(state.link(view="pairs", pair=row["pair_id"], feature=state.feature, tokens="feature"))
        link = f'<a class="open" href="{href}">open pair</a>'
    peak_value = plain(values[peak]) if values[peak] else "0"
    return (
        f"<div class='context'><span class='peak rs-num' title='activation at the marked token'>{peak_value}</span>"
        f"<div class='text{blurred}'>{before}{strip}{after}</div>"
        f"<div class='where rs-small rs-muted'>{' '.join(where)}{link}</div></div>"
    )
