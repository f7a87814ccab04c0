"""Salience: which features tell chosen from rejected answers, how surely, on which pairs; and the safety set they make."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import polars as pl

from core.store.reader import RunReader
from dashboard import sets
from dashboard.escape import esc, shorten
from dashboard.parts import salience_card, salience_evidence
from dashboard.parts.salience_rows import LEVEL, Listing, Rows, counts, csv_text, listed, members, rows_of
from dashboard.parts.salience_table import SalienceTable
from dashboard.parts.set_editor import SetEditor
from dashboard.parts.sign_changes import SignChanges
from dashboard.parts.steer_link import steer_html
from dashboard.parts.volcano import Volcano
from dashboard.state import POOLINGS, AppState
from dashboard.theme import sheet

AXIS_NAMES = {"effect size": "effect_size", "effect": "effect", "SAFER’s s": "s"}
POOLING_NAMES = {
    "last token": "last",
    "mean": "mean",
    "max": "max",
    "boundary sum": "boundary_sum",
}
TIGHT = {"& .MuiToggleButton-root": {"padding": "1px 10px", "whiteSpace": "nowrap"}}
DATA = {"slice", "pooling", "length_control"}
SETS = {"set_name", "drafts"}
WATCHED = ["view", "feature", "dark", "volcano", *DATA, *SETS]


class SalienceView:
    """Volcano plot and evidence 55 %, table and open set 45 %. While another view is on show it waits."""

    def __init__(self, state: AppState, reader: RunReader) -> None:
        self._state, self._reader = state, reader
        self._store = sets.review_store()
        self._evidence = pl.DataFrame()
        self._rows: Rows | None = None
        self._signs = np.empty(0, dtype=np.int64)
        self._region: np.ndarray | None = None
        self._listing = Listing()
        self._at = np.empty(0, dtype=np.int64)
        self._slices = pl.DataFrame()
        self._listed_pooling = ""
        self._known: dict[str, tuple[pl.DataFrame, pl.DataFrame]] = {}
        self._intervals: dict[tuple[int, str, str], tuple[float, float] | tuple[()]] = {}
        self._pending = set(WATCHED)
        self._build()
        self._flush()
        state.param.watch(self._changed, WATCHED)

    # ------------------------------------------------------------------ layout

    def _build(self) -> None:
        state = self._state
        small = {"size": "small", "description": "", "margin": (8, 5, 4, 5)}
        self._slice = pmui.Select(label="Slice", options=["all"], searchable=True, min_width=150, sizing_mode="stretch_width", **small)  # fmt: skip
        self._slice.param.watch(self._slice_picked, "value")
        self._pooling = pmui.Select.from_param(state.param.pooling, label="Pooling", options=POOLING_NAMES, width=138, **small)  # fmt: skip
        self._axis = pmui.Select.from_param(state.param.volcano, label="Axis", options=AXIS_NAMES, width=118, **small)  # fmt: skip
        self._equal = pmui.Switch.from_param(
            state.param.length_control, label="at equal length", description="", size="small", margin=(4, 5), align="center"
        )  # fmt: skip
        self._counts = self._pane(margin=(2, 12, 4, 12))
        self._empty = self._pane(visible=False)
        self._volcano = Volcano(on_feature=self._pick, on_region=self._draw_region)
        self._caption = self._pane(margin=(0, 12, 2, 12))
        self._card = self._pane()
        self._plot = _box(56, line="bottom")
        self._search = pmui.TextInput(
            label="Search labels", css_classes=["rs-search"], sizing_mode="stretch_width", min_width=120, **small
        )
        self._search.param.watch(lambda event: self._list(search=event.new or ""), "value_input")
        box = {"size": "small", "margin": (0, 4), "align": "center", "value": False}
        self._significant = pmui.Checkbox(label="significant", **box)
        self._significant.param.watch(lambda event: self._list(significant=event.new), "value")
        self._members = pmui.Checkbox(label="in the set", **box)
        self._members.param.watch(lambda event: self._list(members=event.new), "value")
        self._all_listed = pmui.Checkbox(label="all listed", **box)
        self._all_listed.param.watch(lambda _: self._show_targets(), "value")
        self._what = pmui.RadioButtonGroup(
            label="", options={"Features": "features", "Sign changes": "changes"}, value="features", size="small", margin=(2, 8), align="center", sx=TIGHT
        )  # fmt: skip
        self._what.param.watch(lambda _: self._show_what(), "value")
        self._clear = pmui.Button(label="Clear region", size="small", variant="text", margin=0, visible=False, align="center")  # fmt: skip
        self._clear.on_click(lambda _: self._draw_region(()))
        self._download = pmui.FileDownload(
            callback=self._csv, filename="salience.csv", label="CSV", size="small", variant="text", margin=0, align="center"
        )  # fmt: skip
        self._listed = self._pane(margin=(0, 10), align="center")
        self._acts_on = pn.pane.HTML(stylesheets=[sheet("parts")], margin=(0, 6), align="center")
        self._table = SalienceTable(on_pick=self._pick, on_sort=self._sort)
        self._changes = SignChanges(on_pick=self._pick)
        self._editor = SetEditor(state, self._reader, self._store, self._targets, self._ratings)

    def _pane(self, **params: Any) -> pn.pane.HTML:
        sheets = [sheet("parts"), sheet("salience")]
        return pn.pane.HTML(stylesheets=sheets, **{"margin": 0, "sizing_mode": "stretch_width", **params})

    def __panel__(self) -> pn.viewable.Viewable:
        above = _line(self._slice, self._pooling, self._axis, self._equal)
        self._plot[:] = [pn.Row(self._volcano, sizing_mode="stretch_both", margin=0), self._caption]
        evidence = pn.Column(
            self._card, sizing_mode="stretch_both", margin=0, scroll="y-auto", styles={"min-height": "0"}
        )
        left = _box(55, above, self._counts, self._empty, self._plot, _box(44, evidence), line="right")
        acts = _line(
            self._editor.to_plus, self._editor.to_minus, self._editor.take_out, self._all_listed, self._acts_on
        )
        search = _line(self._search, self._significant, self._members)
        parts = self._table.widget, self._changes.widget, self._editor.sheet
        tables = pn.Column(*parts, sizing_mode="stretch_both", margin=0, styles={"min-height": "0", "min-width": "0"})
        right = _box(
            45,
            *self._editor.layout(),
            acts,
            search,
            _line(self._what, self._listed, self._clear, self._download),
            tables,
        )
        return pn.Row(left, right, sizing_mode="stretch_both", margin=0, styles={"min-height": "0"})

    # ----------------------------------------------------------- what is shown

    def _changed(self, *events: Any) -> None:
        """Notes what changed and shows it, now or when this view is next looked at."""
        self._pending |= {event.name for event in events}
        self._flush()

    def _flush(self) -> None:
        if self._state.view != "salience":
            return
        pending, self._pending = self._pending, set()
        with pn.io.hold():
            fresh = bool(pending & DATA)
            if "view" in pending:  # labels, checks and sets may have come from elsewhere meanwhile
                found = salience_evidence.evidence(self._reader, self._store)
                fresh |= self._rows is None or not found.equals(self._evidence)
                self._evidence = found
            if fresh:
                self._load()
            if fresh or pending & {*SETS, "view"}:
                self._show_set()
            if fresh or "volcano" in pending:
                self._show_plot()
            elif pending & {*SETS, "dark", "view"}:
                self._volcano.set_dark(self._state.dark)
                self._volcano.set_members(self._signs)
            if fresh or pending & {*SETS, "dark"}:
                self._show_table()
            if "feature" in pending and not fresh:
                self._table.select(self._state.feature)
                self._changes.select(self._state.feature)
            if pending & {"feature", *DATA, *SETS, "view"}:
                self._volcano.set_feature(self._state.feature)
                self._show_card()
                self._show_targets()

    def _load(self) -> None:
        """The rows of the open slice and pooling, and everything that says which they are."""
        state, reader = self._state, self._reader
        if state.pooling not in self._known:
            slices = reader.slices(state.pooling)
            self._known[state.pooling] = slices, reader.sign_changes(state.pooling) if len(slices) else pl.DataFrame()
        if self._listed_pooling != state.pooling:
            self._listed_pooling = state.pooling
            self._slices, changes = self._known[state.pooling]
            self._changes.fill(changes, state.feature)
            choices = {"Features": "features", f"Sign changes ({len(changes):,})": "changes"}
            self._what.param.update(options=choices, value=self._what.value)
        self._slice.param.update(options=slice_options(self._slices, state.slice), value=state.slice)
        self._rows = rows_of(reader.salience(state.slice, state.pooling), self._evidence, state.length_control)
        self._region = None
        self._counts.object = counts_html(self._rows, len(reader.features), self._min_active)
        self._empty.object = "" if len(self._rows) else self._why_empty()
        self._empty.visible, self._plot.visible = not len(self._rows), len(self._rows) > 0

    @property
    def _min_active(self) -> int:
        return int(self._reader.manifest.config.get("salience", {}).get("min_active", 30))

    def _why_empty(self) -> str:
        if len(self._slices):
            return (
                '<div class="rs-empty"><b>This run has no such slice</b>No pairs belong to '
                f"“{esc(shorten(self._state.slice, 60))}”, or too few. "
                f'<a data-clears href="{esc(self._state.link())}&amp;slice=">Show all pairs</a></div>'
            )
        return not_computed_html(self._state.pooling, self._stored_poolings())

    def _stored_poolings(self) -> list[str]:
        return [name for name in POOLINGS if len(self._reader.slices(name))]

    def _show_set(self) -> None:
        assert self._rows is not None
        one = self._editor.show()
        self._signs = members(self._rows, one)

    def _show_plot(self) -> None:
        assert self._rows is not None
        self._volcano.set_dark(self._state.dark)
        self._volcano.show(self._rows, self._state.volcano, self._signs)
        if self._region is not None:
            self._region = None
            self._show_table()
        self._caption.object = f'<div class="rs-small rs-muted">{esc(self._volcano.caption())}</div>'

    def _show_table(self) -> None:
        assert self._rows is not None
        state = self._state
        self._at = listed(self._rows, self._signs, self._listing, self._region)
        self._table.fill(self._rows, self._at, self._signs, self._listing, state.feature, state.dark)
        self._clear.visible = self._region is not None
        self._listed.object = listed_html(len(self._at), len(self._rows), self._listing, self._region is not None)
        self._show_targets()

    def _show_card(self) -> None:
        state, feature = self._state, self._state.feature
        if feature is None or self._rows is None:
            self._card.object = salience_card.nothing_html()
            return
        slices = self._reader.feature_salience(feature).filter(pooling=state.pooling)
        here = slices.filter(slice=state.slice)
        raw = here.row(0, named=True) if len(here) else None
        place = self._rows.place(feature)
        row = self._rows.frame.row(place, named=True) if place is not None else None
        key = (feature, state.slice, state.pooling)
        features = self._reader.features
        weight = features.take([feature])["weight"][0] if feature in features else None
        self._card.object = salience_card.card_html(
            row,
            raw,
            slices,
            state,
            bootstrap=self._intervals.get(key),
            pairs=salience_evidence.strongest_pairs(self._reader, *key) if raw else None,
            sign=0 if place is None else int(self._signs[place]),
            steer=steer_html(state, feature, weight),
        )
        if raw and key not in self._intervals and pn.state.curdoc is not None:
            pn.state.curdoc.add_timeout_callback(lambda: self._draw_again(key), 300)

    def _draw_again(self, key: tuple[int, str, str]) -> None:
        """Adds the bootstrap interval when the reviewer stays with a feature: stepping through the list does not wait for it."""
        state = self._state
        if (
            state.view == "salience"
            and key == (state.feature, state.slice, state.pooling)
            and key not in self._intervals
        ):
            self._intervals[key] = salience_evidence.bootstrap(self._reader, *key)
            self._show_card()

    def _show_what(self) -> None:
        changes = self._what.value == "changes"
        self._table.widget.visible, self._changes.widget.visible = not changes, changes

    def _show_targets(self) -> None:
        n = len(self._targets())
        only = self._state.feature if n == 1 and not self._all_listed.value else None
        what = f"feature {only}" if only is not None else f"{n:,} features" if n else "no feature selected"
        self._acts_on.object = f'<span class="rs-small rs-muted">acts on {what}</span>'

    # ---------------------------------------------------------------- behaviour

    def step(self, by: int) -> None:
        """Selects the next or previous row of the list; the first one when none is selected."""
        table = self._changes if self._what.value == "changes" else self._table
        if not len(table.ids):
            return
        at = table.position(self._state.feature)
        to = 0 if at is None else min(max(at + by, 0), len(table.ids) - 1)
        self._state.feature = int(table.ids[to])

    def mark(self, sign: int) -> None:
        """Puts the selected feature into S+ (1) or S- (-1) of the open set, or takes it out (0)."""
        self._editor.mark(sign)

    def _targets(self) -> list[int]:
        """The features that the set's buttons act on."""
        if self._all_listed.value and self._rows is not None:
            return [int(feature) for feature in self._rows.ids[self._at]]
        return [] if self._state.feature is None else [self._state.feature]

    def _ratings(self) -> pl.DataFrame:
        return self._evidence.select("feature_id", pl.col("rating").alias("safety_rating"))

    def _pick(self, feature: int) -> None:
        self._state.feature = feature

    def _slice_picked(self, event: Any) -> None:
        if event.new is not None:
            self._state.slice = event.new

    def _sort(self, column: str, descending: bool) -> None:
        self._list(sort=column, descending=descending)

    def _list(self, **changes: Any) -> None:
        """Lists other rows, or in another order."""
        self._listing = Listing(**{**self._listing.__dict__, **changes})
        if self._rows is not None:
            self._show_table()

    def _draw_region(self, polygon: tuple[tuple[float, float], ...]) -> None:
        """Lists what was drawn on the plot; () lists everything again."""
        if self._rows is None or not len(self._rows):
            return
        self._region = self._volcano.inside(polygon) if polygon else None
        self._volcano.set_region(polygon)
        self._show_table()

    def _csv(self) -> io.BytesIO:
        """What is listed, with what it is of: the sign changes while those are shown."""
        state = self._state
        facts = {"run": self._reader.manifest.run_id, "slice": state.slice, "pooling": state.pooling}
        if self._what.value == "changes":
            return io.BytesIO(self._changes.csv({"run": facts["run"], "pooling": state.pooling}).encode())
        assert self._rows is not None
        facts["length_control"] = "yes" if state.length_control else "no"
        return io.BytesIO(csv_text(self._rows, self._signs, self._at, facts).encode())


def slice_options(slices: pl.DataFrame, current: str) -> dict[str, str]:
    """Names with figures for the slice picker, grouped by column in the reader's order; the current one is always there."""
    options = {}
    for row in slices.iter_rows(named=True):
        name = "all pairs" if row["slice"] == "all" else f"{row['column']}: {shorten(row['value'] or '(none)', 40)}"
        figures = f"{row['n_pairs']:,} pairs, {row['n_prompts']:,} prompts, {row['n_significant']:,} significant"
        options[f"{name} — {figures}"] = row["slice"]
    if current not in options.values():
        options["all pairs" if current == "all" else f"{shorten(current, 60)} — not in this run"] = current
    return options


def counts_html(rows: Rows, total: int, min_active: int) -> str:
    """How many features are tested and significant, and why the others are not."""
    if not len(rows):
        return ""
    n = counts(rows)
    length = " at equal length" if rows.length_control else ""
    return (
        f'<div class="says" role="status"><span><b class="rs-num">{n["tested"]:,}</b> tested of {total:,}</span>'
        f'<span><b class="rs-num">{n["significant"]:,}</b> significant at q ≤ {LEVEL:g}{length}: '
        f'<span class="rs-up">▲ {n["up"]:,} more in chosen</span>, <span class="rs-down">▼ {n["down"]:,} more in rejected</span></span>'
        f"<span>{total - n['tested']:,} not tested: active in fewer than {min_active} of {rows.n_pairs:,} pairs</span></div>"
    )


def listed_html(n: int, total: int, listing: Listing, region: bool) -> str:
    """How many rows the table lists, and in which order."""
    order = "smallest q first" if listing.sort == "strength" else ""
    if n:
        what, order = ("in the region", "") if region else ("listed", order)
        return f'<div class="says" role="status"><span><b class="rs-num">{n:,}</b> of {total:,} {what}</span><span>{order}</span></div>'
    return '<div class="says" role="status"><span><b>No feature passes these filters</b></span></div>' if total else ""


def not_computed_html(pooling: str, stored: list[str]) -> str:
    """The state of a run whose salience was not computed, for this pooling or at all."""
    if stored:
        return (
            f'<div class="rs-empty"><b>Salience was not computed for the pooling “{esc(pooling)}”</b>'
            f"This run has it for {esc(', '.join(stored))}. Add the pooling to salience.poolings in its configuration "
            "and build the run again for the others.</div>"
        )
    return (
        '<div class="rs-empty"><b>Salience was not computed for this run</b>It was built by an older version, or without poolings. Run '
        "<code>rewardscope build CONFIG.yaml</code> with its configuration again: finished stages are kept.</div>"
    )


def _line(*parts: Any) -> pn.Row:
    """Parts side by side, centred on their line."""
    return pn.Row(*parts, sizing_mode="stretch_width", margin=0, styles={"align-items": "center"})


def _box(share: int, *parts: Any, line: str = "") -> pn.Column:
    """Parts one below the other on a surface that takes its share of the room, with a line on one side."""
    styles = {"background": "var(--rs-surface)", "min-width": "0", "min-height": "0", "flex": f"{share} 1 0"}
    if line:
        styles[f"border-{line}"] = "1px solid var(--rs-line)"
    return pn.Column(*parts, sizing_mode="stretch_both", margin=0, styles=styles)
