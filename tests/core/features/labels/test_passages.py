"""What is shown and what tests a label: from different prompts, true, and drawn the same every time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.features.labels.passages import MARKS, FeaturePassages, Passage, feature_passages, strong_tokens
from core.features.samples import choosing_pairs
from core.store.reader import RunReader
from tests.core.features.labels.planted import ALWAYS, DEAD, END, NOISE, OFTEN, RARE, SORRY

ALL = [SORRY, OFTEN, END, ALWAYS, RARE, DEAD, NOISE]


@pytest.fixture(scope="module")
def drawn(reader: RunReader) -> dict[int, FeaturePassages]:
    return {one.feature: one for one in feature_passages(reader, ALL, shown=10, scored=40)}


def text(one: Passage) -> str:
    return "".join(one.tokens).replace("<end of turn>", "")


def test_shown_and_test_passages_come_from_different_prompts(
    reader: RunReader, drawn: dict[int, FeaturePassages]
) -> None:
    chooses = set(choosing_pairs(reader.table("pair").select("pair_id", "prompt_id")))
    halves: dict[bool, str] = {True: "", False: ""}
    for pair_id, answer in reader.table("response").select("pair_id", "text").iter_rows():
        halves[pair_id in chooses] += answer + "\n"
    for one in drawn.values():
        assert all(text(passage) in halves[True] for passage in one.shown)
        assert all(text(passage) in halves[False] for passage in (*one.detection, *one.fuzzing))


def test_shown_passages_are_the_strongest_and_marked(drawn: dict[int, FeaturePassages]) -> None:
    shown = drawn[SORRY].shown
    assert len(shown) == 10
    assert [one.strength for one in shown] == sorted((one.strength for one in shown), reverse=True)
    for one in shown:
        assert {one.tokens[i].strip().lower() for i in one.marked} == {"sorry"}


def test_detection_passages_are_active_exactly_where_they_say(drawn: dict[int, FeaturePassages]) -> None:
    for one in drawn[SORRY].detection:
        assert one.truth == ("sorry" in text(one).lower())
        assert one.marked == ()
    assert Counter(one.truth for one in drawn[SORRY].detection) == {True: 20, False: 20}


def test_half_of_the_inactive_passages_are_near_misses(drawn: dict[int, FeaturePassages]) -> None:
    inactive = [text(one) for one in drawn[OFTEN].detection if not one.truth]
    assert len(inactive) == 20
    assert sum("river" in one for one in inactive) >= 10


def test_fuzzing_moves_the_marks_of_every_second_passage(drawn: dict[int, FeaturePassages]) -> None:
    fuzzing = drawn[SORRY].fuzzing
    assert Counter(one.truth for one in fuzzing) == {True: 20, False: 20}
    for one in fuzzing:
        marked = {one.tokens[i].strip().lower() for i in one.marked}
        assert (marked == {"sorry"}) if one.truth else "sorry" not in marked
        assert 1 <= len(one.marked) <= MARKS
    assert len({one.tokens for one in fuzzing}) == len(fuzzing)  # no passage is asked about both ways


def test_no_test_passage_reads_like_one_that_was_shown(drawn: dict[int, FeaturePassages]) -> None:
    for one in drawn.values():
        shown = {passage.tokens for passage in one.shown}
        assert not shown & {passage.tokens for passage in (*one.detection, *one.fuzzing)}
        assert len({passage.tokens for passage in one.detection}) == len(one.detection)


def test_what_cannot_be_drawn_is_left_out(drawn: dict[int, FeaturePassages]) -> None:
    assert all(one.truth for one in drawn[ALWAYS].detection)  # it is inactive nowhere ...
    assert drawn[ALWAYS].fuzzing == ()  # ... so no mark could be wrong
    assert drawn[DEAD] == FeaturePassages(DEAD, ())
    assert len(drawn[RARE].shown) < 5
    assert drawn[RARE].detection == ()


def test_draws_depend_on_the_feature_alone(reader: RunReader, drawn: dict[int, FeaturePassages]) -> None:
    assert list(feature_passages(reader, [NOISE, SORRY], shown=10, scored=40)) == [drawn[NOISE], drawn[SORRY]]
    other = next(feature_passages(reader, [SORRY], shown=10, scored=40, seed=1))
    assert other.shown == drawn[SORRY].shown
    assert other.detection != drawn[SORRY].detection


@given(st.lists(st.tuples(st.sampled_from(["", "a", " b"]), st.floats(0, 9, width=32)), min_size=1, max_size=20))
def test_marks_stand_on_the_peak_and_what_comes_near_it(tokens: list[tuple[str, float]]) -> None:
    texts, values = [t for t, _ in tokens], [v for _, v in tokens]
    peak = values.index(max(values))
    marked = strong_tokens(texts, values, peak)
    assert 1 <= len(marked) <= MARKS
    assert list(marked) == sorted(set(marked))
    assert all(texts[i] or i == 0 for i in marked)
    assert texts[peak] == "" or peak in marked
