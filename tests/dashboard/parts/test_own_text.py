"""Typed text: its ranking under the sliders, what decides it, the words around it, and a run's own pairs without a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.store import pair_queries
from core.store.reader import RunReader
from dashboard.parts import own_text_words as words
from dashboard.parts.own_text import OwnText
from dashboard.parts.own_text_model import MOST_CHARACTERS, Draft, OwnTextModel
from dashboard.parts.own_text_ranking import ranking_content
from dashboard.parts.own_text_ranks import deciders, ranking, steered_reward
from dashboard.parts.own_text_stored import stored_scores
from dashboard.scoring import ModelState, Scoring
from dashboard.scoring_process import Held, ScoredText, dense_reward
from dashboard.state import AppState
from tests.dashboard.conftest import assert_harmless
from tests.synthetic_run import HOSTILE

FEATURES = 30


@st.composite
def scored(draw: st.DrawFn) -> list[ScoredText]:
    """One to five answers with a few active features each."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.normal(size=FEATURES)
    found = []
    for _ in range(draw(st.integers(1, 5))):
        features = np.sort(rng.choice(FEATURES, rng.integers(1, 12), replace=False))
        pooled = rng.gamma(2.0, size=len(features))
        found.append(answer(features, pooled, weights))
    return found


def answer(
    features: np.ndarray, pooled: np.ndarray, weights: np.ndarray, text: str = "one two", **other: Any
) -> ScoredText:
    contributions = pooled * weights[features]
    given = {
        "reward": float(contributions.sum()),
        "model_reward": float(contributions.sum()),
        "token_features": features[None].astype(np.uint16),
        "token_values": pooled[None].astype(np.float32),
        "char": np.array([[0, len(text)]], np.int32),
        "n_tokens": 1,
        "n_prompt": 5,
        "prompt_dropped": 0,
    } | other
    return ScoredText(text=text, features=features, pooled=pooled, contributions=contributions, **given)


def dense(one: ScoredText, multipliers: dict[int, float]) -> float:
    """The steered reward the long way: every feature by itself."""
    return sum(
        multipliers.get(int(feature), 1.0) * float(value)
        for feature, value in zip(one.features, one.contributions, strict=True)
    )


multipliers = st.dictionaries(st.integers(0, FEATURES + 5), st.floats(-2, 3), max_size=8)


@given(scored(), multipliers)
@settings(max_examples=60, deadline=None)
def test_the_ranking_is_that_of_the_steered_sums(answers: list[ScoredText], by: dict[int, float]) -> None:
    places = ranking(answers, by)
    assert [place.rank for place in places] == list(range(1, len(answers) + 1))
    assert sorted(place.index for place in places) == list(range(len(answers)))
    for place in places:
        assert place.after == pytest.approx(dense(answers[place.index], by), abs=1e-12)
        assert place.before == answers[place.index].reward
        better = sum(one.reward > answers[place.index].reward for one in answers)
        assert place.was == better + 1
    assert [place.after for place in places] == sorted((place.after for place in places), reverse=True)


def test_equal_rewards_stand_in_the_order_given() -> None:
    weights = np.ones(FEATURES)
    one = answer(np.array([1]), np.array([2.0]), weights)
    other = answer(np.array([2]), np.array([2.0]), weights)
    assert [place.index for place in ranking([one, other], {})] == [0, 1]
    assert [place.index for place in ranking([one, other], {1: 0.5})] == [1, 0]


@given(scored(), multipliers)
@settings(max_examples=60, deadline=None)
def test_a_decider_ties_the_first_two_where_it_says(answers: list[ScoredText], by: dict[int, float]) -> None:
    places = ranking(answers, by)
    found = deciders(answers, places, by, most=5)
    apart = [abs(one.first - one.second) for one in found]
    assert apart == sorted(apart, reverse=True)
    for one in found:
        assert one.feature not in by
        if one.swap is not None:
            assert len(answers) > 1
            first, second = (answers[place.index] for place in places[:2])
            moved = {**by, one.feature: one.swap}
            assert steered_reward(first, moved) == pytest.approx(steered_reward(second, moved), abs=1e-9)


@given(scored(), multipliers)
@settings(max_examples=40, deadline=None)
def test_the_waterfall_ends_at_the_steered_reward(answers: list[ScoredText], by: dict[int, float]) -> None:
    one = answers[0]
    drawn = words.waterfall_of(one, by, lambda ids: dict.fromkeys(ids), lambda f: f"?f={f}", lambda f: f"?s={f}", 1.0)
    *rows, total = drawn["rows"]
    assert total["cells"][-1]["end"] == pytest.approx(dense(one, by), abs=1e-9)
    assert rows[-1]["cells"][-1]["end"] == pytest.approx(dense(one, by), abs=1e-9)
    changed = any(by.get(int(feature), 1) != 1 for feature in one.features)
    assert [column["title"] for column in drawn["columns"]] == (
        ["As it is", "Steered", "Sum so far"] if changed else ["Contribution", "Sum so far"]
    )
    assert all(len(row["cells"]) == len(drawn["columns"]) for row in drawn["rows"])
    assert drawn["state"] == "ok"


def test_a_sum_that_misses_the_reward_is_said() -> None:
    one = answer(np.array([1, 2]), np.array([1.0, 2.0]), np.ones(FEATURES), model_reward=3.01)
    state, sentence = words.sum_sentence(one, scale=1.0)
    assert state == "wrong"
    assert "Do not rely on this decomposition" in sentence


def test_the_dense_reward_pools_as_the_head_does() -> None:
    features, values = np.array([[1, 2], [1, 3]], np.uint16), np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    weights = np.array([0.0, 1.0, 10.0, 100.0])
    assert dense_reward(features, values, weights, "mean") == pytest.approx(0.5 * (1 + 20 + 3 + 400))
    assert dense_reward(features, values, weights, "last") == pytest.approx(403)


def test_what_was_not_read_is_counted_and_shown() -> None:
    weights = np.ones(FEATURES)
    text = "read this not <b>that</b>"
    char = np.array([[0, 9], [len(text), len(text)]], np.int32)
    cut = answer(np.array([1]), np.array([1.0]), weights, text, char=char, n_tokens=7, prompt_dropped=3)
    html = words.cut_html(cut, 4)
    assert "the model reads at most 4 tokens" in html
    assert "the first 3 of 5 tokens of the prompt and the last 5 of 7 tokens of the answer" in html
    assert "not &lt;b&gt;that" in html
    assert words.cut_html(answer(np.array([1]), np.array([1.0]), weights), 4) == ""


@pytest.mark.parametrize(
    ("state", "request_is", "ahead", "problem", "says"),
    [
        (ModelState("loading", "reading the model"), "", 0, "", "Reading the model:</b> reading the model"),
        (ModelState("loading"), "waiting", 0, "", "scored as soon as the model is there"),
        (ModelState("ready"), "waiting", 2, "", "queued behind 2 others"),
        (ModelState("ready"), "scoring", 0, "", "scoring…"),
        (ModelState("ready"), "", 0, HOSTILE, "&lt;script"),
        (ModelState("failed", problem=HOSTILE), "", 0, HOSTILE, "No model available."),
        (ModelState("failed", problem="It stopped.", crashed=True), "", 0, "", "It stopped. Score again"),
        (ModelState("ready", held=Held((), f"Model {HOSTILE}", 99, 3.0)), "", 0, "", "ready (read in 3.0 s)"),
    ],
)
def test_every_state_has_its_words(state: ModelState, request_is: str, ahead: int, problem: str, says: str) -> None:
    html = words.status_html(state, request_is, ahead, problem, False, "")
    assert says in html
    assert_harmless(html)


# ---------------------------------------------------------------- with a run that has no model


@pytest.fixture
def service() -> Iterator[Scoring]:
    one = Scoring()
    yield one
    one.close()


@pytest.fixture
def no_model(plain: RunReader, service: Scoring) -> OwnTextModel:
    """A session on a run without its model, which is known by now."""
    model = OwnTextModel(AppState(run="plain"), plain, service)
    service._set(model.run, ModelState("failed", problem="not here"))
    return model


def test_the_answers_of_a_pair_have_the_rewards_of_the_run(plain: RunReader) -> None:
    found = stored_scores(plain, "pair-003")
    with plain.cursor() as cursor:
        rows = cursor.sql(
            "SELECT text, reward FROM response WHERE pair_id = 'pair-003' ORDER BY response_id"
        ).fetchall()
    assert [one.text for one in found] == [text for text, _ in rows]
    for one, (_, reward) in zip(found, rows, strict=True):
        assert one.reward == pytest.approx(reward, abs=1e-6)
        assert one.model_reward == pytest.approx(reward, abs=1e-4)
    assert stored_scores(plain, "no such pair") == []


def test_a_pair_of_the_run_is_ranked_without_a_model_and_edited_text_is_not(no_model: OwnTextModel) -> None:
    no_model.use_pair("pair-003")
    assert [draft.note for draft in no_model.answers] == ["chosen", "rejected"]
    assert no_model.stored_pair == "pair-003"
    no_model.score()
    assert len(no_model.scored) == 2
    assert no_model.from_run
    assert not no_model.stale
    no_model.write(no_model.prompt, [no_model.answers[0].text, "something else"], None)
    assert no_model.stored_pair is None
    assert no_model.stale
    assert [draft.note for draft in no_model.answers] == ["chosen", ""]
    assert not no_model.answers[1].sensitive


def test_examples_go_through_pairs_that_may_be_shown(no_model: OwnTextModel) -> None:
    prompts = set()
    for _ in range(4):
        no_model.use_example()
        prompts.add(no_model.prompt)
        assert not any(draft.sensitive for draft in no_model.answers)
    assert len(prompts) > 1
    no_model.state.pair = "pair-000"
    no_model.use_example()
    assert no_model.stored_pair == "pair-000"
    assert no_model.answers[1].sensitive  # of the domain privacy


def test_what_cannot_be_scored_is_said(no_model: OwnTextModel) -> None:
    for prompt, answers, says in [
        (" ", ["yes"], "Type a prompt first."),
        ("Why?", ["", " "], "Type at least one answer."),
        ("Why?", ["x" * (MOST_CHARACTERS + 1)], f"one text has {MOST_CHARACTERS + 1:,}"),
    ]:
        no_model.write(prompt, answers, None)
        no_model.score()
        assert says in no_model.problem
        assert no_model.request == ""
    no_model.write("Why?", ["a"] * 20, None)
    assert len(no_model.answers) == 8


def test_a_move_of_a_slider_reorders_both_forms(plain: RunReader, no_model: OwnTextModel) -> None:
    state = no_model.state
    state._own_text = no_model
    small = OwnText(state, plain)
    no_model.use_pair("pair-003")
    small._on_message("score", {})
    first, second = (place.index for place in small._places)
    swap = next(one for one in deciders(no_model.scored, small._places, {}, 200) if one.swap is not None)
    assert swap.swap is not None
    assert [row["index"] for row in small._ranking.content["rows"]] == [first, second]
    beyond = swap.swap + (-0.01 if swap.first > swap.second else 0.01)
    state.live_steering = {swap.feature: beyond}
    assert [row["index"] for row in small._ranking.content["rows"]] == [second, first]
    assert [(row["rank"], row["was"]) for row in small._ranking.content["rows"]] == [(1, 2), (2, 1)]
    assert "2 of 2 answers change place" in small._ranking.content["said"]

    state.param.update(present=True)
    large = OwnText(state, plain, large=True)
    assert [row["index"] for row in large._ranking.content["rows"]] == [second, first]
    assert large._ranking.content["rows"][0]["text"] == no_model.scored[second].text
    state.live_steering = {swap.feature: 1.0}
    assert [row["index"] for row in large._ranking.content["rows"]] == [first, second]
    assert small._ranking.content["rows"][0]["index"] == second  # out of sight: drawn when it comes back
    state.present = False
    assert [row["index"] for row in small._ranking.content["rows"]] == [first, second]


def test_hostile_text_stays_text(hostile: RunReader, service: Scoring) -> None:
    state = AppState(run="hostile")
    state._own_text = OwnTextModel(state, hostile, service)
    service._set(state._own_text.run, ModelState("failed", problem=HOSTILE))
    with hostile.cursor() as cursor:
        pair = pair_queries.matching_pairs(cursor, pair_queries.PairFilter())["pair_id"][3]
    for large in (False, True):
        state.param.update(present=large)
        view = OwnText(state, hostile, large=large)
        view.model.use_pair(pair)
        view._on_message("score", {})
        assert view.model.scored
        state.live_steering = {int(view.model.scored[0].features[0]): 2.0}
        panes = view._layout.select(lambda part: isinstance(getattr(part, "object", None), str))
        assert panes
        for pane in panes:
            assert_harmless(pane.object)
        if view._answer is not None:
            assert_harmless(view._answer.strip.content)


def test_nothing_typed_is_in_the_link(no_model: OwnTextModel) -> None:
    no_model.write("a secret", ["another secret"], None)
    assert "secret" not in no_model.state.link(present=True)


def test_steering_that_no_answer_feels_is_said() -> None:
    one = answer(np.array([1]), np.array([1.0]), np.ones(FEATURES))
    places = ranking([one, one], {7: 0.0})
    said = ranking_content(places, [Draft("a"), Draft("b")], 1, number=1, large=False)["said"]
    assert said == "Steered by 1 feature, active in none of these answers: nothing changes."


def test_messages_of_another_shape_are_not_taken(plain: RunReader, no_model: OwnTextModel) -> None:
    no_model.state._own_text = no_model
    view = OwnText(no_model.state, plain)
    for wrong in (None, [], {"texts": {"prompt": 3, "answers": []}}, {"texts": {"prompt": "a", "answers": [3]}}):
        view._editor._handle_msg(wrong)
    view._ranking._handle_msg({"open": 99})
    assert (no_model.prompt, no_model.open) == ("", 0)
    view._editor._handle_msg({"texts": {"prompt": "a", "answers": ["b"]}})
    assert (no_model.prompt, [draft.text for draft in no_model.answers]) == ("a", ["b"])
