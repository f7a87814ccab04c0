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
from dashboard.parts.ordered_table import OrderedTable
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
    """Filter, count and table. Built once; `show` replaces what it lists."""

    def __init__(self, on_open: Callable[[str], None]) -> None:
        self._on_open = on_open
        self._row: Row | None = None
        self._cell: CellItems | None = None
        self._found = pl.DataFrame({"item_id": []}, schema={"item_id": pl.String})
        self._places: dict[str, int] = {}
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
        self._table.on_click(self._clicked)
        self._verdict.param.watch(lambda _: self._list(), "value")
        self._order.param.watch(lambda _: self._list(), "value")

    def layout(self) -> list[Any]:
        """What to put one below the other."""
        return [self._verdict, self._order, self._summary, self._empty, self._table]

    @property
    def count(self) -> int:
        return len(self._places)

    def place(self, item: str | None) -> int | None:
        """0-based place of an item in the list; None when it is not listed."""
        return None if item is None else self._places.get(item)

    def at(self, place: int) -> str | None:
        """The item at a place of the list."""
        return str(self._found["item_id"][place]) if 0 <= place < self.count else None

    def show(self, row: Row, cell: CellItems) -> None:
        """Lists the items of a cell."""
        self._row, self._cell = row, cell
        self._list()

    def mark(self, item: str | None) -> None:
        """Selects the open item's row."""
        self._current = item
        place = self.place(item)
        if place is not None:
            self._table.page = place // PAGE_SIZE + 1
        self._table.selection = [] if place is None else [place]

    def _list(self) -> None:
        if self._row is None or self._cell is None:
            return
        self._found = listed(self._row.opened.items, self._cell, self._verdict.value, self._order.value)
        self._places = {item: place for place, item in enumerate(self._found["item_id"])}
        result = self._cell.result
        partly = int(((result > 0) & (result < 1)).sum())
        parts = [f"<b>{self.count:,}</b> of {len(result):,} items", f"{int((result >= 1).sum()):,} right"]
        parts += [f"{partly:,} partly"] if partly else []
        decimals = decimals_for(np.asarray(self._cell.margin).tolist(), digits=4)
        form = "+0" + ("." + "0" * decimals if decimals else "")
        finer = "group" if self._row.result.benchmark == "rm-bench" else "subset"
        with pn.io.hold():
            self._summary.object = f'<div class="rs-small">{", ".join(parts)}</div>'
            self._empty.visible, self._table.visible = self.count == 0, self.count > 0
            self._empty.object = state_html("No item of this cell is so; choose another filter.")
            value = pd.DataFrame(
                {
                    "mark": [mark_of(one) for one in self._found["result"]],
                    "margin": self._found["margin"].to_numpy(),
                    "prompt": [last_words(one) for one in self._found["messages"]],
                    "subset": [
                        group or subset for subset, group in zip(self._found["subset"], self._found[finer], strict=True)
                    ],
                }
            )
            self._table.formatters = {"margin": NumberFormatter(format=form, nan_format="n/a")}
            self._table.param.update(value=value, selection=[], page=1)
            self.mark(self._current)

    def _clicked(self, event: Any) -> None:
        item = self.at(int(event.row))
        if item is not None:
            self._on_open(item)
