"""The table under every list: a Tabulator whose rows come in order from the state, a page at a time."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

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


@cache
def tabulator_sheet() -> str:
    """Tabulator's own plain theme, from the installed Panel."""
    folder = Path(pn.__file__).parent / "dist" / "bundled" / "datatabulator" / THEME_PATH
    return (folder / "tabulator_simple.min.css").read_text(encoding="utf-8")
