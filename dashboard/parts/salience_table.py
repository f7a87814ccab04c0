"""The table of the Salience view: every feature of the slice, tested or not, in the order that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from bokeh.models.widgets.tables import NumberFormatter, StringFormatter

from dashboard.parts.aligned import decimals_for
from dashboard.parts.feature_table import MISSING, ROWS_AT_FIRST, FeatureRows, sign_colours
from dashboard.parts.ordered_table import OrderedTable
from dashboard.parts.salience_rows import SORTS, Listing, Rows
from dashboard.theme import sheet

COLUMNS = (
    "feature_id", "member", "label", "size", "q", "effect", "interval", "s", "rating", "detection", "causal", "auc", "replication",
)  # fmt: skip
HIDDEN = ("effect_colour", "s_colour")
TITLES = {
    "feature_id": "id",
    "member": "set",
    "label": "label",
    "effect": "effect",
    "interval": "95 % interval",
    "size": "effect size",
    "q": "q",
    "s": "s",
    "auc": "AUC",
    "replication": "repli- cated",
    "rating": "safety rating",
    "detection": "detec- tion",
    "causal": "causal check",
}
HELP = {
    "feature_id": "Feature id",
    "member": "S+ or S− of the open set; keys + − 0 change the selected feature's",
    "label": "Label: a reviewer's, else the endpoint's, else the offline one",
    "effect": "Mean over prompts of chosen − rejected, activation units",
    "interval": "95 % interval of the effect, clustered by prompt",
    "size": "Effect over the standard deviation of the prompts' differences",
    "q": "Benjamini-Hochberg over all tested features of this slice and pooling; n/a = not tested",
    "s": "SAFER's salience (h+ − h−) / (h+ + h− + C)",
    "auc": "Chance that the chosen answer has more of it than the rejected one, ties one half",
    "replication": "Found on one half of the prompts and again on the other; n/a = not significant on the first half",
    "rating": "Safety rating 1 to 5 by the labelling endpoint; n/a = none",
    "detection": "Balanced accuracy of the label on held-out contexts; 0.5 is chance",
    "causal": "Whether taking the feature away changes margins beyond matched random features",
}
WIDTHS: dict[str, str | int] = {
    "feature_id": 50,
    "member": 36,
    "size": 54,
    "q": 62,
    "effect": 70,
    "interval": 142,
    "s": 58,
    "rating": 54,
    "detection": 52,
    "causal": 90,
    "auc": 46,
    "replication": 58,
}
LEFT = ("label", "member", "causal", "replication")
SIGNED_TEXT = StringFormatter(text_color={"field": "effect_colour"})
FORMATS = {
    "feature_id": NumberFormatter(format="0"),
    "label": StringFormatter(),
    "effect": SIGNED_TEXT,
    "size": SIGNED_TEXT,
    "s": StringFormatter(text_color={"field": "s_colour"}),
    "auc": NumberFormatter(format="0.00", nan_format=MISSING),
    "rating": NumberFormatter(format="0", nan_format=MISSING),
    "detection": NumberFormatter(format="0.00", nan_format=MISSING),
}
MEMBER = ("S−", "", "S+")
REPLICATION = {"replicated": "✓ yes", "not replicated": "✗ no", None: MISSING}
CAUSAL_TEXT = {"verified": "✓ verified", "correlated only": "≈ correlated", "not checked": "not checked"}


def table_frame(rows: Rows, dark: bool) -> Any:
    """The pandas frame of every row, in the order of `rows`; figures of a kind have the same number of decimals."""
    if not len(rows):
        return pd.DataFrame({name: pd.Series(dtype=object) for name in (*COLUMNS, *HIDDEN)})
    effect, low, high = (rows.column(name) for name in ("effect", "low", "high"))
    sizes = np.abs(effect[np.isfinite(effect) & (effect != 0)])
    decimals = decimals_for([float(np.quantile(sizes, 0.9)) if len(sizes) else None], digits=2)
    ends = pl.select(pl.concat_str(fixed(low, decimals), pl.lit(" to "), fixed(high, decimals))).to_series()
    size, s, q = (rows.column(name) for name in ("size", "s", "q"))
    direction = rows.direction.astype(np.float64)
    frame = rows.frame.select("feature_id", "label", "auc", "rating", "detection").with_columns(
        pl.col("label").fill_null("no label"),
        pl.Series("member", [""] * len(rows), dtype=pl.String),
        fixed(effect, decimals).fill_null(MISSING).alias("effect"),
        ends.fill_null(MISSING).alias("interval"),
        fixed(size, 2).fill_null(MISSING).alias("size"),
        fixed(s, 3).fill_null(MISSING).alias("s"),
        pl.Series("q", np.where(np.isnan(q), MISSING, np.char.mod("%.2g", q)).tolist()).str.replace("-", "−"),
        pl.Series("replication", [REPLICATION[word] for word in rows.frame["replication"]], dtype=pl.String),
        pl.Series("causal", [CAUSAL_TEXT.get(word, word) for word in rows.frame["causal"]], dtype=pl.String),
        pl.Series("effect_colour", _colours(direction, dark)),
        pl.Series("s_colour", _colours(np.where(direction != 0, s, 0.0), dark)),
    )
    return frame.select(*COLUMNS, *HIDDEN).to_pandas()


def fixed(values: np.ndarray, decimals: int) -> pl.Series:
    """Signed numbers with so many decimals as text, null where missing; 65,536 of them take some milliseconds."""
    frame = pl.DataFrame({"value": pl.Series(values).fill_nan(None)})
    size = (pl.col("value").abs() * 10**decimals).round().cast(pl.Int64)
    sign = pl.when(size == 0).then(pl.lit("")).when(pl.col("value") > 0).then(pl.lit("+")).otherwise(pl.lit("−"))
    parts = [sign, (size // 10**decimals).cast(pl.String)]
    if decimals:
        parts += [pl.lit("."), (size % 10**decimals).cast(pl.String).str.zfill(decimals)]
    return frame.select(pl.concat_str(parts)).to_series()


def _colours(values: np.ndarray, dark: bool) -> list[str]:
    """Blue and vermillion for what is significant, grey for what is not."""
    muted = "#a3adbb" if dark else "#566070"
    return np.where(values == 0, muted, sign_colours(values, dark)).tolist()


class SalienceTable(FeatureRows):
    """The widget with what the view needs of it; picking, paging and marking are those of the features' table.

    `on_pick(id)` is called for a click on a row, `on_sort(column, descending)` for a click on a heading.
    """

    def __init__(self, on_pick: Callable[[int], None], on_sort: Callable[[str, bool], None]) -> None:
        self._on_pick, self._on_sort = on_pick, on_sort
        self._quiet = False
        self._whole: Any = None
        self._made_for: tuple[object, ...] = ()
        self.ids = np.array([], dtype=np.int64)
        self.widget = OrderedTable(
            pd.DataFrame({name: pd.Series(dtype=object) for name in (*COLUMNS, *HIDDEN)}),
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
            text_align={name: "left" if name in LEFT else "right" for name in COLUMNS},
            header_align={name: "left" if name in LEFT else "right" for name in COLUMNS},
            frozen_columns=["feature_id", "member"],
            configuration={
                "columnDefaults": {"headerWordWrap": True, "minWidth": 36},
                "columns": [{"field": "label", "minWidth": 150}],
            },
            layout="fit_columns",
            theme="simple",
            sizing_mode="stretch_both",
            min_height=200,
            margin=0,
            stylesheets=[sheet("table"), sheet("salience")],
        )
        self.widget.on_click(self._clicked)
        self.widget.param.watch(self._sorted, "sorters")
        self.widget.param.watch(self._fitted, "page_size")

    def fill(
        self, rows: Rows, at: np.ndarray, signs: np.ndarray, listing: Listing, feature: int | None, dark: bool
    ) -> None:
        """Shows the rows at these positions in this order, at the page of the selected feature."""
        if self._made_for != (id(rows), dark):  # rows are kept as long as they are shown, so no other has their id
            self._whole, self._made_for, self._rows = table_frame(rows, dark), (id(rows), dark), rows
        shown = self._whole.take(at).reset_index(drop=True)
        shown["member"] = np.array(MEMBER, dtype=object)[signs[at] + 1]
        self.ids = rows.ids[at]
        place = self.position(feature)
        pages = max(1, -(-len(at) // self.page_size))
        self._quiet = True
        try:
            self.widget.param.page.bounds = (1, pages)  # so that rows and page change in one message
            sorters = [{"field": listing.sort, "dir": "desc" if listing.descending else "asc"}]
            self.widget.param.update(
                value=shown,
                sorters=sorters if listing.sort in COLUMNS else [],
                page=1 if place is None else place // self.page_size + 1,
            )
            self.widget.selection = [] if place is None else [place]
        finally:
            self._quiet = False

    def _sorted(self, event: Any) -> None:
        if not self._quiet and event.new and event.new[0]["field"] in SORTS:
            self._on_sort(event.new[0]["field"], event.new[0]["dir"] == "desc")
