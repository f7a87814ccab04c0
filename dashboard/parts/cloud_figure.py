"""A cloud of features, as the map and the volcano plot draw it: all as one picture, the strongest in view as crisp marks.

However many features there are, the browser gets a PNG of what is in view and a bounded number of marks.
"""

from __future__ import annotations

from collections.abc import Callable
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
    WheelZoomTool,
)
from bokeh.plotting import figure

from dashboard.parts.map_image import png_url

PIXELS = 2
"""Picture pixels for one of the screen, so that dots stay round on sharp displays."""
NEAR = 0.03
"""A click selects the nearest feature within this share of the view."""
REGION_POINTS = 60
SOON, AT_REST = 20, 120
"""Milliseconds: after a change, after the last movement of the view."""

Polygon = tuple[tuple[float, float], ...]
View = tuple[float, float, float, float]
"""left, right, bottom, top in the figure's coordinates."""


def simplified(xs: list[float], ys: list[float], most: int = REGION_POINTS) -> Polygon:
    """At most `most` corners of a drawn line, evenly along it: short enough for a link."""
    step = max(1, -(-len(xs) // most))
    return tuple((float(f"{x:.5g}"), float(f"{y:.5g}")) for x, y in zip(xs[::step], ys[::step], strict=True))


def geometry_polygon(geometry: dict[str, Any]) -> Polygon:
    """The polygon of a SelectionGeometry event (lasso or box); () when it encloses nothing."""
    if geometry.get("type") == "rect":
        x0, x1, y0, y1 = (float(geometry[key]) for key in ("x0", "x1", "y0", "y1"))
        return simplified([x0, x1, x1, x0], [y0, y0, y1, y1]) if x0 != x1 and y0 != y1 else ()
    xs, ys = list(geometry.get("x", [])), list(geometry.get("y", []))
    return simplified(xs, ys) if len(xs) >= 3 else ()


class CloudFigure(pn.viewable.Viewer):
    """The figure, what is drawn soon, and what the mouse does. Built once; whatever changes is put into its sources in place.

    A subclass adds its glyphs in `_add_glyphs` and says what is where: `_pickable`, `_place`, `_image`, `_dress`, `_mark`.

    Args:
        on_feature: called with the feature near a click; on_region: with a drawn polygon, () clears it.
        name: of the figure; view: what it shows at first; lasso: whether a drag draws a lasso or a box.
        usual: pixels of the drawing until the browser has said.

    Attributes:
        figure, marks, selected: the figure and the sources of its marks and of the ring around the selected feature.
        whole: the view with every feature in it.
    """

    def __init__(
        self,
        on_feature: Callable[[int], None],
        on_region: Callable[[Polygon], None],
        *,
        name: str,
        view: View,
        lasso: bool,
        usual: tuple[float, float],
        **params: Any,
    ) -> None:
        super().__init__(**params)
        self._on_feature, self._on_region, self._usual = on_feature, on_region, usual
        self.whole = view
        self._region: Polygon = ()
        self._target: View | None = None
        self._dark = self._waiting = self._shown = False
        self._painted: tuple[object, ...] = ()
        self._build(name, lasso)

    # ------------------------------------------------------ what a subclass says

    def _add_glyphs(self) -> None:
        """Adds glyphs above the picture and below the selected feature's ring; `_add_marks` makes those the mouse finds."""
        raise NotImplementedError

    def _add_names(self) -> None:
        """Adds glyphs above everything."""

    def _pickable(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids int64 [n] of the features a click finds, and their places x, y float64 [n] (NaN = none)."""
        raise NotImplementedError

    def _place(self) -> tuple[float, float] | None:
        """Where the selected feature is."""
        raise NotImplementedError

    def _image(self, view: View, size: tuple[int, int]) -> np.ndarray:
        """The picture of a view (map_image.draw)."""
        raise NotImplementedError

    def _dress(self) -> None:
        """Colours and words for the present theme."""
        raise NotImplementedError

    def _mark(self, view: View) -> None:
        """Fills `marks` and whatever else depends on the view."""
        raise NotImplementedError

    # ------------------------------------------------------------------ building

    def _build(self, name: str, lasso: bool) -> None:
        left, right, bottom, top = self.whole
        drawn, box, wheel = (
            LassoSelectTool(renderers=[], continuous=False),
            BoxSelectTool(renderers=[]),
            WheelZoomTool(),
        )
        self.figure = figure(
            x_range=Range1d(left, right),
            y_range=Range1d(bottom, top),
            sizing_mode="stretch_both",
            min_height=160,
            tools=[*([drawn, box] if lasso else [box, drawn]), PanTool(), wheel, ResetTool()],
            active_drag=drawn if lasso else box,
            active_scroll=wheel,
            toolbar_location="right",
            output_backend="canvas",
            name=name,
        )
        self.figure.toolbar.logo = None
        self.figure.outline_line_color = None
        self._picture = ColumnDataSource(
            {"url": [""], "x": [left], "y": [top], "w": [right - left], "h": [top - bottom]}
        )
        self.figure.image_url(url="url", x="x", y="y", w="w", h="h", anchor="top_left", source=self._picture)
        self.region = ColumnDataSource({"x": [], "y": []})
        self.figure.patch(
            "x",
            "y",
            source=self.region,
            fill_color="#64748b",
            fill_alpha=0.12,
            line_color="#64748b",
            line_dash="dashed",
        )
        self._add_glyphs()
        self.selected = ColumnDataSource({"x": [], "y": []})
        for colour, width in (("#ffffff", 5), ("#111827", 2.5)):
            self.figure.scatter(
                "x", "y", source=self.selected, size=19, fill_color=None, line_color=colour, line_width=width
            )
        self._add_names()
        self.figure.on_event(SelectionGeometry, self._drawn)
        self.figure.on_event(Tap, self._tap)
        self.figure.on_event(Reset, lambda _: self.show_whole())
        self.figure.on_event(RangesUpdate, self._moved)
        self.figure.on_change("inner_width", self._resized)
        self.figure.on_change("inner_height", self._resized)

    def _add_marks(self, columns: tuple[str, ...], tooltips: list[tuple[str, str]], **look: Any) -> Any:
        """The glyph of the marks; `columns` are those of their source besides x, y and colour."""
        self.marks = ColumnDataSource({name: [] for name in ("x", "y", "colour", *columns)})
        points = self.figure.scatter("x", "y", source=self.marks, fill_color="colour", line_color=None, **look)
        points.nonselection_glyph = points.selection_glyph = None
        self.figure.add_tools(HoverTool(renderers=[points], tooltips=tooltips))
        return points.glyph

    # ------------------------------------------------------------------- changes

    def set_dark(self, dark: bool) -> None:
        """Lines and names readable on either theme."""
        self._dark = dark
        self._later()

    def set_region(self, polygon: Polygon) -> None:
        """Draws the region in force."""
        self._region = polygon
        self._later()

    def show_whole(self) -> None:
        """Back to every feature in view."""
        self._target = self.whole
        self._later()

    # ------------------------------------------------------------------- drawing

    def _later(self, milliseconds: int = SOON) -> None:
        """Draws soon, once, however often it is asked meanwhile: after the table, and with the document's lock.

        (Panel calls back without the lock; its own objects know how to wait for it, Bokeh's do not.)
        """
        if not self._shown:
            return
        if self.figure.document is None:
            self._draw()
        elif not self._waiting:
            self._waiting = True
            self.figure.document.add_timeout_callback(self._draw, milliseconds)

    def _draw(self) -> None:
        self._waiting = False
        if self._target is not None:
            left, right, bottom, top = self._target
            self.figure.x_range.update(start=left, end=right)
            self.figure.y_range.update(start=bottom, end=top)
            self._target = None
        self._dress()
        self.region.data = {"x": [x for x, _ in self._region], "y": [y for _, y in self._region]}
        place = self._place()
        self.selected.data = {"x": [place[0]], "y": [place[1]]} if place else {"x": [], "y": []}
        left, right, bottom, top = view = self.view()
        if right > left and top > bottom:
            width, height = (int(min(max(PIXELS * side, 64), 2400)) for side in self.pixels())
            url = png_url(self._image(view, (width, height)))
            self._picture.data = {"x": [left], "y": [top], "w": [right - left], "h": [top - bottom], "url": [url]}
            self._painted = (view, self.pixels())
            self._mark(view)

    def view(self) -> View:
        """What is in view."""
        x, y = self.figure.x_range, self.figure.y_range
        return float(x.start), float(x.end), float(y.start), float(y.end)

    def pixels(self) -> tuple[float, float]:
        """Width and height of the drawing, a usual size until the browser has said."""
        try:
            return float(self.figure.inner_width), float(self.figure.inner_height)
        except UnsetValueError:
            return self._usual

    # ----------------------------------------------------------------- the mouse

    def _moved(self, _: Any = None) -> None:
        """The view changes: drawn anew when the movement rests (which is not needed after a change of our own)."""
        if self._painted != (self.view(), self.pixels()):
            self._later(AT_REST)

    def _resized(self, attr: str, old: Any, new: Any) -> None:
        self._moved()

    def _drawn(self, event: SelectionGeometry) -> None:
        if event.final:
            self._on_region(geometry_polygon(event.geometry))

    def _tap(self, event: Tap) -> None:
        left, right, bottom, top = self.view()
        ids, x, y = self._pickable()
        if event.x is None or not len(ids) or right == left or top == bottom:
            return
        distance = np.hypot((x - event.x) / (right - left), (y - event.y) / (top - bottom))
        distance = np.where(np.isfinite(distance), distance, np.inf)
        nearest = int(np.argmin(distance))
        if distance[nearest] <= NEAR:
            self._on_feature(int(ids[nearest]))

    def __panel__(self) -> pn.viewable.Viewable:
        self._shown = True
        self._draw()
        return pn.pane.Bokeh(self.figure, sizing_mode="stretch_both", margin=0)
