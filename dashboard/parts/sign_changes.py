"""Features that speak for the chosen answer in one slice and against it in another, as a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from bokeh.models.widgets.tables import NumberFormatter, StringFormatter

from dashboard.parts.feature_table import ROWS_AT_FIRST, FeatureRows
from dashboard.parts.ordered_table import OrderedTable
from dashboard.theme import sheet

COLUMNS = ("feature_id", "label", "column", "up", "size_up", "q_up", "down", "size_down", "q_down")
TITLES = {
    "feature_id": "id",
    "label": "label",
    "column": "column",
    "up": "more in chosen where",
    "size_up": "effect size",
    "q_up": "q",
    "down": "more in rejected where",
    "size_down": "effect size",
    "q_down": "q",
}
WIDTHS: dict[str, str | int] = {
    "feature_id": 52,
    "column": 96,
    "up": 100,
    "size_up": 56,
    "q_up": 60,
    "down": 100,
    "size_down": 56,
    "q_down": 60,
}
LEFT = ("label", "column", "up", "down")


def changes_frame(changes: pl.DataFrame) -> Any:
    """The pandas frame of `reader.sign_changes(pooling)` as shown; slices without the name of their column."""
    if not len(changes):
        return pd.DataFrame({name: pd.Series(dtype=object) for name in COLUMNS})
    value = {side: pl.col(f"slice_{side}").str.splitn("=", 2).struct.field("field_1") for side in ("up", "down")}
    q = {f"q_{side}": [f"{q:.2g}".replace("-", "−") for q in changes[f"q_{side}"]] for side in ("up", "down")}
    shown = changes.select(
        "feature_id",
        pl.col("label").fill_null("no label"),
        "column",
        value["up"].alias("up"),
        pl.col("effect_size_up").alias("size_up"),
        pl.Series("q_up", q["q_up"], dtype=pl.String),
        value["down"].alias("down"),
        pl.col("effect_size_down").alias("size_down"),
        pl.Series("q_down", q["q_down"], dtype=pl.String),
    )
    return shown.select(COLUMNS).to_pandas()


class SignChanges(FeatureRows):
    """The widget; a feature may stand in several rows, `position` finds the first. `on_pick(id)` is called for a click."""

    def __init__(self, on_pick: Callable[[int], None]) -> None:
        self._on_pick = on_pick
        self._changes = pl.DataFrame()
        self.ids = np.array([], dtype=np.int64)
        self.widget = OrderedTable(
            changes_frame(pl.DataFrame()),
            pagination="remote",
            initial_page_size=ROWS_AT_FIRST,
            show_index=False,
            disabled=True,
            selectable=1,
            sortable=False,
            row_height=28,
            titles=TITLES,
            formatters={
                "feature_id": NumberFormatter(format="0"),
                "label": StringFormatter(),
                "size_up": NumberFormatter(format="+0.00"),
                "size_down": NumberFormatter(format="+0.00"),
            },
            widths=WIDTHS,
            text_align={name: "left" if name in LEFT else "right" for name in COLUMNS},
            header_align={name: "left" if name in LEFT else "right" for name in COLUMNS},
            configuration={"columnDefaults": {"headerWordWrap": True, "minWidth": 36}, "columns": [{"field": "label", "minWidth": 130}], "placeholder": "No feature changes its sign between slices of a column."},
            layout="fit_columns",
            theme="simple",
            sizing_mode="stretch_both",
            min_height=200,
            margin=0,
            visible=False,
            stylesheets=[sheet("table"), sheet("salience")],
        )  # fmt: skip
        self.widget.on_click(self._clicked)
        self.widget.param.watch(self._fitted, "page_size")

    def fill(self, changes: pl.DataFrame, feature: int | None) -> None:
        """Shows these changes, the selected feature's first row marked."""
        self._changes = changes
        self.ids = changes["feature_id"].cast(pl.Int64).to_numpy() if len(changes) else np.array([], dtype=np.int64)
        self.widget.param.page.bounds = (1, max(1, -(-len(self.ids) // self.page_size)))
        self.widget.param.update(value=changes_frame(changes), page=1)
        self.select(feature)

    def csv(self, facts: dict[str, str]) -> str:
        """The changes as CSV with exact figures."""
        return self._changes.select(*(pl.lit(value).alias(name) for name, value in facts.items()), pl.all()).write_csv()
