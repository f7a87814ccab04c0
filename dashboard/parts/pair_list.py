"""The list of pairs: filters with the size of what they keep, and the table to pick a pair from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui
import polars as pl
from bokeh.models.widgets.tables import NumberFormatter

from core.store import pair_queries
from core.store.pair_queries import FACETS, PairFilter
from core.store.reader import RunReader
from dashboard.parts.aligned import decimals_for
from dashboard.parts.margin_filter import MarginFilter
from dashboard.parts.ordered_table import ListedItems, OrderedTable
from dashboard.parts.pair_text import PAIR_SHEETS, filter_summary, state_html
from dashboard.state import AppState, Range
from dashboard.theme import sheet

PAGE_SIZE = 25
FILTERS = ("pair_search", *FACETS, "verdict", "margin")
VERDICTS = {"All": "any", "✓ Model right": "right", "✗ Model wrong": "wrong"}
ORDERS = {"order of the data": "index", "margin, lowest first": "margin", "margin, highest first": "-margin"}


def filter_of(state: AppState) -> PairFilter:
    """The Pairs view's filters as the store takes them."""
    return PairFilter(
        text=state.pair_search,
        verdict=state.verdict,
        margin=state.margin,
        **{facet: getattr(state, facet) for facet in FACETS},
    )


def facet_options(counts: pl.DataFrame, facet: str, current: str | None) -> dict[str, str | None]:
    """Names with counts for a filter's menu, None = any; a current value that no pair has stays visible, with 0."""
    rows = counts.filter(facet=facet)
    options: dict[str, str | None] = {f"any {facet}": None}
    options |= {f"{value or 'no ' + facet} ({n:,})": value for _, value, n in rows.iter_rows()}
    if current is not None and current not in options.values():
        options[f"{current} (0)"] = current
    return options


def list_rows(found: pl.DataFrame) -> pd.DataFrame:
    """The table's rows: what tells one pair from the next. `mark` says whether the model is right, '' = not known."""
    margin = pl.col("margin")
    mark = pl.when(margin > 0).then(pl.lit("✓")).when(margin <= 0).then(pl.lit("✗")).otherwise(pl.lit(""))
    return found.select(mark.alias("mark"), margin, pl.col("snippet").alias("prompt"), "domain").to_pandas()


def as_floats(margins: pl.Series) -> np.ndarray:
    """float64, NaN where null."""
    return margins.cast(pl.Float64).fill_null(float("nan")).to_numpy()


class FacetMenu:
    """A drop-down of one column's values with their counts. Its options are names, so that 'any' can be shown."""

    def __init__(self, facet: str, counts: pl.DataFrame, state: AppState) -> None:
        self._facet, self._counts, self._state = facet, counts, state
        self._options: dict[str, str | None] = {}
        self.widget = pmui.Select(label=facet.capitalize(), size="small", sizing_mode="stretch_width", margin=4)
        self.show()
        self.widget.param.watch(self._chosen, "value")

    def show(self) -> None:
        """Shows what the state says; a facet with a single value is no filter and stays away."""
        value = getattr(self._state, self._facet)
        self._options = facet_options(self._counts, self._facet, value)
        name = next(name for name, option in self._options.items() if option == value)
        self.widget.param.update(
            options=list(self._options), value=name, visible=len(self._options) > 2 or value is not None
        )

    def _chosen(self, event: Any) -> None:
        if event.new in self._options:
            setattr(self._state, self._facet, self._options[event.new])


class PairList:
    """Filters and table over one AppState. Widgets are built once; what they show is replaced in place.

    Attributes:
        listed: which pair stands where.
    """

    def __init__(self, state: AppState, reader: RunReader) -> None:
        self.state, self.reader = state, reader
        with reader.cursor() as cursor:
            counts = pair_queries.facet_counts(cursor)
            margins = as_floats(pair_queries.margins(cursor, PairFilter())["margin"])
        self._total = len(margins)

        self._search = pmui.TextInput(
            label="Search prompts and answers",
            size="small",
            sizing_mode="stretch_width",
            margin=(10, 4, 4, 4),
            css_classes=["rs-search"],
        )
        self._verdict = pmui.RadioButtonGroup(
            label="", options=VERDICTS, size="small", sizing_mode="stretch_width", margin=4
        )
        self._margin = MarginFilter(margins, self._keep_range, sizing_mode="stretch_width", margin=(4, 6))
        self._facets = {facet: FacetMenu(facet, counts, state) for facet in FACETS}
        self._order = pmui.Select(label="Order", options=ORDERS, size="small", sizing_mode="stretch_width", margin=4)
        self._clear = pmui.Button(
            label="Clear filters",
            size="small",
            variant="text",
            margin=4,
            align="center",
            on_click=lambda _: state.clear_pair_filters(),
        )
        self._summary = pn.pane.HTML(stylesheets=PAIR_SHEETS, sizing_mode="stretch_width", margin=(4, 6))
        self._empty = pn.pane.HTML(stylesheets=PAIR_SHEETS, sizing_mode="stretch_width", visible=False)
        decimals = decimals_for(margins.tolist(), digits=4)
        form = "+0" + ("." + "0" * decimals if decimals else "")
        self._table = OrderedTable(
            list_rows(pl.DataFrame(schema={"margin": pl.Float64, "snippet": pl.String, "domain": pl.String})),
            pagination="remote",
            page_size=PAGE_SIZE,
            show_index=False,
            disabled=True,
            selectable=1,
            layout="fit_columns",
            widths={"mark": 30, "margin": 70, "domain": 96},
            text_align={"mark": "center", "margin": "right"},
            header_align={"margin": "right"},
            titles={"mark": "", "margin": "Margin", "prompt": "Prompt", "domain": "Domain"},
            header_tooltips={"mark": "✓ the model prefers the chosen answer, ✗ it does not"},
            formatters={"margin": NumberFormatter(format=form, nan_format="n/a")},
            sortable=False,
            configuration={"columnDefaults": {"minWidth": 24}},
            row_height=28,
            theme="simple",
            stylesheets=[sheet("table"), ":host .tabulator { min-width: 0; }"],
            sizing_mode="stretch_width",
            margin=(4, 0, 0, 0),
        )
        self.listed = ListedItems(self._table, lambda pair: setattr(state, "pair", pair))
        self._search.param.watch(lambda event: setattr(state, "pair_search", event.new or ""), "value_input")
        self._verdict.param.watch(lambda event: setattr(state, "verdict", event.new), "value")
        self._order.param.watch(lambda event: setattr(state, "pair_sort", event.new), "value")
        state.param.watch(self._refresh, [*FILTERS, "pair_sort"])
        state.param.watch(self._mark, "pair")
        self._refresh()
        pn.state.onload(self._mark_when_drawn)

    def step(self, by: int) -> None:
        """Opens the next or previous pair of the list; from a pair outside it, the first."""
        pair = self.listed.beside(self.state.pair, by)
        if pair is not None:
            self.state.pair = pair

    def layout(self) -> list[Any]:
        """What to put one below the other."""
        menus = [menu.widget for menu in self._facets.values()]
        return [
            self._search,
            self._verdict,
            self._margin,
            pn.Row(*menus[:2], sizing_mode="stretch_width", margin=0),
            pn.Row(*menus[2:], sizing_mode="stretch_width", margin=0),
            pn.Row(self._order, self._clear, sizing_mode="stretch_width", margin=0),
            self._summary,
            self._empty,
            self._table,
        ]

    def _refresh(self, *_: Any) -> None:
        wanted = filter_of(self.state)
        with self.reader.cursor() as cursor:
            found = pair_queries.matching_pairs(cursor, wanted, self.state.pair_sort)
            limited = wanted.margin != (None, None)
            margins = pair_queries.margins(cursor, wanted.any_margin)["margin"] if limited else found["margin"]
        computed = found["margin"].drop_nulls()
        with pn.io.hold():
            self._show_filters()
            self._margin.update(as_floats(margins), self.state.margin)
            self._summary.object = filter_summary(
                n=found.height,
                total=self._total,
                prompts=found["prompt_id"].n_unique(),
                right=int((computed > 0).sum()) if self.state.verdict == "any" else None,
                computed=len(computed),
            )
            self._empty.visible, self._table.visible = found.is_empty(), not found.is_empty()
            if found.is_empty():
                nothing = (
                    "No pair matches these filters; clear one of them." if self._total else "This run has no pairs."
                )
                self._empty.object = state_html(nothing)
            self.listed.show(found["pair_id"].to_list(), list_rows(found))
            self._mark()

    def _show_filters(self) -> None:
        state = self.state
        if (self._search.value_input or "") != state.pair_search:
            self._search.param.update(value=state.pair_search, value_input=state.pair_search)
        for menu in self._facets.values():
            menu.show()
        self._verdict.value, self._order.value = state.verdict, state.pair_sort
        self._clear.disabled = all(getattr(state, name) == state.param[name].default for name in FILTERS)

    def _keep_range(self, bounds: Range) -> None:
        self.state.margin = bounds

    def _mark(self, *_: Any) -> None:
        self.listed.mark(self.state.pair)

    def _mark_when_drawn(self) -> None:
        """Marks the row again after loading: Tabulator drops a selection it gets before its first page is drawn."""

        def again() -> None:
            self._table.selection = []
            self._mark()

        for milliseconds in (300, 1500):
            if pn.state.curdoc is not None:
                pn.state.curdoc.add_timeout_callback(again, milliseconds)
