"""The Salience view without a browser: what it shows follows the state and nothing else."""

from __future__ import annotations

import io
from pathlib import Path

import duckdb
import numpy as np
import panel as pn
import polars as pl
import pytest

from core.store.reader import RunReader
from core.store.review import ReviewStore
from core.store.sets import FeatureSet
from dashboard import sets
from dashboard.parts.chips import chips_html
from dashboard.state import AppState, from_query, to_query
from dashboard.views.salience import SalienceView, not_computed_html, slice_options
from tests.dashboard.conftest import assert_harmless
from tests.synthetic_run import write_synthetic_run


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDSCOPE_RUNS", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["panel"])


def view_of(reader: RunReader, **chosen: object) -> tuple[AppState, SalienceView]:
    state = AppState(run=reader.name, view="salience", **chosen)
    view = SalienceView(state, reader)
    pn.Row(view.__panel__()).get_root()
    return state, view


def shown(view: SalienceView) -> str:
    panes = view.__panel__().select(lambda part: isinstance(getattr(part, "object", None), str))
    return " ".join(pane.object for pane in panes if pane.visible)


def marked(view: SalienceView) -> set[int]:
    return set(view._volcano.marks.data["id"])


def test_plot_table_and_counts_are_of_the_same_rows(plain: RunReader) -> None:
    _, view = view_of(plain)
    stored = plain.salience("all", "mean")
    assert marked(view) == set(stored.filter(pl.col("q").is_not_null())["feature_id"])
    assert len(view._table.widget.value) == len(stored)
    significant = int((stored["q"] <= 0.05).sum())
    html = shown(view)
    assert f'<b class="rs-num">{significant:,}</b> significant' in html
    assert f"tested of {len(plain.features):,}" in html
    assert "not tested" in html


def test_slice_pooling_and_length_control_change_all_of_it_in_place(plain: RunReader) -> None:
    state, view = view_of(plain)
    figure, widget = view._volcano.figure, view._table.widget
    for change in ({"slice": "domain=chat"}, {"pooling": "boundary_sum"}, {"length_control": True}, {"volcano": "s"}):
        state.param.update(**change)
        stored = plain.salience(state.slice, state.pooling)
        q = "q_adjusted" if state.length_control else "q"
        assert marked(view) == set(stored.filter(pl.col(q).is_not_null())["feature_id"])
        assert set(view._table.ids) == set(stored["feature_id"])
    assert (view._volcano.figure, view._table.widget) == (figure, widget)
    assert "SAFER" in figure.xaxis[0].axis_label
    assert "at equal length" in figure.yaxis[0].axis_label


def test_a_region_lists_what_was_drawn_and_leaves_with_its_axis(plain: RunReader) -> None:
    state, view = view_of(plain)
    left, right, _, top = view._volcano._cloud.whole  # type: ignore[union-attr]
    view._draw_region(((0.0, 1.31), (right, 1.31), (right, top), (0.0, top)))
    rows = plain.salience("all", "mean").filter(pl.col("effect_size") > 0, pl.col("q") < 10**-1.31)
    assert set(view._table.ids) == set(rows["feature_id"])
    assert "in the region" in view._listed.object
    view._all_listed.value = True
    assert set(view._targets()) == set(rows["feature_id"])
    state.volcano = "effect"
    assert len(view._table.ids) == len(plain.salience("all", "mean"))
    assert not view._clear.visible
    view._draw_region(((left, -1.0), (left, -2.0), (left - 1, -2.0)))
    assert "No feature passes" in view._listed.object


def test_the_selected_feature_is_marked_everywhere_and_its_evidence_shown(plain: RunReader) -> None:
    state, view = view_of(plain)
    state.feature = int(view._table.ids[20])
    assert view._table.widget.selection == [20]
    assert len(view._volcano.selected.data["x"]) == 1
    html = shown(view)
    assert f'aria-label="Salience of feature {state.feature}"' in html
    assert "view=features" in html
    assert "view=pairs" in html
    view.step(1)
    assert state.feature == int(view._table.ids[21])
    assert f"acts on feature {state.feature}" in shown(view)


def test_an_untested_feature_says_why(plain: RunReader) -> None:
    untested = int(plain.salience("all", "mean").filter(pl.col("q").is_null())["feature_id"][0])
    _, view = view_of(plain, feature=untested)
    assert "Not tested: active in" in shown(view)
    assert len(view._volcano.selected.data["x"]) == 0


def test_keys_change_the_open_set_and_rings_and_table_follow(plain: RunReader) -> None:
    state, view = view_of(plain)
    state.feature = next(int(f) for f in view._table.ids if view._signs[view._rows.place(int(f))] == 0)  # type: ignore[union-attr]
    before = len(view._volcano.chosen.data["x"])
    view.mark(1)
    assert sets.is_unsaved(state)
    assert "unsaved changes" in shown(view)
    assert view._table.widget.value["member"][view._table.position(state.feature)] == "S+"
    assert len(view._volcano.chosen.data["x"]) == before + 1
    view.mark(0)
    assert len(view._volcano.chosen.data["x"]) == before


def test_nothing_is_lost_or_computed_while_another_view_is_on_show(plain: RunReader) -> None:
    state, view = view_of(plain, feature=1)
    view.mark(-1)
    state.view = "features"
    ids = view._table.ids
    state.param.update(slice="domain=chat", feature=4)
    assert view._table.ids is ids, "it waits"
    state.view = "salience"
    assert set(view._table.ids) == set(plain.salience("domain=chat", "mean")["feature_id"])
    assert sets.open_set(state, plain, ReviewStore(Path("none"))).sign(1) == -1


def test_sets_stored_meanwhile_can_be_opened_on_return(plain: RunReader) -> None:
    state, view = view_of(plain)
    state.view = "pairs"
    sets.review_store().save_set(FeatureSet("from elsewhere", (1,), (), sets.sae_of(plain)))
    state.view = "salience"
    assert "from elsewhere" in view._editor._open.options.values()
    state.set_name = "from elsewhere"
    assert view._signs.sum() == 1


def test_the_download_follows_filters_and_the_sign_changes(plain: RunReader) -> None:
    _, view = view_of(plain)
    view._significant.value = True
    view._sort("s", True)
    back = pl.read_csv(io.StringIO(view._csv().read().decode()))
    assert back["feature_id"].to_list() == view._table.ids.tolist()
    assert back["s"].is_sorted(descending=True)
    view._what.value = "changes"
    assert view._changes.widget.visible
    assert not view._table.widget.visible
    changes = pl.read_csv(io.StringIO(view._csv().read().decode()))
    assert changes["feature_id"].to_list() == plain.sign_changes("mean")["feature_id"].to_list()
    view.step(1)
    assert view._state.feature == changes["feature_id"][0]


def test_a_run_without_salience_says_so_and_what_to_do(tmp_path: Path) -> None:
    folder = write_synthetic_run(tmp_path / "old", features=30, pairs=10)
    with duckdb.connect(str(folder / "run-synthetic.duckdb")) as db:
        db.execute("DELETE FROM salience")
    with RunReader.open(folder) as reader:
        _, view = view_of(reader, feature=3)
        html = shown(view)
        assert "Salience was not computed for this run" in html
        assert "rewardscope build" in html
        assert "stores no salience" in html
        assert not view._plot.visible
        view.mark(1)  # there is no set to change
        view.step(1)


def test_a_slice_or_pooling_the_run_has_not(plain: RunReader) -> None:
    _, view = view_of(plain, slice="domain=<b>nothing")
    html = shown(view)
    assert "no such slice" in html
    assert_harmless(html)
    assert "the pooling “max”" in not_computed_html("max", ["mean"])


def test_hostile_text_stays_text(hostile: RunReader) -> None:
    name = next(name for name in hostile.slices("mean")["slice"] if name.startswith("domain="))
    feature = int(hostile.sign_changes("mean")["feature_id"][0])
    state, view = view_of(hostile, slice=name, feature=feature)
    assert "&lt;img" in shown(view)
    assert_harmless(shown(view))
    assert_harmless(chips_html(state, hostile))
    assert name in slice_options(hostile.slices("mean"), name).values()


def test_the_link_holds_slice_pooling_length_axis_and_set(plain: RunReader) -> None:
    chosen = {
        "slice": "domain=a=b", "pooling": "last", "length_control": True, "volcano": "s", "set_name": "mine@2",
    }  # fmt: skip
    state = AppState(run="plain", view="salience", **chosen)
    values, problems = from_query(to_query(state))
    assert not problems
    assert {name: values[name] for name in chosen} == chosen
    html = chips_html(state, plain)
    for words in ("slice domain: a=b", "pooling last", "at equal length", "set mine@2"):
        assert words in html


def test_more_features_than_marks_keep_the_strongest(plain: RunReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.parts.volcano.MOST_MARKS", 10)
    _, view = view_of(plain)
    q = dict(plain.salience("all", "mean").select("feature_id", "q").drop_nulls().iter_rows())
    assert len(marked(view)) == 10
    assert max(min(q[f], 1) for f in marked(view)) <= np.sort(list(q.values()))[10]
    assert "10 strongest in view" in view._caption.object
