"""The volcano plot: effect against -log10 q. A picture of every tested feature, crisp marks for the strongest in view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import panel as pn
from bokeh.core.property.descriptors import UnsetValueError
from bokeh.events import RangesUpdate, Reset, SelectionGeometry, Tap
from bokeh.models import (
    BoxSelectTool,
    ColumnDataSource,
    HoverTool,
    LassoSelectTool,
    PanTool,
    Range1d,
    ResetTool,
    Span,
    WheelZoomTool,
)
from bokeh.plotting import figure

from core.store.feature_queries import inside_polygon
from dashboard.escape import plain, shorten
from dashboard.parts.feature_map import geometry_polygon
from dashboard.parts.map_image import draw, hex_colours, png_url, rgb
from dashboard.parts.salience_rows import AXES, LEVEL, Rows
from dashboard.theme import LOWERS, NEUTRAL, RAISES

MOST_MARKS = 1_000
HIGHEST = 16.0
"""-log10 q at which the axis ends: anything smaller than q = 1e-16 is drawn on the upper edge, as triangles."""
PIXELS = 2
NEAR = 0.025
"""A click selects the nearest feature within this share of the view."""
NAMES = {"effect": "effect, activation units", "size": "effect size", "s": "SAFER’s s"}

Polygon = tuple[tuple[float, float], ...]
View = tuple[float, float, float, float]
"""left, right, bottom, top in plot coordinates."""


@dataclass(frozen=True)
class Cloud:
    """The points of a volcano plot, one for each row of a `Rows`.

    Attributes:
        x: float64 [n]; y: float64 [n] = -log10 q, at most HIGHEST; NaN where the feature is not tested.
        colours: uint8 [n, 3] by direction.
        strong: bool [n], significant features.
        capped: bool [n], features whose q is smaller than the axis shows.
        whole: the view that holds them all.
    """

    x: np.ndarray
    y: np.ndarray
    colours: np.ndarray
    strong: np.ndarray
    capped: np.ndarray
    whole: View


def cloud_of(rows: Rows, axis: str) -> Cloud:
    """Points of the plot.

    Args:
        axis: 'effect', 'effect_size' or 's' (values of state.volcano).
    """
    q = rows.column("q")
    with np.errstate(divide="ignore"):
        height = -np.log10(q)
    capped = np.nan_to_num(height, nan=0.0, posinf=np.inf) > HIGHEST
    x = np.where(np.isnan(q), np.nan, rows.column(AXES[axis]))
    y = np.where(np.isnan(x), np.nan, np.minimum(height, HIGHEST))
    palette = np.array([rgb(LOWERS), rgb(NEUTRAL), rgb(RAISES)]).astype(np.uint8)
    return Cloud(x, y, palette[rows.direction + 1], rows.direction != 0, capped & ~np.isnan(y), _bounds(x, y))


def _bounds(x: np.ndarray, y: np.ndarray) -> View:
    """Zero and every point in view, with a margin; the line at q = LEVEL always."""
    lowest_top = 1.5 * -np.log10(LEVEL)
    if not np.isfinite(x).any():
        return -1.0, 1.0, 0.0, lowest_top
    low, high = min(float(np.nanmin(x)), 0.0), max(float(np.nanmax(x)), 0.0)
    pad = 0.05 * (high - low) or 1.0
    top = max(float(np.nanmax(y)) * 1.06, lowest_top)
    return low - pad, high + pad, -0.02 * top, top


def caption(rows: Rows, cloud: Cloud, axis: str) -> str:
    """What the plot leaves to say, in one or two sentences."""
    said = []
    if axis == "s" and rows.length_control:
        said.append("s itself knows no length control; q and colours are at equal length.")
    capped = int(cloud.capped.sum())
    if capped:
        said.append(f"▲ on the upper edge: {capped:,} with q below 1e−{HIGHEST:.0f}.")
    elif (shared := at_smallest_q(rows)) > 1:
        smallest = float(np.nanmin(rows.column("q")))
        said.append(f"{shared:,} features share the smallest q there is here, {plain(smallest, 2)}.")
    drawn = int(np.isfinite(cloud.y).sum())
    if drawn > MOST_MARKS:
        said.append(
            f"All {drawn:,} tested features are drawn as a picture; the {MOST_MARKS:,} strongest in view answer the mouse, "
            "a click finds any."
        )
    return " ".join(said)


def at_smallest_q(rows: Rows) -> int:
    """How many significant features have the smallest q of the slice: the row that a finite number of draws makes."""
    q = rows.column("q")[rows.direction != 0]
    return int((q == q.min()).sum()) if len(q) else 0


class Volcano(pn.viewable.Viewer):
    """Built once; everything that changes is put into its sources in place.

    `on_feature(id)` is called for a click near a feature, `on_region(polygon)` for a drawn region (() clears it).
    """

    def __init__(self, on_feature: Callable[[int], None], on_region: Callable[[Polygon], None], **params: Any) -> None:
        super().__init__(**params)
        self._on_feature, self._on_region = on_feature, on_region
        self._rows: Rows | None = None
        self._cloud: Cloud | None = None
        self._axis = "effect_size"
        self._feature: int | None = None
        self._signs = np.empty(0, dtype=np.int64)
        self._region: Polygon = ()
        self._target: View | None = None
        self._dark = self._waiting = self._shown = False
        self._painted: tuple[object, ...] = ()
        self._build()

    def _build(self) -> None:
        box, lasso, wheel = (
            BoxSelectTool(renderers=[]),
            LassoSelectTool(renderers=[], continuous=False),
            WheelZoomTool(),
        )
        self.figure = figure(
            x_range=Range1d(-1, 1),
            y_range=Range1d(0, 2),
            sizing_mode="stretch_both",
            min_height=160,
            tools=[box, lasso, PanTool(), wheel, ResetTool()],
            active_drag=box,
            active_scroll=wheel,
            toolbar_location="right",
            output_backend="canvas",
            name="volcano",
        )
        self.figure.toolbar.logo = None
        self.figure.outline_line_color = None
        self.figure.background_fill_alpha = self.figure.border_fill_alpha = 0  # the page's surface shows through
        self.figure.min_border = 4
        self.figure.yaxis.axis_label = "−log10 q"
        self.figure.axis.axis_label_text_font_style = "normal"
        self.figure.axis.axis_label_text_font_size = "12px"
        self.figure.axis.major_label_text_font_size = "12px"
        self.figure.axis.minor_tick_line_color = None
        self.figure.axis.axis_line_color = None
        self._picture = ColumnDataSource({"url": [""], "x": [-1], "y": [2], "w": [2], "h": [2]})
        self.figure.image_url(url="url", x="x", y="y", w="w", h="h", anchor="top_left", source=self._picture)
        self._area = ColumnDataSource({"x": [], "y": []})
        self.figure.patch(
            "x",
            "y",
            source=self._area,
            fill_color="#64748b",
            fill_alpha=0.12,
            line_color="#64748b",
            line_dash="dashed",
        )
        self._lines = [
            Span(location=float(-np.log10(LEVEL)), dimension="width", line_dash="dashed", line_width=1),
            Span(location=0.0, dimension="height", line_width=1),
        ]
        for line in self._lines:
            self.figure.add_layout(line)
        self.marks = ColumnDataSource(
            {name: [] for name in ("x", "y", "colour", "marker", "size", "id", "label", "says", "q")}
        )
        points = self.figure.scatter(
            "x", "y", source=self.marks, size="size", marker="marker", fill_color="colour", line_color=None
        )
        points.nonselection_glyph = points.selection_glyph = None
        self.figure.add_tools(HoverTool(renderers=[points], tooltips=[("#@id", "@label"), ("", "@says"), ("q", "@q")]))
        self.chosen = ColumnDataSource({"x": [], "y": [], "marker": []})
        self._ring = self.figure.scatter(
            "x", "y", source=self.chosen, marker="marker", size=10, fill_color=None, line_width=1.5
        ).glyph
        self.selected = ColumnDataSource({"x": [], "y": []})
        for colour, width in (("#ffffff", 5), ("#111827", 2.5)):
            self.figure.scatter(
                "x", "y", source=self.selected, size=19, fill_color=None, line_color=colour, line_width=width
            )
        self._names = ColumnDataSource({"x": [], "y": [], "name": [], "align": [], "shift": []})
        self._name_glyph = self.figure.text(
            "x", "y", "name", source=self._names, text_align="align", x_offset="shift", y_offset=-2, text_font_size="12px",
            text_font={"value": "Roboto, sans-serif"},
        ).glyph  # fmt: skip
        self.figure.on_event(SelectionGeometry, self._drawn)
        self.figure.on_event(Tap, self._tap)
        self.figure.on_event(Reset, lambda _: self.show_whole())
        self.figure.on_event(RangesUpdate, self._moved)
        self.figure.on_change("inner_width", self._resized)
        self.figure.on_change("inner_height", self._resized)

    # ------------------------------------------------------------------ changes

    def show(self, rows: Rows, axis: str, signs: np.ndarray) -> None:
        """Draws these features whole; `signs` int64 [n] says which are in S+ (1) and S- (-1)."""
        self._rows, self._axis, self._signs = rows, axis, signs
        self._cloud = cloud_of(rows, axis)
        self._region, self._target = (), self._cloud.whole
        self._later()

    def set_members(self, signs: np.ndarray) -> None:
        """Rings around the open set's features."""
        self._signs = signs
        self._later()

    def set_region(self, polygon: Polygon) -> None:
        """Draws the region in force."""
        self._region = polygon
        self._later()

    def set_feature(self, feature: int | None) -> None:
        """Marks a feature; out of view, the whole plot is shown again."""
        self._feature = feature
        place = self._place()
        left, right, bottom, top = self.view()
        if place and self._cloud and not (left <= place[0] <= right and bottom <= place[1] <= top):
            self._target = self._cloud.whole
        self._later()

    def set_dark(self, dark: bool) -> None:
        """Lines and names readable on either theme."""
        self._dark = dark
        self._later()

    def show_whole(self) -> None:
        """Back to every feature in view."""
        if self._cloud is not None:
            self._target = self._cloud.whole
            self._later()

    def inside(self, polygon: Polygon) -> np.ndarray:
        """bool [n]: the features drawn in a region."""
        assert self._cloud is not None
        return inside_polygon(self._cloud.x, self._cloud.y, np.asarray(polygon, dtype=np.float64))

    def caption(self) -> str:
        """What the plot as it is leaves to say."""
        return caption(self._rows, self._cloud, self._axis) if self._rows and self._cloud else ""

    # ------------------------------------------------------------------ drawing

    def _later(self, milliseconds: int = 10) -> None:
        """Draws soon, once, with the document's lock (see FeatureMap)."""
        if not self._shown:
            return
        if self.figure.document is None:
            self._draw()
        elif not self._waiting:
            self._waiting = True
            self.figure.document.add_timeout_callback(self._draw, milliseconds)

    def _draw(self) -> None:
        self._waiting = False
        if self._cloud is None:
            return
        if self._target is not None:
            left, right, bottom, top = self._target
            self.figure.x_range.update(start=left, end=right)
            self.figure.y_range.update(start=bottom, end=top)
            self._target = None
        text, line = ("#e6eaf0", "#566070") if self._dark else ("#1b2230", "#9aa4b2")
        for span in self._lines:
            span.line_color = line
        self._name_glyph.text_color = text
        self._ring.line_color = text
        self.figure.xaxis.axis_label = f"← more in rejected      {NAMES[AXES[self._axis]]}      more in chosen →"
        self.figure.yaxis.axis_label = (
            "−log10 q at equal length" if self._rows and self._rows.length_control else "−log10 q"
        )
        self._area.data = {"x": [x for x, _ in self._region], "y": [y for _, y in self._region]}
        place = self._place()
        self.selected.data = {"x": [place[0]], "y": [place[1]]} if place else {"x": [], "y": []}
        left, right, bottom, top = self.view()
        if right > left and top > bottom:
            self._paint(self._cloud)
            self._mark(self._cloud)
            self._name(self._cloud)

    def _paint(self, cloud: Cloud) -> None:
        left, right, bottom, top = self.view()
        width, height = (int(min(max(PIXELS * side, 64), 2400)) for side in self._pixels())
        order = np.argsort(cloud.strong, kind="stable")  # what is significant lies on top
        order = order[~cloud.capped[order]]  # which have marks of another shape
        every = np.ones(len(order), dtype=bool)
        x, y, colours = cloud.x[order], cloud.y[order], cloud.colours[order]
        image = draw(x, y, colours, every, self.view(), (width, height), self._radius())
        place = {"x": [left], "y": [top], "w": [right - left], "h": [top - bottom]}
        self._picture.data = {**place, "url": [png_url(image)]}
        self._painted = (self.view(), self._pixels())

    def _mark(self, cloud: Cloud) -> None:
        """Marks for the strongest in view, what the mouse finds, and rings around the open set's."""
        assert self._rows is not None
        left, right, bottom, top = self.view()
        seen = (cloud.x >= left) & (cloud.x <= right) & (cloud.y >= bottom) & (cloud.y <= top)
        rows = np.flatnonzero(seen)
        rows = rows[np.lexsort((np.abs(cloud.x[rows]), cloud.y[rows]))][-MOST_MARKS:]  # the strongest last, on top
        # (A slice in which more than MOST_MARKS features are beyond the axis would leave some without a triangle: the
        # caption counts them all.)
        frame = self._rows.frame[rows].select("feature_id", "label")
        effect, size, safer, q = (self._rows.column(name)[rows] for name in ("effect", "size", "s", "q"))
        says: np.ndarray = np.char.mod("effect %+.3g", effect)
        for words, values in ((", size %+.2f", size), (", s %+.3f", safer)):
            says = np.char.add(says, np.where(np.isnan(values), "", np.char.mod(words, values)))
        self.marks.data = {
            "x": cloud.x[rows].astype(np.float32),
            "y": cloud.y[rows].astype(np.float32),
            "colour": hex_colours(cloud.colours[rows]),
            "size": np.where(cloud.capped[rows], 8.0, max(2 * self._radius() / PIXELS, 5)).astype(np.float32),
            "marker": np.where(cloud.capped[rows], "triangle", "circle").tolist(),
            "id": frame["feature_id"].to_list(),
            "label": [shorten(label or "no label", 60) for label in frame["label"]],
            "says": np.char.replace(says, "-", "−").tolist() if len(rows) else [],
            "q": np.char.mod("%.2g", q).tolist(),
        }
        held = np.flatnonzero(seen & (self._signs != 0))
        self.chosen.data = {
            "x": cloud.x[held],
            "y": cloud.y[held],
            "marker": np.where(self._signs[held] > 0, "square", "diamond").tolist(),
        }

    def _name(self, cloud: Cloud) -> None:
        _, right, bottom, top = self.view()
        level = float(-np.log10(LEVEL))
        shown = bottom <= level <= top
        self._names.data = {
            "x": [right] * shown,
            "y": [level] * shown,
            "name": [f"q = {LEVEL:g}"] * shown,
            "align": ["right"] * shown,
            "shift": [-4] * shown,
        }

    # --------------------------------------------------------------- inner work

    def view(self) -> View:
        """What is in view."""
        x, y = self.figure.x_range, self.figure.y_range
        return float(x.start), float(x.end), float(y.start), float(y.end)

    def _place(self) -> tuple[float, float] | None:
        at = self._rows.place(self._feature) if self._rows is not None else None
        if at is None or self._cloud is None or not np.isfinite(self._cloud.y[at]):
            return None
        return float(self._cloud.x[at]), float(self._cloud.y[at])

    def _radius(self) -> int:
        """Of a dot in picture pixels: smaller where there are many."""
        drawn = 0 if self._cloud is None else int(np.isfinite(self._cloud.y).sum())
        return next((radius for most, radius in ((150, 7), (1_500, 6), (12_000, 5)) if drawn <= most), 3)

    def _pixels(self) -> tuple[float, float]:
        """Width and height of the drawing, a usual size until the browser has said."""
        try:
            return float(self.figure.inner_width), float(self.figure.inner_height)
        except UnsetValueError:
            return 560.0, 300.0

    def _moved(self, _: Any = None) -> None:
        if self._painted != (self.view(), self._pixels()):
            self._later(120)

    def _resized(self, attr: str, old: Any, new: Any) -> None:
        self._moved()

    def _drawn(self, event: SelectionGeometry) -> None:
        if event.final:
            self._on_region(geometry_polygon(event.geometry))

    def _tap(self, event: Tap) -> None:
        left, right, bottom, top = self.view()
        if event.x is None or self._cloud is None or self._rows is None or right == left or top == bottom:
            return
        distance = np.hypot((self._cloud.x - event.x) / (right - left), (self._cloud.y - event.y) / (top - bottom))
        distance = np.where(np.isfinite(distance), distance, np.inf)
        if len(distance) and distance.min() <= NEAR:
            self._on_feature(int(self._rows.ids[int(np.argmin(distance))]))

    def __panel__(self) -> pn.viewable.Viewable:
        self._shown = True
        self._draw()
        return pn.pane.Bokeh(self.figure, sizing_mode="stretch_both", margin=0)
