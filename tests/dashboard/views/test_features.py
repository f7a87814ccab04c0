"""The Features view without a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.store.reader import RunReader
from core.store.review import ReviewStore
from dashboard.parts.feature_table import COLUMNS, detection_text, rows_frame, sign_colours
from dashboard.state import AppState
from dashboard.views.features import FeaturesView


@pytest.fixture
def state() -> AppState:
    return AppState(run="plain")


@pytest.fixture
def view(state: AppState, plain: RunReader) -> FeaturesView:
    view = FeaturesView(state, plain)
    view.__panel__().get_root()
    return view


def shown(view: FeaturesView) -> list[int]:
    return view._rows.widget.value["feature_id"].tolist()


def test_it_opens_with_every_live_feature_the_most_contributing_first(view: FeaturesView, plain: RunReader) -> None:
    frame = plain.features.frame.filter(plain.features.frame["alive"])
    assert len(shown(view)) == len(frame)
    sizes = [abs(value) for value in view._rows.widget.value["mean_contribution"]]
    assert sizes == sorted(sizes, reverse=True)


def test_each_filter_narrows_the_table_the_map_and_the_count(
    view: FeaturesView, state: AppState, plain: RunReader
) -> None:
    state.sign = "raises"
    assert all(plain.features.column("weight")[feature] > 0 for feature in shown(view))
    state.set_range("density", 0.01, None)
    ids = shown(view)
    assert ids == plain.feature_ids(state.feature_filter, state.sort, state.descending).tolist()
    assert view._map._listed.sum() == len(ids)
    assert f"{len(ids)}</b> of 150" in view._count.object


def test_no_match_says_so_with_a_way_out(view: FeaturesView, state: AppState) -> None:
    state.search = "there is no such word"
    assert shown(view) == []
    assert "No feature passes" in view._count.object
    assert "Clear them all" in view._count.object


def test_sorting_by_a_heading_changes_the_state_and_the_rows(view: FeaturesView, state: AppState) -> None:
    view._rows.widget.sorters = [{"field": "density", "dir": "desc"}]
    assert (state.sort, state.descending) == ("density", True)
    values = view._rows.widget.value["density"].tolist()
    assert values == sorted(values, reverse=True)
    view._rows.widget.sorters = [{"field": "detection", "dir": "asc"}]
    assert state.sort == "detection_score"


def test_the_selection_survives_sorting_and_is_marked_on_its_page(view: FeaturesView, state: AppState) -> None:
    state.feature = shown(view)[70]
    assert view._rows.widget.page == 70 // view._rows.page_size + 1
    state.param.update(sort="feature_id", descending=False)
    at = view._rows.widget.selection[0]
    assert shown(view)[at] == state.feature
    assert view._rows.widget.page == at // view._rows.page_size + 1


def test_the_selected_row_stays_in_view_when_other_rows_fit(view: FeaturesView, state: AppState) -> None:
    state.feature = shown(view)[70]
    view._rows.widget.page_size = 13
    assert view._rows.widget.page == 70 // 13 + 1


def test_stepping_follows_the_list_and_stops_at_its_ends(view: FeaturesView, state: AppState) -> None:
    view.step(+1)
    ids = shown(view)
    assert state.feature == ids[0]
    view.step(-1)
    assert state.feature == ids[0]
    view.step(+1)
    assert state.feature == ids[1]
    state.feature = ids[-1]
    view.step(+1)
    assert state.feature == ids[-1]


def test_the_card_follows_the_selection(view: FeaturesView, state: AppState) -> None:
    assert "No feature selected" in view._card.object
    state.feature = 12
    assert 'aria-label="Feature 12"' in view._card.object
    brief = len(view._card.object)
    view._full.value = True
    assert len(view._card.object) > brief
    state.feature = None
    assert "No feature selected" in view._card.object


def test_the_theme_changes_the_cells_and_keeps_the_selection(view: FeaturesView, state: AppState) -> None:
    state.feature = shown(view)[3]
    light = view._rows.widget.value["weight_colour"].tolist()
    state.dark = True
    assert view._rows.widget.value["weight_colour"].tolist() != light
    assert view._rows.widget.selection == [3]


def test_a_region_of_the_map_selects_rows_and_is_drawn(view: FeaturesView, state: AppState, plain: RunReader) -> None:
    state.lasso = ((-100.0, -100.0), (0.0, -100.0), (0.0, 100.0), (-100.0, 100.0))
    x = plain.features.column("x")
    assert sorted(shown(view)) == np.flatnonzero(x <= 0).tolist()
    assert len(view._map.region.data["x"]) == 4


def test_widgets_follow_the_state(view: FeaturesView, state: AppState) -> None:
    state.param.update(search="garden", cluster=2, sign="lowers")
    assert (view._search.value, view._cluster.value, view._sign.value) == ("garden", 2, "lowers")
    state.clear_feature_filters()
    assert (view._search.value, view._sign.value) == ("", "any")


def test_rows_hold_every_column_and_missing_is_not_zero(plain: RunReader) -> None:
    frame = rows_frame(plain.features, plain.features.ids)
    assert list(frame.columns)[: len(COLUMNS)] == list(COLUMNS)
    rare = plain.features.frame["length_corr"].is_null().to_numpy()
    assert np.isnan(frame["length_corr"].to_numpy()[rare]).all()
    assert frame["detection"][5] == "n/a"
    assert frame["label"][7] == "no label"


def test_cells_say_sign_by_colour_and_missing_by_word() -> None:
    for dark in (False, True):
        colours = sign_colours(np.array([1.0, -1.0, 0.0, np.nan]), dark)
        assert len(set(colours)) == 3
        assert colours[2] == colours[3]
    assert detection_text(0.6, None, None) == "0.60"
    assert detection_text(0.6, 0.5, 0.7) == "0.60 (0.50–0.70)"
    assert detection_text(None, None, None) == "n/a"


def test_the_card_shows_labels_from_the_review_store_and_says_when_it_cannot_be_read(
    state: AppState, plain: RunReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ReviewStore(tmp_path)
    monkeypatch.setattr("dashboard.views.features.review_store", lambda: store)
    row = {"sae": plain.manifest.sae["sha256"], "run_id": "r", "feature_id": 12, "source": "some-model"}
    store.save_labels([{**row, "text": "kind words", "safety_rating": 2}])
    state.feature = 12
    view = FeaturesView(state, plain)
    assert "“kind words”" in view._card.object
    assert "safety 2 of 5" in view._card.object
    store.path.write_bytes(b"no database at all" * 100)
    store.path.with_name("review.sqlite-wal").unlink(missing_ok=True)
    state.feature = 13
    assert "cannot be read" in view._card.object
    assert "<h2>" in view._card.object  # the run's own labels are still there
