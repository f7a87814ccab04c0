"""The 2-D map of features: a picture of all, crisp marks for at most 2,000 in view, lasso, cluster names, the selected one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from bokeh.models import ColumnDataSource

from core.store.feature_queries import FeatureTable
from dashboard.escape import shorten, signed
from dashboard.parts.cloud_figure import PIXELS, CloudFigure, Polygon, View
from dashboard.parts.map_image import cluster_colours, draw, hex_colours, weight_colours

MOST_MARKS = 2_000
CLOSE_UP = 0.35
"""Share of the map shown around a feature that is opened from the whole map."""


def uncrowded(
    x: np.ndarray,
    y: np.ndarray,
    widths: np.ndarray,
    view: View,
    pixels: tuple[float, float],
) -> list[int]:
    """Which names to draw, first come first served, so that none covers another.

    Args:
        x, y: float64 [n] places; widths: float64 [n] widths in pixels.
        view: left, right, bottom, top; pixels: width and height of the drawing.
    """
    left, right, bottom, top = view
    px, py = (x - left) / (right - left) * pixels[0], (y - bottom) / (top - bottom) * pixels[1]
    kept: list[int] = []
    for i in range(len(x)):
        inside = 0 <= px[i] <= pixels[0] and 0 <= py[i] <= pixels[1]
        if inside and all(
            abs(px[i] - px[j]) > (widths[i] + widths[j]) / 2 + 4 or abs(py[i] - py[j]) > 20 for j in kept
        ):
            kept.append(i)
    return kept


class FeatureMap(CloudFigure):
    """Features where the run's projection has put them."""

    def __init__(
        self,
        table: FeatureTable,
        clusters: pl.DataFrame,
        on_feature: Callable[[int], None],
        on_region: Callable[[Polygon], None],
        **params: Any,
    ) -> None:
        self._table, self._clusters = table, clusters
        self._x, self._y = table.column("x"), table.column("y")
        self._strength = np.abs(np.nan_to_num(table.column("weight")))
        self._listed = np.ones(len(table), dtype=bool)
        self._colours = weight_colours(table.column("weight"))
        self._row: int | None = None
        whole, usual = self._bounds(), (440.0, 260.0)
        super().__init__(on_feature, on_region, name="feature-map", view=whole, lasso=True, usual=usual, **params)

    @property
    def empty(self) -> bool:
        """Whether no feature has a place."""
        return not np.isfinite(self._x).any()

    def _bounds(self) -> View:
        if self.empty:
            return 0.0, 1.0, 0.0, 1.0
        ends = []
        for values in (self._x, self._y):
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            pad = 0.04 * (high - low) or 1.0
            ends += [low - pad, high + pad]
        return ends[0], ends[1], ends[2], ends[3]

    def _add_glyphs(self) -> None:
        self.figure.axis.visible = False
        self.figure.grid.visible = False
        self.figure.min_border = 2
        tooltips = [("#@id", "@label"), ("w", "@weight")]
        self._mark_glyph = self._add_marks(("id", "label", "weight"), tooltips, size=5)

    def _add_names(self) -> None:
        self._names = ColumnDataSource({"x": [], "y": [], "name": []})
        self._name_glyph = self.figure.text(
            "x", "y", "name", source=self._names, text_align="center", text_baseline="middle", background_fill_alpha=0.78, text_font_size="12px",
            text_font={"value": "Roboto, sans-serif"}, text_font_style="bold", padding=2, border_radius=3,
        ).glyph  # fmt: skip

    # ------------------------------------------------------------------ changes

    def set_colour(self, by: str) -> None:
        """Colours by 'weight' or 'cluster'."""
        column = self._table.column(by)
        self._colours = weight_colours(column) if by == "weight" else cluster_colours(column)
        self._later()

    def set_listed(self, listed: np.ndarray) -> None:
        """Makes the features of the table (bool [n]) stand out."""
        self._listed = listed
        self._later()

    def set_feature(self, feature: int | None) -> None:
        """Marks and centres a feature; from the whole map it also comes closer."""
        self._row = None
        if feature is not None and feature in self._table:
            self._row = int(self._table.rows_of(np.array([feature]))[0])
        place = self._place()
        if place:
            self._target = self._around(*place)
        self._later()

    def _around(self, x: float, y: float) -> View:
        """The view that has a place in its middle, at the zoom of the present one."""
        left, right, bottom, top = self.whole
        now = self._target or self.view()
        width, height = min(now[1] - now[0], right - left), min(now[3] - now[2], top - bottom)
        if width > 0.9 * (right - left):
            width, height = CLOSE_UP * (right - left), CLOSE_UP * (top - bottom)
        return x - width / 2, x + width / 2, y - height / 2, y + height / 2

    # ---------------------------------------------------------- what is where

    def _pickable(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._table.ids[self._listed], self._x[self._listed], self._y[self._listed]

    def _place(self) -> tuple[float, float] | None:
        if self._row is None or not np.isfinite(self._x[self._row]):
            return None
        return float(self._x[self._row]), float(self._y[self._row])

    def _dress(self) -> None:
        self._name_glyph.update(
            text_color="#e6eaf0" if self._dark else "#1b2230",
            background_fill_color="#191e26" if self._dark else "#ffffff",
        )

    def _image(self, view: View, size: tuple[int, int]) -> np.ndarray:
        return draw(self._x, self._y, self._colours, self._listed, view, size, self._radius())

    def _radius(self) -> int:
        """Of a dot in picture pixels: smaller where there are many."""
        left, right, _, _ = self.view()
        crowd = np.isfinite(self._x).sum() * ((right - left) / (self.whole[1] - self.whole[0])) ** 2
        sizes = ((150, 6), (600, 5), (2_500, 4), (12_000, 3))
        return next((radius for most, radius in sizes if crowd <= most), 2)

    def _mark(self, view: View) -> None:
        """Marks for the strongest listed features in view, what the mouse finds; names where there is room."""
        self._mark_glyph.size = 2 * self._radius() / PIXELS
        left, right, bottom, top = view
        inside = self._listed & (self._x >= left) & (self._x <= right) & (self._y >= bottom) & (self._y <= top)
        rows = np.flatnonzero(inside)
        if len(rows) > MOST_MARKS:
            rows = rows[np.argpartition(-self._strength[rows], MOST_MARKS)[:MOST_MARKS]]
        rows = rows[np.argsort(self._strength[rows], kind="stable")]  # the strongest on top
        frame = self._table.frame[rows]
        self.marks.data = {
            "x": self._x[rows].astype(np.float32),
            "y": self._y[rows].astype(np.float32),
            "colour": hex_colours(self._colours[rows]),
            "id": frame["feature_id"].to_list(),
            "label": [shorten(label or "no label", 70) for label in frame["label"]],
            "weight": [signed(weight) for weight in frame["weight"]],
        }
        names = [shorten(name, 30) for name in self._clusters["name"]]
        x, y = (self._clusters[axis].cast(pl.Float64).to_numpy() for axis in ("x", "y"))
        widths = np.array([6.6 * len(name) + 6 for name in names])
        kept = uncrowded(x, y, widths, view, self.pixels())
        self._names.data = {"x": x[kept], "y": y[kept], "name": [names[i] for i in kept]}
