"""The table under every list: a Tabulator whose rows come in order from the state, a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import panel as pn
from panel.models.tabulator import THEME_PATH


class OrderedTable(pn.widgets.Tabulator):
    """A Tabulator that leaves rows as they are: its sort arrows only ask, the state answers with rows in order."""

    def _sort_df(self, df: Any) -> Any:
        return df

    def _process_param_change(self, params: dict[str, Any]) -> dict[str, Any]:
        # Linked sheets out, their text in: when the page's theme is applied, links are made anew, and Panel 1.9.4 then
        # waits for ever for those that load from the cache, so the table would never be fitted to its place.
        params = super()._process_param_change(params)
        if "stylesheets" in params:
            params["stylesheets"] = [
                tabulator_sheet(),
                *(sheet for sheet in params["stylesheets"] if isinstance(sheet, str)),
            ]
        return params

    def _get_style_data(self, recompute: bool = True) -> dict[str, Any]:
        return {}  # styled cells would make Tabulator draw everything twice


class ListedItems:
    """Which item stands where in an OrderedTable: the open one is marked, a click picks one, keys step through them."""

    def __init__(self, table: OrderedTable, on_pick: Callable[[str], None]) -> None:
        self.table, self._on_pick = table, on_pick
        self._ids: list[str] = []
        self._places: dict[str, int] = {}
        table.on_click(self._clicked)

    @property
    def count(self) -> int:
        return len(self._ids)

    def place(self, item: str | None) -> int | None:
        """0-based place of an item, None when it is not listed."""
        return None if item is None else self._places.get(item)

    def at(self, place: int) -> str | None:
        """The item at a place."""
        return self._ids[place] if 0 <= place < self.count else None

    def beside(self, item: str | None, by: int) -> str | None:
        """The item so many places on, at most the first or last; the first one from an item outside the list."""
        here = self.place(item)
        return self.at(0 if here is None else min(max(here + by, 0), self.count - 1))

    def show(self, ids: Sequence[str], rows: pd.DataFrame, page: int = 1) -> None:
        """Lists these items, none of them marked, turned to a page or the last one there is."""
        self._ids, self._places = list(ids), {item: place for place, item in enumerate(ids)}
        pages = max(1, -(-self.count // self._page_size))
        with pn.io.hold():
            self.table.param.page.bounds = (1, pages)
            self.table.param.update(value=rows, selection=[], page=min(page, pages))

    def mark(self, item: str | None) -> None:
        """Marks an item's row and turns to its page; nothing is marked when it is not listed."""
        place = self.place(item)
        if place is not None:
            self.table.page = place // self._page_size + 1
        self.table.selection = [] if place is None else [place]

    @property
    def _page_size(self) -> int:
        return int(self.table.page_size or self.table.initial_page_size)

    def _clicked(self, event: Any) -> None:
        item = self.at(int(event.row))
        if item is not None:
            self._on_pick(item)


@cache
def tabulator_sheet() -> str:
    """Tabulator's own plain theme, from the installed Panel."""
    folder = Path(pn.__file__).parent / "dist" / "bundled" / "datatabulator" / THEME_PATH
    return (folder / "tabulator_simple.min.css").read_text(encoding="utf-8")
