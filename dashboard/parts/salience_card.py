"""What speaks for and against the selected feature: its figures, its effect over slices, the pairs where it differs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from dashboard.escape import MISSING, esc, figure, known, plain, shorten, signed
from dashboard.parts.aligned import aligned, decimals_for
from dashboard.parts.salience_rows import LEVEL
from dashboard.state import AppState

WAITING = '<span class="rs-muted" role="status">…</span>'
GROUPS = ("all", "split", "domain", "category")
"""Slice columns in the order they are shown; label columns come after these, by name."""
VERDICTS = {
    "verified": "taking it away moves margins beyond matched random features",
    "correlated only": "taking it away moves margins no more than matched random features do",
    "not checked": "run `rewardscope ablate` to find out",
}


def column_of(slice_name: str) -> str:
    """The column a slice is cut by; 'all' for the whole."""
    return slice_name.partition("=")[0]


def value_of(slice_name: str) -> str:
    """The value of a slice's column, 'all pairs' for the whole."""
    return slice_name.partition("=")[2] if "=" in slice_name else "all pairs"


def in_order(slices: list[str]) -> list[str]:
    """Slices grouped by column: the whole, split, domain, category, then labels."""
    column = {name: column_of(name) for name in slices}
    first = {name: i for i, name in enumerate(GROUPS)}
    return sorted(slices, key=lambda name: (first.get(column[name], len(GROUPS)), column[name]))


def nothing_html() -> str:
    """While no feature is selected."""
    return (
        '<div class="rs-empty"><b>No feature selected</b>Choose a row or a dot; <kbd>j</kbd> and <kbd>k</kbd> step through '
        "the list, <kbd>+</kbd> <kbd>−</kbd> <kbd>0</kbd> put the feature into S+, into S− or take it out.</div>"
    )


def card_html(
    row: Mapping[str, Any] | None,
    raw: Mapping[str, Any] | None,
    slices: pl.DataFrame,
    state: AppState,
    *,
    bootstrap: tuple[float, float] | tuple[()] | None,
    pairs: pl.DataFrame | None,
    sign: int,
    steer: str = "",
) -> str:
    """The whole of it.

    Args:
        row: the feature's row of `Rows.frame` (label, rating, detection, causal); None = nothing about it here.
        raw: its row of the table `salience` in the open slice and pooling; None = it was never active there.
        slices: its rows of the open pooling, one a slice.
        state: where links point to.
        bootstrap: 95 % bootstrap interval of the effect; None = not computed yet, () = cannot be given.
        pairs: pair_id, snippet, difference of the pairs where it differs most; None = not available.
        sign: of the feature in the open set.
        steer: a link that puts it on a slider, as HTML.
    """
    feature = state.feature
    label = row["label"] if row else None
    name = f"<h2>{esc(label)}</h2>" if label else '<h2 class="rs-muted">No label</h2>'
    mark = {1: "<span class='rs-tag'>in S+</span>", -1: "<span class='rs-tag'>in S−</span>"}.get(sign, "")
    href = esc(state.link(view="features", feature=feature))
    return (
        f'<article class="evidence" aria-label="Salience of feature {feature}">'
        f'<header><span class="id rs-num">#{feature}</span>{name}{mark}{steer}<a class="open" href="{href}">open its card</a></header>'
        f"<div class='sides'><div>{_figures(row, raw, bootstrap)}{_pairs(pairs, state)}</div>{forest_html(slices, state)}</div>"
        "</article>"
    )


def _figures(
    row: Mapping[str, Any] | None, raw: Mapping[str, Any] | None, bootstrap: tuple[float, float] | tuple[()] | None
) -> str:
    if raw is None:
        return "<p class='rs-muted'>It is active in no pair of this slice.</p>"
    why = f"active in {raw['n_active']:,} pairs of this slice, too few for a test" if not known(raw["p"]) else ""
    boot = WAITING
    if bootstrap is not None:
        write = aligned([*bootstrap])
        boot = f"<span class='rs-num'>[{write(bootstrap[0])}, {write(bootstrap[1])}]</span>" if bootstrap else MISSING
    halves = " · ".join(figure(raw[name], "signed") for name in ("effect_first", "effect_second"))
    cells = [
        ("effect", _span(raw, "effect", "ci_low", "ci_high"), "mean over prompts of chosen − rejected, activation units; interval clustered by prompt"),
        ("bootstrap", boot, "95 % interval of the effect, prompts drawn with replacement"),
        ("at equal length", _span(raw, "effect_length_adjusted", "adjusted_low", "adjusted_high"), "the effect with the length difference held at zero"),
        ("q · at equal length", f"{_q(raw['q'])} · {_q(raw['q_adjusted'])}", "Benjamini-Hochberg over all tested features of this slice and pooling"),
        ("p, max of all", _q(raw["p_family"]), "chance that the strongest of all features shows as much under shuffled signs"),
        ("AUC", _span(raw, "auc", "auc_low", "auc_high", plus=False), "chance that the chosen answer has more of it"),
        ("both halves", f"{halves} {esc(raw['replication'] or '')}", "effect on either half of the prompts"),
        ("s = (h+ − h−)/(h+ + h− + C)", f"{figure(raw['s'], 'signed')} <span class='rs-muted'>h+ {figure(raw['chosen_sum'])}, h− {figure(raw['rejected_sum'])}</span>", "SAFER's salience with its sums"),
        ("active in", f"{raw['n_active']:,} of {raw['n_pairs']:,} pairs", f"{raw['n_prompts']:,} prompts"),
    ]  # fmt: skip
    if row is not None:
        cells += [
            ("safety rating", figure(row["rating"], "count"), "1 to 5, by the labelling endpoint"),
            ("detection", figure(row["detection"]), "balanced accuracy of the label on held-out contexts; 0.5 is chance"),
            ("causal check", esc(row["causal"]), VERDICTS.get(row["causal"], "")),
        ]  # fmt: skip
    body = "".join(f'<div title="{esc(about)}"><dt>{name}</dt><dd>{value}</dd></div>' for name, value, about in cells)
    note = f"<p class='rs-small rs-muted'>Not tested: {why}.</p>" if why else ""
    return f"<dl>{body}</dl>{note}"


def _span(raw: Mapping[str, Any], middle: str, low: str, high: str, plus: bool = True) -> str:
    if not known(raw[middle]):
        return MISSING
    figures = [raw[name] for name in (middle, low, high) if known(raw[name])]
    decimals = max(decimals_for(figures), 2)

    def write(value: float) -> str:
        return f"{value:{'+' if plus else ''}.{decimals}f}".replace("-", "−")

    ends = f" [{write(raw[low])}, {write(raw[high])}]" if len(figures) == 3 else ""
    return f"<span class='rs-num'>{write(raw[middle])}</span><span class='rs-num rs-muted'>{ends}</span>"


def _q(value: object) -> str:
    return (
        f"<span class='rs-num'>{plain(float(value), 2)}</span>"
        if isinstance(value, float) and known(value)
        else MISSING
    )


def _pairs(pairs: pl.DataFrame | None, state: AppState) -> str:
    if pairs is None or not len(pairs):
        return ""
    lines = []
    for pair_id, snippet, difference in pairs.select("pair_id", "snippet", "difference").iter_rows():
        href = esc(state.link(view="pairs", pair=pair_id, feature=state.feature, tokens="feature"))
        tone = "rs-up" if difference > 0 else "rs-down"
        lines.append(
            f'<li><a href="{href}"><span class="rs-num {tone}">{signed(difference)}</span>'
            f'<span class="text">{esc(shorten(snippet, 90))}</span></a></li>'
        )
    return (
        "<h3 title='chosen − rejected, the pooling above'>Pairs of this slice where it differs most</h3>"
        f"<ul class='pairs'>{''.join(lines)}</ul>"
    )


def forest_html(slices: pl.DataFrame, state: AppState) -> str:
    """Effect size with its interval in every slice: dot = as it is, hollow square = at equal length.

    The interval of the effect size is that of the effect over the same standard deviation.
    """
    rows = {row["slice"]: _scaled(row) for row in slices.iter_rows(named=True)}
    ends = [
        end for row in rows.values() for end in (row["low"], row["high"], row["size"], row["adjusted"]) if known(end)
    ]
    low, high = min([*ends, -0.1]), max([*ends, 0.1])
    parts, group = [], None
    for name in in_order(list(rows)):
        if column_of(name) != group:
            group = column_of(name)
            if group != "all":
                parts.append(f"<tr class='group'><th colspan='4' scope='rowgroup'>{esc(shorten(group, 40))}</th></tr>")
        parts.append(_slice_row(name, rows[name], (low, high), state))
    return (
        "<section class='forest'><h3>Effect size by slice</h3><table><thead><tr><th>slice</th><th class='n'>pairs</th>"
        f"<th><span class='ends rs-num'><span>{signed(low, 2)}</span><span>{signed(high, 2)}</span></span></th>"
        f"<th class='n'>size</th></tr></thead><tbody>{''.join(parts)}</tbody></table>"
        "<p class='rs-small rs-muted'>● with 95 % interval, right = more in chosen, coloured where q ≤ 0.05; □ at equal "
        "length. Intervals are the effect’s, over the same standard deviation.</p></section>"
    )


def _scaled(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `salience` with effect, interval and adjusted effect in standard deviations."""
    usable = known(row["effect_size"]) and known(row["effect"]) and row["effect"]
    scale = row["effect_size"] / row["effect"] if usable else math.nan

    def over(name: str) -> float | None:
        return row[name] * scale if usable and known(row[name]) else None

    return {
        "size": row["effect_size"],
        "low": over("ci_low"),
        "high": over("ci_high"),
        "adjusted": over("effect_length_adjusted"),
        "q": row["q"],
        "n_pairs": row["n_pairs"],
        "n_prompts": row["n_prompts"],
        "n_active": row["n_active"],
    }


def _slice_row(name: str, row: Mapping[str, Any], ends: tuple[float, float], state: AppState) -> str:
    here = ' class="now" aria-current="true"' if name == state.slice else ""
    href = esc(state.link(slice=name))
    label = f'<a href="{href}">{esc(shorten(value_of(name) or "(none)", 34))}</a>'
    n = f"<td class='n rs-num' title='{row['n_prompts']:,} prompts, active in {row['n_active']:,} pairs'>{row['n_pairs']:,}</td>"
    if not known(row["q"]):
        said = f"not tested ({row['n_active']:,} active)"
        return (
            f"<tr{here}><td>{label}</td>{n}<td class='rs-muted rs-small'>{said}</td><td class='n'>{MISSING}</td></tr>"
        )
    tone = ("up" if row["size"] > 0 else "down") if row["q"] <= LEVEL else "none"
    text = {"up": "rs-up", "down": "rs-down", "none": "rs-muted"}[tone]
    says = f"effect size {signed(row['size'])}, q {plain(row['q'], 2)}"
    return (
        f"<tr{here}><td>{label}</td>{n}<td title='{says}'>{''.join(_drawing(row, ends, tone))}</td>"
        f"<td class='n rs-num {text}'>{aligned([1.0])(row['size'])}</td></tr>"
    )


def _drawing(row: Mapping[str, Any], ends: tuple[float, float], tone: str) -> Iterator[str]:
    """Places are shares of the width, so that the drawing is as wide as there is room and its marks stay round."""
    low, high = ends

    def x(value: float) -> str:
        return f"{3 + (value - low) / (high - low) * 94:.2f}%"

    yield f'<svg class="{tone}" height="18" role="img" aria-hidden="true">'
    yield f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="0" y2="18"/>'
    if known(row["low"]) and known(row["high"]):
        yield f'<line class="span" x1="{x(row["low"])}" x2="{x(row["high"])}" y1="9" y2="9"/>'
    if known(row["adjusted"]):
        yield f'<rect x="{x(row["adjusted"])}" y="5" width="8" height="8" transform="translate(-4 0)"/>'
    yield f'<circle cx="{x(row["size"])}" cy="9" r="4"/></svg>'
