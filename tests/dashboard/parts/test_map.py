"""The feature map: its picture, its regions, its names."""

from __future__ import annotations

import base64
import io
import time

import numpy as np
import pytest
from bokeh.events import SelectionGeometry, Tap
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core.store.reader import RunReader
from dashboard.parts.cloud_figure import REGION_POINTS, geometry_polygon, simplified
from dashboard.parts.feature_map import MOST_MARKS, FeatureMap, uncrowded
from dashboard.parts.map_image import cluster_colours, draw, hex_colours, png_url, weight_colours


def make(reader: RunReader) -> tuple[FeatureMap, list[int], list[object]]:
    picked: list[int] = []
    regions: list[object] = []
    view = FeatureMap(reader.features, reader.clusters, picked.append, regions.append)
    view.__panel__()
    return view, picked, regions


def test_dots_stand_where_the_features_are() -> None:
    x, y = np.array([0.0, 1.0, np.nan, 5.0]), np.array([0.0, 1.0, 0.5, 0.5])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], dtype=np.uint8)
    image = draw(x, y, colours, np.array([True, False, True, True]), (-0.5, 1.5, -0.5, 1.5), (81, 81), 2)
    assert image[60, 20, :3].tolist() == [255, 0, 0]  # (0, 0): lower left
    assert image[20, 60, :3].tolist() == [0, 255, 0]  # (1, 1): upper right
    assert image[60, 20, 3] > image[20, 60, 3] > 0  # listed ones stand out
    assert {tuple(pixel) for pixel in image[image[..., 3] > 0][:, :3]} == {(255, 0, 0), (0, 255, 0)}


def test_blue_raises_vermillion_lowers_and_no_weight_is_grey() -> None:
    colours = hex_colours(weight_colours(np.array([1.0, -1.0, 0.0, np.nan])))
    assert colours == ["#0072b2", "#d55e00", "#8a94a3", "#8a94a3"]


def test_clusters_differ_and_none_is_grey() -> None:
    colours = hex_colours(cluster_colours(np.array([0.0, 1.0, -1.0, np.nan])))
    assert len(set(colours[:2])) == 2
    assert colours[2] == colours[3] == "#8a94a3"


def test_the_picture_is_a_small_png_with_the_same_dots() -> None:
    rng = np.random.default_rng(0)
    n = 65_536
    begin = time.perf_counter()
    image = draw(
        rng.normal(size=n),
        rng.normal(size=n),
        weight_colours(rng.normal(size=n)),
        rng.random(n) < 0.5,
        (-4, 4, -4, 4),
        (960, 720),
        2,
    )
    url = png_url(image)
    assert time.perf_counter() - begin < 2.0
    assert len(url) < 700_000
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))
    assert decoded.shape == image.shape
    assert ((decoded[..., 3] > 0) == (image[..., 3] > 0)).mean() > 0.999


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=3, max_size=900))
def test_a_lasso_is_short_enough_for_a_link(points: list[tuple[float, float]]) -> None:
    xs, ys = ([point[axis] for point in points] for axis in (0, 1))
    polygon = simplified(list(xs), list(ys))
    assert 3 <= len(polygon) <= REGION_POINTS
    assert polygon[0] == pytest.approx(points[0], rel=1e-3, abs=1e-300)


def test_boxes_and_empty_gestures() -> None:
    assert len(geometry_polygon({"type": "rect", "x0": 0, "x1": 1, "y0": 0, "y1": 2})) == 4
    assert geometry_polygon({"type": "rect", "x0": 1, "x1": 1, "y0": 0, "y1": 2}) == ()
    assert geometry_polygon({"type": "poly", "x": [0, 1], "y": [0, 1]}) == ()


def test_names_never_cover_each_other() -> None:
    x, y = np.array([0.5, 0.51, 0.5, 0.9]), np.array([0.5, 0.5, 0.9, 5.0])
    assert uncrowded(x, y, np.full(4, 60.0), (0, 1, 0, 1), (400, 300)) == [0, 2]


def test_selecting_centres_and_marks(plain: RunReader) -> None:
    view, _, _ = make(plain)
    row = plain.features.frame.row(12, named=True)
    view.set_feature(12)
    left, right, bottom, top = view.view()
    assert (left + right) / 2 == pytest.approx(row["x"], abs=1e-6)
    assert (bottom + top) / 2 == pytest.approx(row["y"], abs=1e-6)
    assert list(view.selected.data["x"]) == [pytest.approx(row["x"])]
    span = right - left
    view.set_feature(13)
    assert view.view()[1] - view.view()[0] == pytest.approx(span)  # the zoom stays
    view.set_feature(9)  # dead: it has no place
    assert list(view.selected.data["x"]) == []
    view.show_whole()
    assert view.view() == view.whole


def test_marks_are_the_listed_features_in_view(plain: RunReader) -> None:
    view, _, _ = make(plain)
    listed = plain.features.column("weight") > 0
    view.set_listed(listed)
    placed = np.isfinite(plain.features.column("x"))
    assert sorted(view.marks.data["id"]) == plain.features.ids[listed & placed].tolist()
    assert len(view.marks.data["id"]) <= MOST_MARKS


def test_a_click_opens_the_nearest_listed_feature_and_a_far_one_nothing(plain: RunReader) -> None:
    view, picked, _ = make(plain)
    row = plain.features.frame.row(12, named=True)
    view._tap(Tap(view.figure, x=row["x"] + 1e-3, y=row["y"]))
    assert picked == [12]
    view._tap(Tap(view.figure, x=1e6, y=1e6))
    assert picked == [12]


def test_a_drawn_region_is_passed_on_when_it_is_finished(plain: RunReader) -> None:
    view, _, regions = make(plain)
    geometry = {"type": "rect", "x0": 0.0, "x1": 1.0, "y0": 0.0, "y1": 1.0}
    view._drawn(SelectionGeometry(view.figure, geometry=geometry, final=False))
    assert regions == []
    view._drawn(SelectionGeometry(view.figure, geometry=geometry, final=True))
    assert regions == [((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))]
