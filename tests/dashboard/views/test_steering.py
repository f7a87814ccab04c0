"""The parts of the Steering view: what is drawn is what the engine says, and what comes from outside is checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from core.evaluate.specificity import specificity
from core.store.reader import RunReader
from core.store.review import ReviewStore
from dashboard import steering
from dashboard.impact_tasks import RunAt
from dashboard.parts.steer_link import steer_html
from dashboard.parts.steering_effect import BINS, density, effect_content, points_span, span_of
from dashboard.parts.steering_pairs import flips_of, pair_names, pairs_content
from dashboard.parts.steering_sliders import SteeringSliders
from dashboard.parts.steering_tools import SteeringTools
from dashboard.state import AppState
from dashboard.steering_tasks import suggest
from dashboard.views.steering import SteeringView
from tests.dashboard.conftest import assert_harmless
from tests.synthetic_run import HOSTILE, write_synthetic_run


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunReader]:
    folder = write_synthetic_run(tmp_path_factory.mktemp("steering") / "steer", features=60, pairs=150)
    with RunReader.open(folder) as opened:
        yield opened


def view_of(reader: RunReader, **state: Any) -> SteeringView:
    return SteeringView(AppState(run="steer", view="steering", **state), reader)


def shown(view: SteeringView) -> tuple[dict[str, Any], dict[str, Any]]:
    return json.loads(view._effect.content), json.loads(view._pairs.content)


def strong(reader: RunReader, n: int = 3) -> list[int]:
    return steering.salient(reader, steering.concepts(reader)[0], {}, n)["feature_id"].to_list()


def test_a_move_draws_what_plain_arithmetic_gives(reader: RunReader) -> None:
    first, second, _ = strong(reader)
    view = view_of(reader, steering={first: 1.0, second: 0.0})
    view.sliders._handle({"move": {str(first): 2.5}, "n": 1})
    effect, pairs = shown(view)

    z = reader.arrays.pooled("mean").toarray().astype(np.float64)
    w = reader.features.column("weight")
    before = reader.rewards()
    after = before + 1.5 * w[first] * z[:, first] - w[second] * z[:, second]
    table = reader.table("pair").with_columns((pl.col("split") == "test").alias("held"))
    target = steering.concepts(reader)[0]
    column, _, value = target.partition("=")
    mine = table.filter(pl.col("held"), pl.col(column) == value)["pair_index"].to_numpy()
    held = table.filter("held")["pair_index"].to_numpy()
    chosen, rejected = 2 * held, 2 * held + 1  # one answer a side
    was, now = before[chosen] > before[rejected], after[chosen] > after[rejected]
    assert (was != now).any()
    assert effect["groups"][0]["mean_after"] == pytest.approx(after[2 * mine].mean(), rel=1e-9)
    assert effect["groups"][1]["mean_before"] == pytest.approx(
        before[np.setdiff1d(np.r_[chosen, rejected], 2 * mine)].mean(), rel=1e-9
    )
    accuracy = next(row for row in effect["tables"][1]["rows"] if row["name"] == "after")["cells"][1]["text"]
    assert accuracy == f"{100 * now.mean():.1f} %"
    assert pairs["counts"][0][1] == f"{int((~was & now).sum())} fixed"
    assert pairs["counts"][1][1] == f"{int((was & ~now).sum())} broken"
    turned = {flip["index"]: flip for flip in pairs["flips"]}
    assert set(turned) == set(held[was != now].tolist())
    assert effect["move"] == view.sliders.moves == view.sliders.panel.answered == 1
    assert view._state.steering == {first: 1.0, second: 0.0}  # the link waits until the hand rests
    view.sliders._handle({"rest": True})
    assert view._state.steering == {first: 2.5, second: 0.0}


def test_back_where_it_started_it_shows_the_start(reader: RunReader) -> None:
    feature = strong(reader)[0]
    view = view_of(reader, steering={feature: 1.0})
    start = shown(view)[0]
    view.sliders._handle({"move": {str(feature): 3.0}, "n": 1})
    assert shown(view)[0]["groups"] != start["groups"]
    view.sliders._handle({"move": {str(feature): 1.0}, "n": 2})
    end = shown(view)[0]
    assert end["groups"] == start["groups"]
    assert "Nothing moves" in end["headline"]


def test_two_panels_over_one_state_move_together_and_bad_messages_do_nothing(reader: RunReader) -> None:
    one, other = strong(reader, 2)
    state = AppState(run="steer")
    small, large = SteeringSliders(state, reader), SteeringSliders(state, reader, large=True)
    small._handle({"add": [one, other, one]})
    assert state.steering == {one: 1.0, other: 1.0}
    small._handle({"move": {str(one): -0.5}, "n": 1})
    assert large.panel.values == small.panel.values == {str(one): -0.5, str(other): 1.0}
    assert (small.panel.answered, large.panel.answered) == (1, 0)
    before = dict(state.live_steering)
    for move in (
        {str(other): "2"},
        {str(other): float("nan")},
        {str(other): 1e9},
        {"999": 2.0},
        {"x": 1},
        [1],
        None,
        {str(other): True},
    ):
        small._handle({"move": move, "n": small.panel.answered + 1})
        assert state.live_steering == before, move
    for message in ({"add": [10**6]}, {"add": "x"}, {"remove": "1"}, {"query": 3}, {"suggest": 1}, {}):
        small._handle(message)
        assert state.live_steering == before, message
    small._handle({"reset": True})
    assert state.steering == {one: 1.0, other: 1.0}
    small._handle({"remove": one})
    assert [row["feature"] for row in large.panel.rows] == [other]
    small._handle({"clear": True})
    assert state.steering == {}


def test_salient_features_are_those_that_move_the_margins_of_the_training_pairs(reader: RunReader) -> None:
    target = steering.concepts(reader)[0]
    found = steering.salient(reader, target, {}, 50)
    rows = reader.salience(target, "mean").filter(pl.col("q") <= 0.05)
    best = rows.with_columns((pl.col("weight") * pl.col("effect")).abs().alias("size")).sort("size", descending=True)
    assert found["feature_id"].to_list()[:5] == best["feature_id"].to_list()[:5]
    first = int(found["feature_id"][0])
    assert first not in steering.salient(reader, target, {first: 1.0})["feature_id"].to_list()
    assert set(steering.find_features(reader, f"#{first}")["feature_id"][:1]) == {first}
    word = next(label for label in reader.features.frame["label"].drop_nulls()).split("”")[0].removeprefix("“")
    assert word in steering.find_features(reader, word)["label"][0]


def test_a_bound_near_zero_keeps_its_side() -> None:
    assert points_span(-0.206, -0.0001) == "[−20.6, −0.01]"
    assert points_span(0.0, 0.0123) == "[0.0, +1.2]"
    assert points_span(None, 0.1) == ""


def test_files_come_back_and_others_are_refused(reader: RunReader) -> None:
    one = steering.to_steering({3: 0.5, 4: -2.0}, "mine", reader)
    again, note = steering.multipliers_of(steering.read_upload(steering.own_file(one), "a.json", reader), reader)
    assert (again, note) == ({3: 0.5, 4: -2.0}, "")
    assert json.loads(steering.sarm_file(one)) == {"3": ["*", 0.5], "4": ["*", -2.0]}
    mixed, note = steering.multipliers_of(
        steering.read_upload('{"3": ["*", 2], "5": ["+", 4]}', "sarm.json", reader), reader
    )
    assert mixed == {3: 2.0}
    assert "cannot change any ranking" in note
    for content, name in (("[]", "x.json"), ('{"77777": ["*", 2]}', "x.json"), ("<b>", HOSTILE)):
        with pytest.raises(DataError):
            steering.read_upload(content, name, reader)
    with pytest.raises(DataError, match="-100 to 100"):
        steering.usable({3: 101.0}, reader)
    with pytest.raises(DataError, match="at most 40"):
        steering.usable(dict.fromkeys(range(41), 1.0), reader)


def test_presets_are_saved_and_opened_beside_the_run(reader: RunReader, tmp_path: Path) -> None:
    state = AppState(run="steer", steering={3: 0.5, 4: 2.0})
    sliders = SteeringSliders(state, reader)
    tools = SteeringTools(state, reader, ReviewStore(tmp_path), sliders)
    tools._handle({"save": " strict "})
    assert tools.panel.said == "Saved “strict”, version 1."
    state.steering = {}
    tools._handle({"open": tools.panel.presets[0]["key"]})
    assert state.steering == {3: 0.5, 4: 2.0}
    tools._handle({"open": "gone@1"})
    assert "no longer there" in tools.panel.said
    tools._handle({"save": "x" * 99})
    assert "1 to 80" in tools.panel.said
    tools._handle({"download": "sarm"})
    assert json.loads(tools.panel.data) == {"3": ["*", 0.5], "4": ["*", 2.0]}


def test_a_suggestion_stays_in_the_sliders_range(reader: RunReader) -> None:
    target = steering.concepts(reader)[0]
    found = suggest(RunAt(str(reader.folder), reader.manifest.database), target)
    assert found.multipliers
    assert all(-2 <= by <= 3 for by in found.multipliers.values())
    assert steering.usable(found.multipliers, reader)
    sizes = [abs(by - 1) for by in found.multipliers.values()]
    assert sizes == sorted(sizes, reverse=True)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=60), st.floats(-3, 3))
def test_densities_hold_every_answer(rewards: list[float], factor: float) -> None:
    before = np.array(rewards)
    after = before * factor
    span = span_of(before, after)
    assert span[0] < before.min()
    assert span[1] > before.max()
    for values in (before, after):
        heights = density(values, span)
        assert len(heights) == BINS
        assert sum(heights) == pytest.approx(1, abs=1e-4)
    wider = (span[0] - 1, span[1] + 1)
    assert span_of(before, after, wider) == wider  # never shrinks under the hand


def test_a_run_without_slices_says_so_and_keeps_its_sliders(hostile: RunReader) -> None:
    assert steering.concepts(hostile) == []
    view = view_of(hostile, steering={1: 2.0})
    assert "no domain or label" in view._failed.object
    assert view._failed.visible
    assert view.sliders.panel.values == {"1": 2.0}
    view.step(1)


def test_text_of_the_run_is_only_ever_text(tmp_path: Path) -> None:
    hostile = RunReader.open(write_synthetic_run(tmp_path / "hostile", features=40, pairs=90, hostile=True))
    state = AppState(run="hostile", view="steering")
    target = steering.concepts(hostile)[0]
    assert HOSTILE in target
    data = steering.of_run(hostile)
    feature = int(hostile.features.frame.filter(pl.col("weight").abs() > 0.1)["feature_id"][0])
    after = data.steered.another().rewards({feature: -40.0})
    result = specificity(data, data.rewards, after, target)
    flips = flips_of(data, after, result)
    effect = effect_content(data, after, result, (-1.0, 1.0), 0)
    pairs = pairs_content(pair_names(hostile), flips, result, lambda pair: state.link(view="pairs", pair=pair), 9)
    assert "onerror" in effect["groups"][0]["title"]
    for flip in pairs["flips"]:
        assert flip["href"].startswith("?run=hostile&view=pairs&p=")
        assert "<" not in flip["href"]
    assert_harmless(steer_html(state, feature, 1.0))
    assert steer_html(state, feature, 0.0) == ""
