"""The words around a pair: escaped, honest about what is missing, and figures that agree with scipy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from dashboard.parts import pair_text
from dashboard.parts.open_pair import unread_text
from tests.dashboard.parts.test_tokens import HOSTILE, Reader

PAIR = {
    "pair_id": "p",
    "margin": 0.5,
    "domain": "chat",
    "category": None,
    "source": "s",
    "split": "test",
    "labels": "{}",
    "n_responses": 2,
}


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (7, 7), (3, 10), (500, 812)])
def test_wilson_agrees_with_scipy(successes, n):
    expected = binomtest(successes, n).proportion_ci(0.95, "wilson")
    assert pair_text.wilson(successes, n) == pytest.approx((expected.low, expected.high))


def test_wilson_of_nothing():
    assert pair_text.wilson(0, 0) is None


def test_the_summary_counts_what_is_missing():
    text = Reader(pair_text.filter_summary(n=12, total=600, prompts=1, right=5, computed=10)).text
    assert "12 of 600 pairs, 1 prompt" in text
    assert "model right in 50.0 % (23.7–76.3), n = 10" in text
    assert "2 without a margin" in text
    assert "model right" not in pair_text.filter_summary(n=0, total=600, prompts=0, right=0, computed=0)


@pytest.mark.parametrize(
    ("margin", "words"),
    [(0.5, "model right"), (-0.5, "model wrong"), (0.0, "model wrong (tie)"), (None, "no margin computed")],
)
def test_the_verdict_says_it_in_words(margin, words):
    assert words in Reader(pair_text.title_html(PAIR | {"margin": margin})).text


def test_labels_are_chips_without_what_the_heading_says():
    labels = {"source": "s", "refusal": True, "padding": False, "reviewer": None, "score": 0.5, "by": [["a", "b"], []]}
    text = Reader(pair_text.labels_html(PAIR | {"labels": json.dumps(labels)})).text
    assert text == "score 0.5by a, b, nonerefusal yespadding no1 more labelreviewer missing"
    many = {f"k{i}": i for i in range(20)}
    assert "12 more labels" in pair_text.labels_html(PAIR | {"labels": json.dumps(many)})
    assert "cannot be read" in pair_text.labels_html(PAIR | {"labels": "{"})
    assert pair_text.labels_html(PAIR) == ""


def test_long_prompts_are_folded_and_conversations_keep_their_speakers():
    assert "<details>" not in pair_text.prompt_html("short", "[]")
    assert pair_text.prompt_html("word " * 400, "[]").startswith("<details><summary>")
    turns = json.dumps([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}])
    assert Reader(pair_text.prompt_html("User: Hello", turns)).text == "userHelloassistantHi"
    assert Reader(pair_text.prompt_html("plain", "not json")).text == "plain"


def test_what_the_model_did_not_read_is_said():
    assert pair_text.cutoff_html("  ") == ""
    assert "did not read the last 5 characters" in pair_text.cutoff_html(" rest")


@pytest.mark.parametrize("text", HOSTILE)
def test_dataset_text_stays_text(text):
    pair = dict.fromkeys(PAIR, text) | {"margin": 1.0, "n_responses": 4, "labels": json.dumps({text: text})}
    row = {"feature_id": 1, "label": text, "weight": 0.1, "weight_rank": 3}
    pieces = [
        pair_text.title_html(pair),
        pair_text.labels_html(pair | {"pair_id": "p", "source": "s", "split": "t", "domain": "d", "category": "c"}),
        pair_text.prompt_html(text, json.dumps([{"role": text, "content": text}, {"role": text, "content": text}])),
        pair_text.prompt_html(text * 300, "[]"),
        pair_text.cutoff_html(text),
        pair_text.feature_html(row, {"chosen": (1, 2)}, f"?q={text}"),
        pair_text.state_html(text, "failed"),
    ]
    for piece in pieces:
        reader = Reader(piece)
        assert {tag for tag, _ in reader.elements} <= {"div", "span", "b", "details", "summary", "a"}
        assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
        assert "<script" not in piece


def test_a_cut_answer_says_what_was_not_read() -> None:
    char = np.array([[0, 3], [3, 7], [16, 16]])  # two tokens of text, then the end of the turn
    assert unread_text("one two and more", char) == " and more"
    assert unread_text("one two", np.array([[0, 3], [3, 7], [7, 7]])) == ""
    assert unread_text("one two", np.empty((0, 2), int)) == "one two"
