"""The pairs a plan would change, in the order in which it changes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import polars as pl
from bokeh.models.widgets.tables import StringFormatter

from core.store.pair_queries import PairFilter, matching_pairs
from core.store.reader import RunReader
from dashboard.parts.aligned import decimals_for
from dashboard.parts.ordered_table import ListedItems, OrderedTable
from dashboard.theme import sheet

ROWS_AT_FIRST = 8
SCORE_TITLES = {
    "set": "pair score",
    "random": "lot",
    "margin": "margin",
    "loss": "label chance",
    "length": "log length ratio",
}
SIGNED = ("set", "margin", "length")


def pair_places(reader: RunReader) -> pl.DataFrame:
    """What a row shows of each pair, by pair_index: pair_id, snippet, domain."""
    with reader.cursor() as cursor:
        return matching_pairs(cursor, PairFilter()).select("pair_index", "pair_id", "snippet", "domain")


def ranked_rows(pairs: pl.DataFrame, order: np.ndarray, scores: np.ndarray, *, signed: bool = True) -> pd.DataFrame:
    """The table's rows, first changed first.

    Args:
        pairs: `pair_places`, in order of pair_index.
        order: int64 [n], pair_index.
        scores: float64 [n_pairs], by pair_index, NaN where a pair has none.
        signed: whether a positive score gets its +.

    Returns:
        rank (1..), score as text, prompt, domain and, not shown, pair_id.
    """
    rows = pairs[order]
    mine = scores[order]
    decimals, plus = decimals_for(mine.tolist()), "+" if signed else ""
    texts = ["" if np.isnan(score) else f"{score:{plus}.{decimals}f}".replace("-", "−") for score in mine]
    frame = rows.select(pl.col("snippet").alias("prompt"), "domain", "pair_id").to_pandas()
    frame.insert(0, "rank", np.arange(1, len(order) + 1))
    frame.insert(1, "score", texts)
    return frame


class PlanPairs:
    """The table over one ranking; `on_pick(pair_id)` for a click on a row.

    Attributes:
        listed: which pair stands where.
    """

    def __init__(self, reader: RunReader, on_pick: Callable[[str], None]) -> None:
        self._pairs = pair_places(reader)
        self._all = ranked_rows(self._pairs, np.empty(0, np.int64), np.empty(0))
        self._places: dict[str, int] = {}
        self._n = 0
        self.widget = OrderedTable(
            self._all.head(0).drop(columns="pair_id"),
            pagination="remote",
            initial_page_size=ROWS_AT_FIRST,
            show_index=False,
            disabled=True,
            selectable=1,
            sortable=False,
            layout="fit_columns",
            widths={"rank": 52, "score": 78, "domain": 100},
            text_align={"rank": "right", "score": "right"},
            header_align={"rank": "right", "score": "right"},
            titles={"rank": "rank", "score": "score", "prompt": "prompt", "domain": "domain"},
            formatters={"score": StringFormatter()},
            configuration={"columnDefaults": {"minWidth": 24, "headerWordWrap": True}},
            row_height=28,
            theme="simple",
            sizing_mode="stretch_both",
            min_height=150,
            margin=0,
            stylesheets=[sheet("table"), ":host .tabulator { min-width: 0; }"],
        )
        self.listed = ListedItems(self.widget, on_pick)

    @property
    def ranked(self) -> int:
        """Pairs the strategy ranks."""
        return len(self._all)

    def rank(self, pair_id: str | None) -> int | None:
        """1-based place of a pair in the whole order, None when it has none."""
        place = self._places.get(pair_id) if pair_id is not None else None
        return None if place is None else place + 1

    def by_domain(self, n: int) -> list[tuple[str, int]]:
        """How many of the first `n` pairs each domain has, most first."""
        counts = self._all["domain"].head(n).value_counts()
        return [(str(name), int(count)) for name, count in counts.items()]

    def order(self, order: np.ndarray, scores: np.ndarray, strategy: str) -> None:
        """Takes a ranking; `cut` shows it."""
        self._all = ranked_rows(self._pairs, order, scores, signed=strategy in SIGNED)
        self._places = {pair: place for place, pair in enumerate(self._all["pair_id"])}
        self.widget.titles = {**self.widget.titles, "score": SCORE_TITLES[strategy]}
        self._n = -1

    def cut(self, n: int, pair_id: str | None) -> None:
        """Shows the first `n`, the selected pair marked."""
        n = min(n, len(self._all))
        if n != self._n:
            self._n = n
            cut = self._all.head(n)
            self.listed.show(cut["pair_id"].to_list(), cut.drop(columns="pair_id"), page=self.widget.page)
        self.listed.mark(pair_id)
