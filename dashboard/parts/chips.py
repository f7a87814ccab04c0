"""Small pieces of the page that follow the state: the rail of views, the chips of the shared selection, notices."""

from __future__ import annotations

from core.store.pair_queries import pair_row
from core.store.reader import RunReader
from dashboard.escape import esc, shorten
from dashboard.state import URL, AppState, format_number

ICONS = {
    "features": '<circle cx="6" cy="7" r="2.2"/><circle cx="15" cy="5.5" r="1.6"/><circle cx="17" cy="14" r="2.6"/><circle cx="8" cy="16" r="1.8"/>',
    "pairs": '<rect x="3" y="4" width="7.5" height="14" rx="1.5"/><rect x="12.5" y="4" width="7.5" height="14" rx="1.5"/>',
    "salience": '<path d="M3 18.5h17M11.5 18.5v-15" fill="none" stroke="currentColor" stroke-width="1.6"/><circle cx="6" cy="7" r="1.9"/><circle cx="9" cy="14" r="1.3"/><circle cx="14" cy="13" r="1.3"/><circle cx="17.5" cy="6" r="1.9"/>',
    "impact": '<path d="M3 5c5 1 8 3 10 6s4 5 7 6M3 5c6 0 12 1 17 3" fill="none" stroke="currentColor" stroke-width="1.8"/><circle cx="13" cy="11" r="1.9"/>',
    "steering": '<path d="M3 6h17M3 11h17M3 16h17" fill="none" stroke="currentColor" stroke-width="1.6"/><circle cx="14.5" cy="6" r="2.4"/><circle cx="7" cy="11" r="2.4"/><circle cx="11.5" cy="16" r="2.4"/>',
    "benchmarks": '<path d="M3 18.5h17" fill="none" stroke="currentColor" stroke-width="1.6"/><rect x="4.5" y="11" width="3" height="6"/><rect x="10" y="7" width="3" height="10"/><rect x="15.5" y="4" width="3" height="13"/>',
}
COLUMN_NAMES = {
    "weight": "weight",
    "weight_rank": "weight rank",
    "density": "density",
    "max_active": "max activation",
    "mean_active": "mean activation",
    "n_responses": "answers",
    "mean_contribution": "mean contribution",
    "length_corr": "length correlation",
    "detection_score": "detection score",
}


def rail_html(state: AppState) -> str:
    """Links to the views, the current one marked."""
    links = []
    for number, (view, icon) in enumerate(ICONS.items(), start=1):
        current = ' aria-current="page"' if view == state.view else ""
        links.append(
            f'<a href="{esc(state.link(view=view))}"{current} title="{view.capitalize()} ({number})">'
            f'<svg viewBox="0 0 23 22" aria-hidden="true">{icon}</svg><span>{view.capitalize()}</span></a>'
        )
    return f'<div class="rail">{"".join(links)}</div>'


def chips_html(state: AppState, reader: RunReader | None) -> str:
    """The shared selection and the current view's filters, each with a link that removes it."""
    chips = []
    if state.feature is not None and reader is not None:
        label = reader.features.take([state.feature])["label"][0] if state.feature in reader.features else None
        chips.append(
            _chip(state, "feature", f"Feature {state.feature}" + (f" · {shorten(label, 40)}" if label else ""))
        )
    if state.pair is not None and reader is not None:
        with reader.cursor() as cursor:
            rows = pair_row(cursor, state.pair)
        chips.append(_chip(state, "pair", f"Pair {rows['pair_index'][0] if len(rows) else state.pair}"))
    if state.is_steered:
        moved = sum(multiplier != 1 for multiplier in state.steering.values())
        chips.append(_steered_badge(state, moved))
    filters = {
        "features": _feature_filters,
        "pairs": _pair_filters,
        "salience": _salience_choices,
        "impact": _impact_choices,
        "steering": _steering_choices,
    }.get(state.view)
    chips += filters(state) if filters else []
    hint = '<span class="rs-muted rs-small">Nothing selected, no filters. Press <kbd>?</kbd> for keys.</span>'
    return f'<div class="chips" role="group" aria-label="Selection and filters">{"".join(chips) or hint}</div>'


def notices_html(state: AppState) -> str:
    """Sentences about what could not be done, newest last."""
    lines = "".join(f"<p>{esc(text)}</p>" for text in state.notices)
    return f'<div class="notices" role="status">{lines}<span class="rs-small rs-muted">Esc closes this.</span></div>'


def _feature_filters(state: AppState) -> list[str]:
    chips = []
    if state.search.strip():
        chips.append(_chip(state, "search", f"has “{shorten(state.search, 30)}”"))
    if state.sign != "any":
        chips.append(_chip(state, "sign", f"{state.sign} reward"))
    if state.cluster is not None:
        chips.append(_chip(state, "cluster", "in no cluster" if state.cluster < 0 else f"cluster {state.cluster}"))
    if state.show_dead:
        chips.append(_chip(state, "show_dead", "dead features too"))
    for column, (low, high) in state.ranges.items():
        rest = {name: bounds for name, bounds in state.ranges.items() if name != column}
        href = state.link(ranges=rest) if rest else _without(state, "ranges")
        chips.append(_chip(state, "ranges", f"{COLUMN_NAMES[column]} {_span(low, high)}", href))
    if state.lasso:
        chips.append(_chip(state, "lasso", "region of the map"))
    return chips


def _pair_filters(state: AppState) -> list[str]:
    chips = []
    if state.pair_search.strip():
        chips.append(_chip(state, "pair_search", f"has “{shorten(state.pair_search, 30)}”"))
    for name in ("domain", "category", "source", "split"):
        value = getattr(state, name)
        if value is not None:
            chips.append(_chip(state, name, f"{name} {shorten(value, 30) if value else '(none)'}"))
    if state.verdict != "any":
        chips.append(_chip(state, "verdict", f"model {state.verdict}"))
    if state.margin != (None, None):
        chips.append(_chip(state, "margin", f"margin {_span(*state.margin)}"))
    return chips


def _salience_choices(state: AppState) -> list[str]:
    chips = []
    if state.slice != "all":
        column, _, value = state.slice.partition("=")
        chips.append(_chip(state, "slice", f"slice {shorten(column, 20)}: {shorten(value, 30) or '(none)'}"))
    if state.pooling != state.param.pooling.default:
        chips.append(_chip(state, "pooling", f"pooling {state.pooling}"))
    if state.length_control:
        chips.append(_chip(state, "length_control", "at equal length"))
    if state.set_name:
        chips.append(_chip(state, "set_name", f"set {shorten(state.set_name, 40)}"))
    return chips


def _steered_badge(state: AppState, moved: int) -> str:
    """Shown in every view while a steering is active: rewards elsewhere on the page are not steered, and say so."""
    what = f"Steered: {moved} feature{'s' if moved > 1 else ''}"
    why = "Only the Steering view shows steered rewards; everything else, and the run itself, is unchanged."
    return f'<a class="rs-steered" href="{esc(state.link(view="steering"))}" title="{why}"><b>{what}</b></a>' + _chip(
        state, "steering", "reset steering"
    )


def _impact_choices(state: AppState) -> list[str]:
    chips = []
    if state.set_name:
        chips.append(_chip(state, "set_name", f"set {shorten(state.set_name, 40)}"))
    if state.impact_domain != "all":
        chips.append(_chip(state, "impact_domain", f"held-out {shorten(state.impact_domain, 30)}"))
    return chips


def _steering_choices(state: AppState) -> list[str]:
    if not state.target:
        return []
    column, _, value = state.target.partition("=")
    return [_chip(state, "target", f"target {shorten(column, 20)}: {shorten(value, 30) or '(none)'}")]


def _span(low: float | None, high: float | None) -> str:
    if low is None:
        return f"≤ {format_number(high)}"
    return f"≥ {format_number(low)}" if high is None else f"{format_number(low)} to {format_number(high)}"


def _without(state: AppState, name: str) -> str:
    return f"{state.link()}&{URL[name].key}="


def _chip(state: AppState, name: str, text: str, href: str | None = None) -> str:
    return (
        f'<a class="rs-chip" data-clears href="{esc(href or _without(state, name))}" title="Remove: {esc(text)}">'
        f'<b>{esc(text)}</b><span class="x" aria-hidden="true">×</span></a>'
    )
