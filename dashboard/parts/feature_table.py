"""The table of features: a remote-paginated Tabulator whose rows are already in the order the state asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import panel as pn
import polars as pl
from bokeh.models.widgets.tables import NumberFormatter, StringFormatter

from core.store.feature_queries import SORT_COLUMNS, FeatureTable
from dashboard.parts.ordered_table import OrderedTable
from dashboard.theme import sheet

COLUMNS = (
    "feature_id",
    "label",
    "weight",
    "weight_rank",
    "density",
    "max_active",
    "n_responses",
    "mean_contribution",
    "length_corr",
    "detection",
)
SIGNED = ("weight", "mean_contribution")
HIDDEN = tuple(f"{name}_colour" for name in SIGNED)
TITLES = {
    "feature_id": "id",
    "label": "label",
    "weight": "w",
    "weight_rank": "rank",
    "density": "density",
    "max_active": "max",
    "n_responses": "answers",
    "mean_contribution": "mean contrib.",
    "length_corr": "length corr.",
    "detection": "detection",
}
HELP = {
    "feature_id": "Feature id",
    "label": "Label, with the word it predicts best; search also looks in contexts",
    "weight": "Head weight: + raises the reward, − lowers it",
    "weight_rank": "Rank by |w|, 1 = largest",
    "density": "Share of answer tokens on which it is active",
    "max_active": "Largest activation in the run",
    "n_responses": "Answers in which it is active",
    "mean_contribution": "Mean over pairs of w × (z chosen − z rejected)",
    "length_corr": "Spearman correlation of its mean activation with answer length",
    "detection": "Balanced accuracy of the label on held-out contexts, with its interval; 0.5 is chance",
}
WIDTHS: dict[str, str | int] = {
    "feature_id": 48,
    "weight": 66,
    "weight_rank": 48,
    "density": 70,
    "max_active": 48,
    "n_responses": 56,
    "mean_contribution": 76,
    "length_corr": 54,
    "detection": 114,
}
MISSING = "n/a"
ROWS_AT_FIRST = 15
"""Rows on a page until the browser says how many fit."""
FORMATS = {
    "feature_id": NumberFormatter(format="0"),
    "label": StringFormatter(),
    "weight": NumberFormatter(format="+0.000", nan_format=MISSING, text_color={"field": "weight_colour"}),
    "weight_rank": NumberFormatter(format="0,0", nan_format=MISSING),
    "density": NumberFormatter(format="0.000 %", nan_format=MISSING),
    "max_active": NumberFormatter(format="0.00", nan_format=MISSING),
    "n_responses": NumberFormatter(format="0,0", nan_format=MISSING),
    "mean_contribution": NumberFormatter(
        format="+0.00000", nan_format=MISSING, text_color={"field": "mean_contribution_colour"}
    ),
    "length_corr": NumberFormatter(format="+0.00", nan_format=MISSING),
}


def sign_colours(values: np.ndarray, dark: bool) -> list[str]:
    """Colour of signed figures [n], the theme's text colour for zero and missing; never colour alone: the figure has
    its sign. (Plain colours, as in assets/page.css: a formatter takes no custom property.)"""
    plain, raises, lowers = ("#e6eaf0", "#6cbdf0", "#ff9b55") if dark else ("#1b2230", "#00639b", "#a84300")
    return np.select([values > 0, values < 0], [raises, lowers], plain).tolist()


def whole_frame(table: FeatureTable, dark: bool) -> Any:
    """The pandas frame of every feature, in the table's order: COLUMNS and the hidden colours of SIGNED, NaN where missing;
    made once for all sessions."""
    frames = _whole.setdefault(table, {})
    if dark not in frames:
        rows = table.frame
        score, low, high = (rows[f"detection_{part}"].to_list() for part in ("score", "low", "high"))
        texts = [detection_text(*figures) for figures in zip(score, low, high, strict=True)]
        added = [pl.Series("detection", texts, dtype=pl.String)]
        added += [pl.Series(f"{name}_colour", sign_colours(table.column(name), dark)) for name in SIGNED]
        label = pl.col("label").fill_null("no label")
        frames[dark] = rows.with_columns(*added, label).select(*COLUMNS, *HIDDEN).to_pandas()
    return frames[dark]


_whole: WeakKeyDictionary[FeatureTable, dict[bool, Any]] = WeakKeyDictionary()


def rows_frame(table: FeatureTable, ids: np.ndarray, dark: bool = False) -> Any:
    """The rows of some features, in the order given."""
    return whole_frame(table, dark).take(table.rows_of(ids)).reset_index(drop=True)


def detection_text(score: float | None, low: float | None, high: float | None) -> str:
    """'0.62 (0.57–0.67)', or the word for missing."""
    if score is None:
        return MISSING
    return f"{score:.2f}" if low is None or high is None else f"{score:.2f} ({low:.2f}–{high:.2f})"


class FeatureRows:
    """The widget with what the view needs of it.

    `on_pick(id)` is called for a click on a row, `on_sort(column, descending)` for a click on a heading.
    """

    def __init__(
        self, table: FeatureTable, on_pick: Callable[[int], None], on_sort: Callable[[str, bool], None]
    ) -> None:
        self._table, self._on_pick, self._on_sort = table, on_pick, on_sort
        self._quiet = False
        self.ids = np.array([], dtype=np.int64)
        self.widget = OrderedTable(
            rows_frame(table, self.ids),
            hidden_columns=list(HIDDEN),
            pagination="remote",
            initial_page_size=ROWS_AT_FIRST,
            show_index=False,
            disabled=True,
            selectable=1,
            sortable=True,
            row_height=28,
            titles=TITLES,
            header_tooltips=HELP,
            formatters=FORMATS,
            widths=WIDTHS,
            text_align={name: "left" if name == "label" else "right" for name in COLUMNS},
            header_align={name: "left" if name == "label" else "right" for name in COLUMNS},
            configuration={"columnDefaults": {"headerWordWrap": True, "minWidth": 44}},
            layout="fit_columns",
            theme="simple",
            sizing_mode="stretch_both",
            min_height=200,
            margin=0,
            stylesheets=[sheet("table")],
        )
        self.widget.on_click(self._clicked)
        self.widget.param.watch(self._sorted, "sorters")
        self.widget.param.watch(self._fitted, "page_size")

    @property
    def page_size(self) -> int:
        """Rows on a page: as many as fit, which the browser decides."""
        return int(self.widget.page_size or self.widget.initial_page_size)

    def show(self, ids: np.ndarray, sort: str, descending: bool, feature: int | None, dark: bool = False) -> None:
        """Shows these features in this order, at the page of the selected one."""
        self.ids = ids
        field = "detection" if sort == "detection_score" else sort
        at = self.position(feature)
        pages = max(1, -(-len(ids) // self.page_size))
        self._quiet = True
        try:
            self.widget.param.page.bounds = (1, pages)  # so that rows and page change in one message
            self.widget.param.update(
                value=rows_frame(self._table, ids, dark),
                sorters=[{"field": field, "dir": "desc" if descending else "asc"}] if field in COLUMNS else [],
                page=1 if at is None else at // self.page_size + 1,
            )
            self.widget.selection = [] if at is None else [at]
        finally:
            self._quiet = False

    def select(self, feature: int | None) -> None:
        """Marks a feature's row and turns to its page; nothing is marked when it is not listed."""
        at = self.position(feature)
        if at is not None:
            self.widget.page = at // self.page_size + 1
        self.widget.selection = [] if at is None else [at]

    def position(self, feature: int | None) -> int | None:
        """Where a feature stands in the list."""
        found: np.ndarray = np.flatnonzero(self.ids == feature) if feature is not None else np.empty(0, int)
        return int(found[0]) if len(found) else None

    def _fitted(self, _: Any) -> None:
        """Other rows fit now; the selected one stays on the page."""
        self._turn()
        if pn.state.curdoc:  # Tabulator turns back to its first page a moment after it has said how many rows fit
            pn.state.curdoc.add_timeout_callback(self._turn, 300)

    def _turn(self) -> None:
        if self.widget.selection:
            self.widget.page = self.widget.selection[0] // self.page_size + 1

    def _clicked(self, event: Any) -> None:
        if 0 <= event.row < len(self.ids):
            self._on_pick(int(self.ids[event.row]))

    def _sorted(self, event: Any) -> None:
        if self._quiet or not event.new:
            return
        field = {"detection": "detection_score"}.get(event.new[0]["field"], event.new[0]["field"])
        if field in SORT_COLUMNS:
            self._on_sort(field, event.new[0]["dir"] == "desc")
