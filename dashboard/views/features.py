"""Features: every feature in a table and on a map, filtered together, and the card of the selected one."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui
import polars as pl

from core.errors import RewardscopeError
from core.features.labels.merged import feature_labels
from core.store.feature_queries import BY_SIZE, CLUSTER_NONE, FILTER_COLUMNS
from core.store.reader import FeatureCard, RunReader
from dashboard.escape import esc, shorten
from dashboard.parts.feature_card import card_html, empty_html
from dashboard.parts.feature_map import FeatureMap
from dashboard.parts.feature_table import FeatureRows
from dashboard.parts.range_filters import RangeFilters
from dashboard.sets import review_store
from dashboard.state import AppState
from dashboard.theme import sheet

FILTERS = ["search", "sign", "show_dead", "cluster", "ranges", "lasso"]
ORDER = ["sort", "descending"]
ANY_CLUSTER = -2


class FeaturesView(pn.viewable.Viewer):
    """Table 60 %, map and card 40 %; everything follows the state and changes in place."""

    def __init__(self, state: AppState, reader: RunReader, **params: Any) -> None:
        super().__init__(**params)
        self._state, self._reader, self._table = state, reader, reader.features
        self._drawn: int | None = None
        self._build()
        self._map.set_dark(state.dark)
        self._on_colour()
        self._on_filters()
        self._draw_card()
        self._on_feature()
        state.param.watch(self._on_filters, [*FILTERS, *ORDER])
        state.param.watch(self._on_feature, ["feature", "view"])
        state.param.watch(self._on_colour, "map_colour")
        state.param.watch(self._on_dark, "dark")

    # ------------------------------------------------------------------ layout

    def _build(self) -> None:
        state = self._state
        small = {"size": "small", "description": "", "margin": (10, 5, 4, 5)}
        self._search = pmui.TextInput(
            label="Search labels and contexts",
            value=state.search,
            css_classes=["rs-search"],
            sizing_mode="stretch_width",
            min_width=150,
            **small,
        )
        self._search.param.watch(lambda event: state.param.update(search=event.new), "value_input")
        self._sign = pmui.Select.from_param(
            state.param.sign,
            label="Weight",
            options={"any sign": "any", "+ raises": "raises", "− lowers": "lowers"},
            width=112,
            **small,
        )
        self._cluster = pmui.Select(
            label="Cluster", options=self._cluster_options(), value=self._cluster_value(), width=170, **small
        )
        self._cluster.param.watch(
            lambda event: state.param.update(cluster=None if event.new == ANY_CLUSTER else event.new), "value"
        )
        self._dead = pmui.Checkbox.from_param(state.param.show_dead, label="dead too", align="center", **small)
        self._rows = FeatureRows(self._table, on_pick=self._pick, on_sort=self._sort)
        self._ranges = RangeFilters(self._table, on_range=state.set_range, sizing_mode="stretch_width", margin=(0, 10))
        self._count = self._pane(sizing_mode="stretch_width", margin=(2, 10))
        self._map = FeatureMap(self._table, self._reader.clusters, on_feature=self._pick, on_region=self._lasso)
        self._colour = pmui.Select.from_param(
            state.param.map_colour,
            label="Dots coloured by",
            options={"weight": "weight", "cluster": "cluster"},
            width=140,
            **small,
        )
        self._full = pmui.Checkbox(label="all contexts", value=False, size="small", margin=(0, 4), align="center")
        self._full.param.watch(self._draw_card, "value")
        self._reveal = pmui.Checkbox.from_param(
            state.param.reveal, label="show blurred", description="", size="small", margin=(0, 4), align="center"
        )
        self._card = self._pane(("tokens", "card"), sizing_mode="stretch_width")

    def _pane(self, sheets: tuple[str, ...] = (), **params: Any) -> pn.pane.HTML:
        return pn.pane.HTML(stylesheets=[sheet("parts"), *map(sheet, sheets)], **{"margin": 0, **params})

    def __panel__(self) -> pn.viewable.Viewable:
        filters = _line(self._search, self._sign, self._cluster, self._dead)
        left = _box(6, filters, self._ranges, self._count, self._rows.widget, line="right")
        none = '<div class="rs-empty"><b>No map</b>This run stores no places for its features.</div>'
        the_map = self._pane(object=none) if self._map.empty else self._map
        hint = self._pane_text("Drag lists a region · wheel zooms · click opens")
        above = _box(38, _line(self._colour, hint), the_map, line="bottom")
        steps = self._button("‹ Previous", -1), self._button("Next ›", +1)
        card = pn.Column(self._card, sizing_mode="stretch_both", margin=0, scroll="y-auto", styles={"min-height": "0"})
        below = _box(62, _line(*steps, pn.HSpacer(), self._full, self._reveal), card)
        return pn.Row(left, _box(4, above, below), sizing_mode="stretch_both", margin=0, styles={"min-height": "0"})

    def _pane_text(self, text: str) -> pn.pane.HTML:
        shown = f'<span class="rs-small rs-muted">{esc(text)}</span>'
        return self._pane(object=shown, sizing_mode="stretch_width", align="center")

    def _button(self, label: str, by: int) -> pmui.Button:
        return pmui.Button(label=label, variant="text", size="small", margin=2, on_click=lambda _: self.step(by))

    def _cluster_options(self) -> dict[str, int]:
        options = {"Every cluster": ANY_CLUSTER}
        for row in self._reader.clusters.iter_rows(named=True):
            options[f"{shorten(row['name'], 40)} ({row['n_features']:,})"] = row["cluster"]
        if (self._table.column("cluster") == CLUSTER_NONE).any():
            options["In no cluster"] = CLUSTER_NONE
        return options

    def _cluster_value(self) -> int:
        return ANY_CLUSTER if self._state.cluster is None else self._state.cluster

    # ---------------------------------------------------------------- behaviour

    def step(self, by: int) -> None:
        """Selects the next or previous row of the list; the first one when none is selected."""
        ids = self._rows.ids
        if not len(ids):
            return
        at = self._rows.position(self._state.feature)
        to = 0 if at is None else min(max(at + by, 0), len(ids) - 1)
        self._state.feature = int(ids[to])

    def _pick(self, feature: int) -> None:
        self._state.feature = feature

    def _sort(self, column: str, descending: bool) -> None:
        self._state.param.update(sort=column, descending=descending)

    def _lasso(self, polygon: tuple[tuple[float, float], ...]) -> None:
        self._state.lasso = polygon

    def _on_filters(self, *events: Any) -> None:
        state, reader = self._state, self._reader
        chosen = state.feature_filter
        keep = reader.feature_mask(chosen)
        ids = self._table.ordered(keep, state.sort, state.descending)
        self._rows.show(ids, state.sort, state.descending, state.feature, state.dark)
        self._count.object = self._count_html(int(keep.sum()))
        if events and all(event.name in ORDER for event in events):
            return
        listed = {
            name: reader.feature_mask(chosen, without=name) if name in chosen.ranges else keep
            for name in FILTER_COLUMNS
        }
        self._ranges.refresh(listed, state.ranges)
        self._map.set_listed(keep)
        self._map.set_region(state.lasso)
        if state.search != self._search.value:
            self._search.param.update(value=state.search)
        self._cluster.value = self._cluster_value()

    def _count_html(self, n: int) -> str:
        total = len(self._table)
        dead = int((~self._table.frame["alive"].to_numpy()).sum())
        aside = f" ({dead:,} dead ones hidden)" if dead and not self._state.show_dead else ""
        if n:
            order = "largest |mean contribution| first" if self._state.sort == BY_SIZE else ""
            return (
                f'<div class="rs-small rs-muted count" role="status"><span><b class="rs-num">{n:,}</b> of {total:,} features'
                f"{aside}</span><span>{order}</span></div>"
            )
        clear = "&".join([self._state.link(), "q=", "sign=", "cluster=", "range=", "lasso="])
        return (
            f'<div class="rs-empty" role="status"><b>No feature passes these filters</b>'
            f'<a data-clears href="{esc(clear)}">Clear them all</a></div>'
        )

    def _on_feature(self, *_: Any) -> None:
        """Follows the selection; while another view is on show it waits, so that it costs nothing there."""
        feature = self._state.feature
        if self._state.view != "features" or feature == self._drawn:
            return
        self._drawn = feature
        self._rows.select(feature)
        self._map.set_feature(feature)
        self._draw_card()

    def _draw_card(self, *_: Any) -> None:
        feature = self._state.feature
        card = self._reader.card(feature) if feature is not None else None
        if card is None:
            self._card.object = empty_html()
            return
        self._card.object = card_html(card, self._state, len(self._table), self._full.value, self._labels(card))

    def _labels(self, card: FeatureCard) -> pl.DataFrame:
        """Every label of a feature; a review store that cannot be read is said where its labels would stand."""
        try:
            return feature_labels(card.labels, self._reader, review_store(), card.figures["feature_id"])
        except RewardscopeError as error:
            said = {"source": "review store", "model": "review store", "text": None, "problem": str(error)}
            return pl.concat([card.labels, pl.DataFrame([said])], how="diagonal_relaxed")

    def _on_dark(self, event: Any) -> None:
        self._map.set_dark(event.new)
        state = self._state
        self._rows.show(self._rows.ids, state.sort, state.descending, state.feature, event.new)

    def _on_colour(self, *_: Any) -> None:
        self._map.set_colour(self._state.map_colour)


def _line(*parts: Any) -> pn.Row:
    """Parts side by side, centred on their line."""
    return pn.Row(*parts, sizing_mode="stretch_width", margin=0, styles={"align-items": "center"})


def _box(share: int, *parts: Any, line: str = "") -> pn.Column:
    """Parts one below the other on a surface that takes its share of the room, with a line on one side."""
    styles = {"background": "var(--rs-surface)", "min-width": "0", "min-height": "0", "flex": f"{share} 1 0"}
    if line:
        styles[f"border-{line}"] = "1px solid var(--rs-line)"
    return pn.Column(*parts, sizing_mode="stretch_both", margin=0, styles=styles)
