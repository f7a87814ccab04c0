"""The Pairs view without a browser: what the state makes of list and panel, and the other way round."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import duckdb
import numpy as np
import polars as pl
import pytest

from core.store import pair_queries
from core.store.pair_queries import PairFilter
from core.store.reader import RunReader
from dashboard.parts.open_pair import open_pair
from dashboard.parts.pair_list import PAGE_SIZE, facet_options
from dashboard.state import AppState
from dashboard.views.pairs import PairsView
from tests.dashboard.parts.test_tokens import Reader
from tests.synthetic_run import write_synthetic_run


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> RunReader:
    return RunReader.open(write_synthetic_run(tmp_path_factory.mktemp("runs") / "plain"))


@pytest.fixture
def state() -> AppState:
    return AppState(view="pairs")


@pytest.fixture
def view(state: AppState, reader: RunReader) -> PairsView:
    return PairsView(state, reader)


def strips(view: PairsView) -> dict[str, Reader]:
    return {side: Reader(pane.strip.content) for side, pane in view._panel._panes.items()}


def shaded(reader: Reader) -> set[str]:
    return {token["title"] or "" for token in reader.tokens() if token.get("style")}


def test_the_first_pair_opens_by_itself(view, state):
    assert state.pair == "pair-000"
    assert "pair-000" in view._panel._title.object
    assert view._panel._body.visible
    view.__panel__().get_root()


def test_waiting_for_the_view_to_be_looked_at(reader):
    state = AppState(view="features")
    PairsView(state, reader)
    assert state.pair is None
    state.view = "pairs"
    assert state.pair == "pair-000"


def test_a_pair_of_the_link_is_kept(reader):
    state = AppState(view="pairs", pair="pair-041")
    view = PairsView(state, reader)
    assert state.pair == "pair-041"
    assert view._list._table.selection == [41]
    assert view._list._table.page == 41 // PAGE_SIZE + 1


def test_filters_shrink_the_list_and_say_so(view, state):
    state.domain = "chat"
    assert view._list.listed.count == 15
    assert set(view._list._table.value["domain"]) == {"chat"}
    assert "15</b> of 60 pairs" in view._list._summary.object
    assert view._list._margin.columns[0]["listed"] != view._list._margin.columns[0]["all"]
    state.clear_pair_filters()
    assert view._list.listed.count == 60


def test_the_accuracy_is_that_of_the_listed_pairs(view, state, reader):
    state.domain = "privacy"
    with reader.cursor() as cursor:
        margins = pair_queries.margins(cursor, PairFilter(domain="privacy"))["margin"]
    share = 100 * (margins > 0).sum() / len(margins)
    assert f"model right in <b>{share:.1f} %" in view._list._summary.object
    state.verdict = "wrong"  # the filter says it already
    assert "model right in" not in view._list._summary.object


def test_nothing_found_is_a_state_of_its_own(view, state):
    state.pair_search = "no such words"
    assert view._list._empty.visible
    assert not view._list._table.visible
    assert "No pair matches" in view._list._empty.object
    assert state.pair == "pair-000"  # what is open stays open
    assert "not among" in view._where.object


def test_steps_follow_the_order_of_the_list(view, state):
    state.pair_sort = "-margin"
    view.step(1)
    margins = view._list._table.value["margin"].tolist()
    assert margins[0] == max(margin for margin in margins if margin is not None)
    first = view._list.listed.at(0)
    state.pair = first
    view.step(-1)
    assert state.pair == first
    view.step(1)
    assert state.pair == view._list.listed.at(1)
    state.pair_search = "no such words"
    view.step(1)
    assert state.pair is not None


def test_a_click_on_a_row_opens_its_pair(view, state):
    state.domain = "howto"
    view._list.listed._clicked(SimpleNamespace(row=2))
    assert state.pair == view._list.listed.at(2) == "pair-011"


def test_tokens_by_total_sum_to_the_reward(view, state, reader):
    pair = open_pair(reader, "pair-000")
    assert pair is not None
    for side in ("chosen", "rejected"):
        values = view._panel._token_values(side, None)
        assert values.sum() == pytest.approx(pair.answers[side][0].row["reward"], abs=1e-6)
    assert view._panel._mode.value == "total"
    assert "".join(pair.answers["chosen"][0].pieces[:-1]) == pair.answers["chosen"][0].row["text"]


def test_a_bar_colours_the_tokens_by_its_feature_and_again_by_all(view, state):
    feature = view._panel._listed[0]
    view._panel._waterfall._handle_msg({"feature": feature})
    assert (state.feature, state.tokens) == (feature, "feature")
    assert view._panel._waterfall.selected == feature
    for side, strip in strips(view).items():
        active = {place for place, value in enumerate(view._panel._token_values(side, feature)) if value > 0}
        assert {int(title.rsplit(" ", 1)[1]) for title in shaded(strip)} == active
    assert f"Feature {feature}" in view._panel._feature.object
    assert f"f={feature}" in view._panel._feature.object
    view._panel._waterfall._handle_msg({"feature": feature})
    assert state.tokens == "total"
    assert view._panel._waterfall.selected is None


def test_the_scale_can_be_the_whole_runs(view, state, reader):
    feature = view._panel._listed[0]
    state.param.update(feature=feature, tokens="feature")
    assert "largest of both answers" in view._panel._legend.object
    view._panel._basis.value = "run"
    assert "largest of the whole run" in view._panel._legend.object
    assert view._panel._basis.visible


def test_colouring_by_a_feature_without_one_takes_the_largest(view, state):
    view._panel._mode.value = "feature"
    assert state.feature == view._panel._listed[0]


def test_the_waterfall_is_the_pairs(view, state, reader):
    content = view._panel._waterfall.content
    with reader.cursor() as cursor:
        pair = pair_queries.pair_row(cursor, "pair-000").row(0, named=True)
    ends = [cell["end"] for cell in content["rows"][-1]["cells"]]
    assert ends[2] == pytest.approx(pair["chosen_reward"] - pair["rejected_reward"], abs=1e-6)
    assert content["state"] == "ok"


def test_a_picked_token_shows_its_features_and_closes_again(view, state):
    pick = view._panel._panes["chosen"].strip._handle_msg
    pick({"token": 3})
    assert view._panel._token_box.visible
    content = view._panel._token_parts.content
    assert content["rows"][-1]["cells"][0]["end"] == pytest.approx(view._panel._token_values("chosen", None)[3])
    assert view._panel._panes["chosen"].strip.picked == 3
    assert view._panel._panes["rejected"].strip.picked is None
    pick({"token": 3})
    assert not view._panel._token_box.visible
    for nonsense in ({"token": 10_000}, {"token": -1}, {"token": "1"}, None):
        pick(nonsense)
        assert not view._panel._token_box.visible
    pick({"token": 3})
    view.step(1)
    assert not view._panel._token_box.visible


def test_rejected_answers_of_safety_domains_are_blurred_until_revealed(view, state):
    assert view._panel._panes["rejected"].strip.blurred  # privacy
    assert not view._panel._panes["chosen"].strip.blurred
    state.reveal = True
    assert not view._panel._panes["rejected"].strip.blurred
    state.reveal = False
    state.pair = "pair-002"  # chat
    assert not view._panel._panes["rejected"].strip.blurred
    assert not view._panel._reveal.visible


def test_no_pair_and_an_unknown_pair_are_said(view, state):
    state.pair = None
    assert "Pick a pair" in view._panel._status.object
    state.pair = "<b>nope"
    assert not view._panel._body.visible
    assert "no pair “&lt;b&gt;nope”" in view._panel._status.object


def test_a_missing_margin_is_not_a_number(view, state):
    state.pair = "pair-003"
    assert "no margin computed" in view._panel._title.object
    assert np.isnan(view._list._table.value["margin"][3])
    assert view._list._table.value["mark"][3] == ""


def test_a_run_without_its_arrays_still_shows_pairs(tmp_path: Path):
    folder = write_synthetic_run(tmp_path / "run", features=60, pairs=8)
    (folder / "arrays" / "token_values.npy").unlink()
    state = AppState(view="pairs")
    panel = PairsView(state, RunReader.open(folder))._panel
    assert "cannot be coloured" in panel._legend.object
    assert "token_values" in panel._legend.object
    assert panel._waterfall.content["state"] == "ok"
    assert len(Reader(panel._panes["chosen"].strip.content).text) > 20
    panel._panes["chosen"].strip._handle_msg({"token": 0})
    assert not panel._token_box.visible


def test_several_answers_are_compared_best_with_best(tmp_path: Path):
    folder = write_synthetic_run(tmp_path / "run", features=60, pairs=4)
    manifest_reader = RunReader.open(folder)
    database = folder / manifest_reader.manifest.database
    manifest_reader.close()
    with duckdb.connect(str(database)) as connection:  # one pair with four answers
        connection.execute("UPDATE response SET pair_index = 0, pair_id = 'pair-000', rank = 1 WHERE pair_index = 1")
    reader = RunReader.open(folder)
    view = PairsView(AppState(view="pairs"), reader)
    panes = view._panel._panes
    with reader.cursor() as cursor:
        answers = pair_queries.pair_responses(cursor, 0)
    for side, pane in panes.items():
        rewards = answers.filter(pl.col("side") == side)["reward"]
        assert pane._picker.visible
        assert pane.answer.row["reward"] == max(rewards)
    chosen = panes["chosen"]
    chosen._picker.value = 1 - chosen._picker.value
    end = view._panel._waterfall.content["rows"][-1]["cells"][0]
    shown = answers.filter(pl.col("side") == "chosen")["reward"][chosen._picker.value]
    assert float(end["text"].replace("−", "-")) == pytest.approx(shown, abs=6e-3)
    assert "CHOSEN 1 of 2" in chosen._heading.object or "CHOSEN 2 of 2" in chosen._heading.object


def test_last_token_pooling_says_that_one_token_carries_all(view, state, reader):
    panel = view._panel
    panel._pooling = "last"
    panel._paint()
    assert "last token only" in panel._legend.object
    values = panel._token_values("chosen", None)
    assert np.count_nonzero(values) == 1
    assert values[-1] != 0
    panel._panes["chosen"].strip._handle_msg({"token": 0})
    assert "adds nothing" in panel._token_title.object


def test_hostile_text_is_text_in_every_pane(tmp_path: Path):
    reader = RunReader.open(write_synthetic_run(tmp_path / "run", features=60, pairs=8, hostile=True))
    state = AppState(view="pairs")
    view = PairsView(state, reader)
    view._panel._panes["chosen"].strip._handle_msg({"token": 2})
    state.param.update(feature=view._panel._listed[0], tokens="feature")
    panel = view._panel
    html = [
        panel._title,
        panel._labels,
        panel._prompt,
        panel._legend,
        panel._feature,
        panel._token_title,
        view._list._summary,
    ]
    texts = [pane.object for pane in html] + [pane.strip.content for pane in panel._panes.values()]
    for text in texts:
        names = {tag for tag, _ in Reader(text).elements}
        assert not names & {"script", "img"}, text
    state.pair = "<script>alert(1)</script>"
    assert "<script>" not in panel._status.object


def test_menus_show_counts_and_keep_an_unknown_value(reader):
    with reader.cursor() as cursor:
        counts = pair_queries.facet_counts(cursor)
    options = facet_options(counts, "domain", "gone")
    assert next(iter(options.items())) == ("any domain", None)
    assert options["chat (15)"] == "chat"
    assert options["gone (0)"] == "gone"
    assert "" in facet_options(counts, "category", None).values()
