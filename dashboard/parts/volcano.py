"""The volcano plot: effect against -log10 q. A picture of every tested feature, crisp marks for the strongest in view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, Span

from core.store.feature_queries import inside_polygon
from dashboard.escape import plain, shorten
from dashboard.parts.cloud_figure import PIXELS, CloudFigure, Polygon, View
from dashboard.parts.map_image import draw, hex_colours, rgb
from dashboard.parts.salience_rows import AXES, LEVEL, Rows
from dashboard.theme import LOWERS, NEUTRAL, RAISES

MOST_MARKS = 1_000
HIGHEST = 16.0
"""-log10 q at which the axis ends: anything smaller than q = 1e-16 is drawn on the upper edge, as triangles."""
NAMES = {"effect": "effect, activation units", "size": "effect size", "s": "SAFER’s s"}


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


class Volcano(CloudFigure):
    """The features of one slice by effect and -log10 q."""

    def __init__(self, on_feature: Callable[[int], None], on_region: Callable[[Polygon], None], **params: Any) -> None:
        self._rows: Rows | None = None
        self._cloud: Cloud | None = None
        self._axis = "effect_size"
        self._feature: int | None = None
        self._signs = np.empty(0, dtype=np.int64)
        whole, usual = (-1.0, 1.0, 0.0, 2.0), (560.0, 300.0)
        super().__init__(on_feature, on_region, name="volcano", view=whole, lasso=False, usual=usual, **params)

    def _add_glyphs(self) -> None:
        self.figure.background_fill_alpha = self.figure.border_fill_alpha = 0  # the page's surface shows through
        self.figure.min_border = 4
        self.figure.yaxis.axis_label = "−log10 q"
        self.figure.axis.axis_label_text_font_style = "normal"
        self.figure.axis.axis_label_text_font_size = "12px"
        self.figure.axis.major_label_text_font_size = "12px"
        self.figure.axis.minor_tick_line_color = None
        self.figure.axis.axis_line_color = None
        self._lines = [
            Span(location=float(-np.log10(LEVEL)), dimension="width", line_dash="dashed", line_width=1),
            Span(location=0.0, dimension="height", line_width=1),
        ]
        for line in self._lines:
            self.figure.add_layout(line)
        tooltips = [("#@id", "@label"), ("", "@says"), ("q", "@q")]
        columns = ("marker", "size", "id", "label", "says", "q")
        self._add_marks(columns, tooltips, size="size", marker="marker")
        self.chosen = ColumnDataSource({"x": [], "y": [], "marker": []})
        self._ring = self.figure.scatter(
            "x", "y", source=self.chosen, marker="marker", size=10, fill_color=None, line_width=1.5
        ).glyph

    def _add_names(self) -> None:
        self._names = ColumnDataSource({"x": [], "y": [], "name": [], "align": [], "shift": []})
        self._name_glyph = self.figure.text(
            "x", "y", "name", source=self._names, text_align="align", x_offset="shift", y_offset=-2, text_font_size="12px",
            text_font={"value": "Roboto, sans-serif"},
        ).glyph  # fmt: skip

    # ------------------------------------------------------------------ changes

    def show(self, rows: Rows, axis: str, signs: np.ndarray) -> None:
        """Draws these features whole; `signs` int64 [n] says which are in S+ (1) and S- (-1)."""
        self._rows, self._axis, self._signs = rows, axis, signs
        self._cloud = cloud_of(rows, axis)
        self.whole = self._cloud.whole
        self._region = ()
        self.show_whole()

    def set_members(self, signs: np.ndarray) -> None:
        """Rings around the open set's features."""
        self._signs = signs
        self._later()

    def set_feature(self, feature: int | None) -> None:
        """Marks a feature; out of view, the whole plot is shown again."""
        self._feature = feature
        place = self._place()
        left, right, bottom, top = self.view()
        if place and not (left <= place[0] <= right and bottom <= place[1] <= top):
            self._target = self.whole
        self._later()

    def inside(self, polygon: Polygon) -> np.ndarray:
        """bool [n]: the features drawn in a region."""
        assert self._cloud is not None
        return inside_polygon(self._cloud.x, self._cloud.y, np.asarray(polygon, dtype=np.float64))

    def caption(self) -> str:
        """What the plot as it is leaves to say."""
        return caption(self._rows, self._cloud, self._axis) if self._rows and self._cloud else ""

    # ---------------------------------------------------------- what is where

    def _draw(self) -> None:
        if self._cloud is not None:
            super()._draw()

    def _pickable(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._cloud is None or self._rows is None:
            return np.empty(0, np.int64), np.empty(0), np.empty(0)
        return self._rows.ids, self._cloud.x, self._cloud.y

    def _place(self) -> tuple[float, float] | None:
        at = self._rows.place(self._feature) if self._rows is not None else None
        if at is None or self._cloud is None or not np.isfinite(self._cloud.y[at]):
            return None
        return float(self._cloud.x[at]), float(self._cloud.y[at])

    def _dress(self) -> None:
        text, line = ("#e6eaf0", "#566070") if self._dark else ("#1b2230", "#9aa4b2")
        for span in self._lines:
            span.line_color = line
        self._name_glyph.text_color = text
        self._ring.line_color = text
        self.figure.xaxis.axis_label = f"← more in rejected      {NAMES[AXES[self._axis]]}      more in chosen →"
        self.figure.yaxis.axis_label = (
            "−log10 q at equal length" if self._rows and self._rows.length_control else "−log10 q"
        )

    def _image(self, view: View, size: tuple[int, int]) -> np.ndarray:
        cloud = self._cloud
        assert cloud is not None
        order = np.argsort(cloud.strong, kind="stable")  # what is significant lies on top
        order = order[~cloud.capped[order]]  # which have marks of another shape
        every = np.ones(len(order), dtype=bool)
        return draw(cloud.x[order], cloud.y[order], cloud.colours[order], every, view, size, self._radius())

    def _radius(self) -> int:
        """Of a dot in picture pixels: smaller where there are many."""
        drawn = 0 if self._cloud is None else int(np.isfinite(self._cloud.y).sum())
        return next((radius for most, radius in ((150, 7), (1_500, 6), (12_000, 5)) if drawn <= most), 3)

    def _mark(self, view: View) -> None:
        """Marks for the strongest in view, what the mouse finds; rings around the open set's; the name of the line."""
        assert self._rows is not None
        assert self._cloud is not None
        cloud, (left, right, bottom, top) = self._cloud, view
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
        level = float(-np.log10(LEVEL))
        shown = bottom <= level <= top
        self._names.data = {
            "x": [right] * shown,
            "y": [level] * shown,
            "name": [f"q = {LEVEL:g}"] * shown,
            "align": ["right"] * shown,
            "shift": [-4] * shown,
        }
