"""The Benchmarks view: the run beside published rows, and the items behind any cell of ours."""

from __future__ import annotations

from collections import Counter
from typing import Any

import panel as pn
import panel_material_ui as pmui

from core.errors import RewardscopeError
from core.evaluate.items import TITLES
from core.evaluate.score_items import CellItems
from core.store.reader import RunReader
from dashboard import benchmarks as board
from dashboard.benchmarks import Row
from dashboard.escape import esc
from dashboard.parts.benchmark_item import BenchmarkItem
from dashboard.parts.benchmark_items import BenchmarkItems
from dashboard.parts.benchmark_table import empty_html, picker_html, subsets_html, table_html
from dashboard.parts.pair_text import PAIR_SHEETS, state_html
from dashboard.state import AppState
from dashboard.theme import sheet

SURFACE = {"background": "var(--rs-surface)", "min-width": "0", "min-height": "0", "padding": "0 8px 12px"}


class BenchmarksView:
    """Table above, items and the open item below; `step` moves through the items."""

    def __init__(self, state: AppState, reader: RunReader) -> None:
        self.state, self.reader = state, reader
        self._benchmark, self._failure = "", ""
        self._rows: list[Row] = []
        self._row: Row | None = None
        self._cell: CellItems | None = None

        def html(**params: Any) -> pn.pane.HTML:
            sheets = [*PAIR_SHEETS, sheet("benchmarks")]
            return pn.pane.HTML(stylesheets=sheets, sizing_mode="stretch_width", **({"margin": (4, 8)} | params))

        self._picker, self._table, self._subsets, self._heading = html(), html(), html(), html(margin=(8, 8, 0, 8))
        self._items = BenchmarkItems(self._open_item)
        self._panel = BenchmarkItem(state, reader)
        self._where = pn.pane.HTML(stylesheets=PAIR_SHEETS, margin=(6, 8))
        self._back = pmui.Button(
            label="↑ Previous (k)", size="small", variant="text", margin=2, on_click=lambda _: self.step(-1)
        )
        self._next = pmui.Button(
            label="↓ Next (j)", size="small", variant="text", margin=2, on_click=lambda _: self.step(1)
        )
        self._close = pmui.Button(
            label="Close the items", size="small", variant="text", margin=2, on_click=lambda _: self._close_cell()
        )
        self._lower = self._make_lower()
        state.param.watch(self._refresh, ["benchmark", "steering"])
        state.param.watch(self._look, "view")
        state.param.watch(self._open_cell, "benchmark_cell")
        state.param.watch(self._open_chosen, "benchmark_item")
        self._refresh()

    def step(self, by: int) -> None:
        """Opens the next (1) or previous (-1) item of the open cell."""
        if self._row is None:
            return
        target = self._items.listed.beside(self.state.benchmark_item, by)
        if target is not None:
            self.state.benchmark_item = target

    # ------------------------------------------------------------------ layout

    def _make_lower(self) -> pn.Column:
        side = {"flex": "3 1 0", "min-width": "300px", "border-right": "1px solid var(--rs-line)"}
        steps = pn.Row(self._back, self._next, self._where, margin=(4, 0, 0, 0))
        both = pn.Row(
            pn.Column(
                *self._items.layout(), sizing_mode="stretch_width", margin=0, styles=side | {"padding-right": "8px"}
            ),
            pn.Column(
                steps,
                *self._panel.layout(),
                sizing_mode="stretch_width",
                margin=0,
                styles={"flex": "7 1 0", "min-width": "0"},
            ),
            sizing_mode="stretch_width",
            margin=0,
            styles={"align-items": "stretch"},
        )
        head = pn.Row(self._heading, self._close, sizing_mode="stretch_width", margin=0)
        line = {"border-top": "1px solid var(--rs-line)", "margin-top": "10px"}
        return pn.Column(head, both, sizing_mode="stretch_width", margin=0, styles=line)

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._picker,
            self._table,
            self._subsets,
            self._lower,
            sizing_mode="stretch_both",
            scroll="y-auto",
            margin=0,
            styles=SURFACE,
        )

    # ------------------------------------------------------------------ drawing

    @property
    def _cell_name(self) -> tuple[str, str]:
        """(row key, figure) that the link names."""
        key, _, name = self.state.benchmark_cell.partition(":")
        return key, name

    def _look(self, *_: Any) -> None:
        """Results may have been added since this view was last looked at."""
        if self.state.view == "benchmarks":
            self._refresh()

    def _refresh(self, *_: Any) -> None:
        """Reads the results and draws table and cell; while another view is looked at, not before this one is again."""
        if self._benchmark and self.state.view != "benchmarks":
            return
        results, self._failure = board.all_results(), ""
        benchmark = board.benchmark_of(self.state.benchmark, results, self.reader.manifest.run_id)
        with pn.io.hold():
            self._picker.object = picker_html(
                benchmark,
                Counter(one.benchmark for one in results),
                lambda name: self.state.link(view="benchmarks", benchmark=name, benchmark_cell=""),
            )
            try:
                self._rows = board.rows_of(benchmark, results, self.reader, self.state.steering)
            except RewardscopeError as error:
                self._rows, self._failure = [], str(error)
            self._benchmark = benchmark
            self._open_cell()

    def _draw_tables(self) -> None:
        benchmark = self._benchmark
        if self._failure:
            self._table.object, self._subsets.visible = state_html(self._failure, "failed"), False
            return
        ours = any(row.own for row in self._rows)
        empty = "" if ours else empty_html(benchmark, self.reader.name)
        self._table.object = empty + table_html(benchmark, self._rows, self._link, self._cell_name)
        self._subsets.object = subsets_html(benchmark, self._rows, self._link, self._cell_name)
        self._subsets.visible = bool(self._subsets.object)

    def _link(self, row: Row, name: str) -> str:
        benchmark = row.result.benchmark
        return self.state.link(view="benchmarks", benchmark=benchmark, benchmark_cell=f"{row.key}:{name}")

    def _open_cell(self, *_: Any) -> None:
        """Lists the items of the open cell."""
        key, name = self._cell_name
        row = next((row for row in self._rows if row.key == key), None)
        figure = None if row is None else row.figures.get(name)
        with pn.io.hold():
            self._draw_tables()
            self._row, self._cell = None, None
            self._lower.visible = bool(self.state.benchmark_cell)
            try:
                if row is not None and figure is not None and figure["value"] is not None:
                    self._row, self._cell = row, row.cell(name)
                    self._items.show(row, self._cell)
            except RewardscopeError as error:
                self._row = None
                self._heading.object = state_html(str(error), "failed")
                return
            if row is None or self._row is None:
                there = "There is no such cell in this table; pick one." if self._rows else ""
                self._heading.object = state_html(there) if self.state.benchmark_cell else ""
                self._panel.show(None, None, 0.0, 0.0)
                return
            what = f"{TITLES[row.result.benchmark]}, {name}"
            note = f" ({esc(row.note)})" if row.note else ""
            self._heading.object = f'<div class="line"><b>Items behind {esc(what)}</b><span class="rs-muted">of {esc(row.title)}{note}</span></div>'
            if self._items.listed.place(self.state.benchmark_item) is None:
                self.state.benchmark_item = self._items.listed.at(0)
            self._open_chosen()

    def _open_chosen(self, *_: Any) -> None:
        """Shows the open item."""
        row, cell = self._row, self._cell
        if row is None or cell is None:
            return
        items = row.opened.items
        found = [at for at, index in enumerate(cell.index) if items["item_id"][int(index)] == self.state.benchmark_item]
        with pn.io.hold():
            self._items.mark(self.state.benchmark_item)
            place, count = self._items.listed.place(self.state.benchmark_item), self._items.listed.count
            self._back.disabled = place is None or place == 0
            self._next.disabled = count == 0 or place == count - 1
            where = "not among the items listed" if place is None else f"{place + 1:,} of {count:,} listed"
            self._where.object = f'<div class="rs-small rs-muted">{where if self.state.benchmark_item else ""}</div>'
            if not found:
                self._panel.show(None, None, 0.0, 0.0)
                return
            at = found[0]
            item = items.row(int(cell.index[at]), named=True)
            self._panel.show(row, item, float(cell.result[at]), float(cell.margin[at]))

    # ------------------------------------------------------------------ acting

    def _open_item(self, item: str) -> None:
        self.state.benchmark_item = item

    def _close_cell(self) -> None:
        self.state.param.update(benchmark_cell="", benchmark_item=None)
