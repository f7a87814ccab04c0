"""The items behind a cell: which the model gets right, by how much, and the one to open."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui
import polars as pl
from bokeh.models.widgets.tables import NumberFormatter

from core.evaluate.score_items import CellItems
from dashboard.benchmarks import Row
from dashboard.escape import shorten
from dashboard.parts.aligned import decimals_for
from dashboard.parts.ordered_table import ListedItems, OrderedTable
from dashboard.parts.pair_text import PAIR_SHEETS, state_html
from dashboard.theme import sheet

PAGE_SIZE = 20
SNIPPET = 160
VERDICTS = {"All": "any", "✓ Right": "right", "✗ Wrong": "wrong"}
ORDERS = {"margin, lowest first": "margin", "margin, highest first": "-margin", "order of the data": "index"}


def last_words(messages: str) -> str:
    """What the user said last, on one line."""
    return shorten(str(json.loads(messages)[-1]["content"])[: 4 * SNIPPET], SNIPPET)


def mark_of(result: float) -> str:
    """✓ right, ✗ wrong, ½ in between."""
    return "✓" if result >= 1 else "✗" if result <= 0 else "½"


def listed(items: pl.DataFrame, cell: CellItems, verdict: str, order: str) -> pl.DataFrame:
    """The rows to list: item_id, mark, margin, subset, prompt, in order.

    Args:
        verdict: 'any', 'right' (whole) or 'wrong' (anything less).
        order: of ORDERS.
    """
    frame = (
        items[cell.index]
        .select("item_id", "subset", "group", "messages")
        .with_columns(pl.Series("result", cell.result, pl.Float64), pl.Series("margin", cell.margin, pl.Float64))
    )
    if verdict != "any":
        frame = frame.filter((pl.col("result") >= 1) == (verdict == "right"))
    return frame if order == "index" else frame.sort("margin", descending=order == "-margin", maintain_order=True)


NO_ROWS = pd.DataFrame({"mark": [], "margin": [], "prompt": [], "subset": []}).astype(
    {"mark": "str", "margin": "float64", "prompt": "str", "subset": "str"}
)
"""The types say how the table writes a column, once and for all: without them, words would be written as numbers."""


class BenchmarkItems:
    """Filter, count and table. Built once; `show` replaces what it lists.

    Attributes:
        listed: which item stands where.
    """

    def __init__(self, on_open: Callable[[str], None]) -> None:
        self._row: Row | None = None
        self._cell: CellItems | None = None
        self._current: str | None = None
        self._verdict = pmui.RadioButtonGroup(
            label="", options=VERDICTS, size="small", sizing_mode="stretch_width", margin=4
        )
        self._order = pmui.Select(label="Order", options=ORDERS, value="margin", size="small", width=200, margin=4)
        self._summary = pn.pane.HTML(stylesheets=PAIR_SHEETS, sizing_mode="stretch_width", margin=(4, 6))
        self._empty = pn.pane.HTML(stylesheets=PAIR_SHEETS, sizing_mode="stretch_width", visible=False)
        self._table = OrderedTable(
            NO_ROWS,
            pagination="remote",
            page_size=PAGE_SIZE,
            show_index=False,
            disabled=True,
            selectable=1,
            layout="fit_columns",
            widths={"mark": 30, "margin": 76, "subset": 110},
            text_align={"mark": "center", "margin": "right"},
            header_align={"margin": "right"},
            titles={"mark": "", "margin": "Margin", "prompt": "Prompt", "subset": "Subset"},
            header_tooltips={
                "mark": "✓ right, ✗ wrong, ½ partly",
                "margin": "reward of the right answer less that of the strongest wrong one",
            },
            sortable=False,
            configuration={"columnDefaults": {"minWidth": 24}},
            row_height=28,
            theme="simple",
            stylesheets=[sheet("table"), ":host .tabulator { min-width: 0; }"],
            sizing_mode="stretch_width",
            margin=(4, 0, 0, 0),
        )
        self.listed = ListedItems(self._table, on_open)
        self._verdict.param.watch(lambda _: self._list(), "value")
        self._order.param.watch(lambda _: self._list(), "value")

    def layout(self) -> list[Any]:
        """What to put one below the other."""
        return [self._verdict, self._order, self._summary, self._empty, self._table]

    def show(self, row: Row, cell: CellItems) -> None:
        """Lists the items of a cell."""
        self._row, self._cell = row, cell
        self._list()

    def mark(self, item: str | None) -> None:
        """Selects the open item's row."""
        self._current = item
        self.listed.mark(item)

    def _list(self) -> None:
        if self._row is None or self._cell is None:
            return
        found = listed(self._row.opened.items, self._cell, self._verdict.value, self._order.value)
        result = self._cell.result
        partly = int(((result > 0) & (result < 1)).sum())
        parts = [f"<b>{found.height:,}</b> of {len(result):,} items", f"{int((result >= 1).sum()):,} right"]
        parts += [f"{partly:,} partly"] if partly else []
        decimals = decimals_for(np.asarray(self._cell.margin).tolist(), digits=4)
        form = "+0" + ("." + "0" * decimals if decimals else "")
        finer = "group" if self._row.result.benchmark == "rm-bench" else "subset"
        with pn.io.hold():
            self._summary.object = f'<div class="rs-small">{", ".join(parts)}</div>'
            self._empty.visible, self._table.visible = found.is_empty(), not found.is_empty()
            self._empty.object = state_html("No item of this cell is so; choose another filter.")
            value = pd.DataFrame(
                {
                    "mark": [mark_of(one) for one in found["result"]],
                    "margin": found["margin"].to_numpy(),
                    "prompt": [last_words(one) for one in found["messages"]],
                    "subset": [group or subset for subset, group in zip(found["subset"], found[finer], strict=True)],
                }
            )
            self._table.formatters = {"margin": NumberFormatter(format=form, nan_format="n/a")}
            self.listed.show(found["item_id"].to_list(), value)
            self.listed.mark(self._current)
