"""A reply is what was asked for, or it is missing: there is nothing in between."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.features.labels.replies import LONGEST_LABEL, LabelReply, ReplyError, json_object, read_label, read_numbers

WHOLE = {"description": "refusals", "safety_rating": 5, "monosemanticity": 4}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


def test_a_whole_reply() -> None:
    assert read_label(json.dumps(WHOLE)) == LabelReply("refusals", 5, 4)


@pytest.mark.parametrize(
    "content",
    [
        f"```json\n{json.dumps(WHOLE)}\n```",
        f"```\n{json.dumps(WHOLE)}\n```",
        f"<think>It says {{}} a lot.</think>\n{json.dumps(WHOLE)}",
        f"\n {json.dumps(WHOLE, indent=1)} \n",
    ],
)
def test_a_fence_or_a_thought_around_it_is_taken_off(content: str) -> None:
    assert read_label(content) == LabelReply("refusals", 5, 4)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "empty"),
        ("<think>hm</think>", "empty"),
        ("5", "no JSON object"),
        ("[5]", "no JSON object"),
        ("null", "no JSON object"),
        ("Score: 5", "no JSON"),
        (f"Here it is: {json.dumps(WHOLE)}", "no JSON"),
        (f"{json.dumps(WHOLE)} {json.dumps(WHOLE)}", "no JSON"),
        (json.dumps(WHOLE)[:-1], "no JSON"),
        ('{"safety_rating": 1, "safety_rating": 5}', "twice"),
        ('{"safety_rating": NaN}', "NaN"),
        ("[" * 100_000, "no JSON"),
        ('{"safety_rating": ' + "9" * 5000 + "}", "no JSON"),
    ],
)
def test_anything_else_is_missing_and_says_why(content: str, why: str) -> None:
    found = read_label(content)
    assert (found.text, found.safety_rating, found.monosemanticity) == (None, None, None)
    assert len(found.problems) == 1
    assert why in found.problems[0]


@pytest.mark.parametrize("wrong", [0, 6, -1, True, False, 4.5, 4.0, "4", None, [4], {"n": 4}, 10**30])
def test_only_the_whole_numbers_1_to_5_are_ratings(wrong: object) -> None:
    found = read_label(json.dumps({**WHOLE, "safety_rating": wrong}))
    assert found.safety_rating is None
    assert (found.text, found.monosemanticity) == ("refusals", 4)  # what is valid stays
    assert [problem.startswith("safety_rating is ") for problem in found.problems] == [True]


@pytest.mark.parametrize("wrong", ["", "  \n ", "\u202e\x00", None, 7, ["refusals"], "x" * (LONGEST_LABEL + 1)])
def test_a_description_is_text_of_some_length(wrong: object) -> None:
    found = read_label(json.dumps({**WHOLE, "description": wrong}))
    assert found.text is None
    assert (found.safety_rating, found.monosemanticity) == (5, 4)
    assert found.problems[0].startswith("description is ")


def test_a_missing_part_is_said() -> None:
    found = read_label('{"description": "refusals"}')
    assert found == LabelReply(
        "refusals", None, None, ("no safety_rating in the reply", "no monosemanticity in the reply")
    )


def test_a_description_is_one_printable_line() -> None:
    found = read_label(r'{"description": "two\nlines \u202e here"}')
    assert found.text == "two lines here"
    broken = read_label(r'{"description": "half a \ud800 character"}')
    assert broken.text is None
    assert broken.problems[0].isprintable()


@given(json_values)
def test_whatever_comes_is_valid_or_missing_with_a_reason(value: object) -> None:
    content = json.dumps(value)
    found = read_label(content)
    for name, got in (("safety_rating", found.safety_rating), ("monosemanticity", found.monosemanticity)):
        if got is not None:
            assert isinstance(value, dict)
            assert value[name] is got or (type(value[name]) is int and value[name] == got)
            assert 1 <= got <= 5
    missing = [found.text, found.safety_rating, found.monosemanticity].count(None)
    assert bool(found.problems) == bool(missing)
    assert all(problem.isprintable() and len(problem) < 300 for problem in found.problems)


@given(st.text())
def test_no_text_breaks_the_reader(content: str) -> None:
    found = read_label(content)
    try:
        json_object(content)
    except ReplyError:
        assert (found.text, found.safety_rating, found.monosemanticity) == (None, None, None)
    with pytest.raises(ReplyError):
        read_numbers("x" + content, 3)


@given(st.sets(st.integers(1, 9)))
def test_numbers_are_read_as_written(numbers: set[int]) -> None:
    assert read_numbers(json.dumps({"numbers": list(numbers)}), 9) == numbers


@pytest.mark.parametrize("wrong", [[0], [4], [1, 1], [True], [1.0], ["1"], "1", 1, None, {"1": 1}, [[1]], [-1]])
def test_other_numbers_are_no_answer(wrong: object) -> None:
    with pytest.raises(ReplyError):
        read_numbers(json.dumps({"numbers": wrong}), 3)
    with pytest.raises(ReplyError):
        read_numbers(json.dumps({"passages": [1]}), 3)
