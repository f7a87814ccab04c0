"""From passages to stored rows, through real requests: what a known feature gets, and what stays missing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from core.errors import EndpointError
from core.features.labels import prompts
from core.features.labels.accuracy import Score, score_of
from core.features.labels.endpoint import Endpoint, EndpointSettings
from core.features.labels.labeller import Job, Summary, label_features, requests_of
from core.features.labels.passages import feature_passages
from core.progress import Silent
from core.store.reader import RunReader
from tests.core.features.labels.planted import (
    ALWAYS,
    NOISE,
    OFTEN,
    SORRY,
    Server,
    knows_sorry,
    numbers,
    passages_of,
    serving,
)

FAILS = (500, json.dumps({"error": {"message": "oops"}}), {})


def jobs(reader: RunReader, *features: int) -> list[Job]:
    return [Job(one) for one in feature_passages(reader, features, shown=10, scored=40)]


def label(server: Server, some: list[Job], score: bool = True, **settings: Any) -> tuple[Summary, list[dict[str, Any]]]:
    saved: list[dict[str, Any]] = []

    async def work() -> Summary:
        async with Endpoint(EndpointSettings(server.url, "m", **{"retries": 0, **settings})) as endpoint:
            return await label_features(some, endpoint, lambda row: saved.append(dict(row)), Silent(), score=score)

    return asyncio.run(work()), saved


def judged(how: Any) -> Any:
    """Labels like one who knows, and judges in another way."""
    return lambda body: knows_sorry(body) if body["messages"][0]["content"] == prompts.LABEL else how(body)


def test_one_who_knows_the_feature_scores_fully(reader: RunReader) -> None:
    with serving(knows_sorry) as server:
        summary, saved = label(server, jobs(reader, SORRY))
    assert (summary.labelled, summary.rated, summary.scored, summary.problems) == (1, 1, 1, {})
    assert len(saved) == 2  # at once when the label is there, and again with its scores
    assert saved[0] == {
        "feature_id": SORRY,
        "text": "the word sorry",
        "safety_rating": 5,
        "monosemanticity": 4,
        "problem": None,
        "prompt_tokens": 100,
        "completion_tokens": 10,
    }
    row = saved[1]
    for kind in ("detection", "fuzzing"):
        assert (row[f"{kind}_score"], row[f"{kind}_high"], row[f"{kind}_n"]) == (1.0, 1.0, 40)
        assert 0.85 < row[f"{kind}_low"] < 0.95  # 40 of 40 is not certainty
    assert summary.requests == len(server.bodies) == 5
    assert (row["prompt_tokens"], summary.prompt_tokens, summary.completion_tokens) == (500, 500, 50)


def test_the_same_label_on_a_feature_it_does_not_fit_scores_like_chance(reader: RunReader) -> None:
    with serving(knows_sorry) as server:
        _, saved = label(server, jobs(reader, OFTEN))
    assert saved[-1]["detection_low"] < 0.5 < saved[-1]["detection_high"]
    assert saved[-1]["fuzzing_low"] < 0.5 < saved[-1]["fuzzing_high"]


@pytest.mark.parametrize(("answer", "score"), [(True, 0.5), (False, 0.5), ("reversed", 0.0)])
def test_saying_yes_to_all_is_chance_and_saying_the_contrary_is_worse(
    reader: RunReader, answer: Any, score: float
) -> None:
    def judge(body: dict[str, Any]) -> str:
        passages = passages_of(body)
        right = set(json.loads(knows_sorry(body))["numbers"])
        said = range(1, len(passages) + 1)
        return json.dumps({"numbers": [i for i in said if (i not in right if answer == "reversed" else answer)]})

    with serving(judged(judge)) as server:
        _, saved = label(server, jobs(reader, SORRY))
    assert saved[-1]["detection_score"] == saved[-1]["fuzzing_score"] == score


def test_an_unusable_label_is_missing_and_is_not_scored(reader: RunReader) -> None:
    with serving(lambda _: "I would say 4 out of 5.") as server:
        summary, saved = label(server, jobs(reader, SORRY, NOISE))
    assert len(saved) == summary.requests == 2
    for row in saved:
        assert (row["text"], row["safety_rating"], row["monosemanticity"]) == (None, None, None)
        assert "no JSON" in row["problem"]
    assert (summary.labelled, summary.rated, set(summary.problems)) == (0, 0, {SORRY, NOISE})


def test_a_partial_label_is_kept_and_scored(reader: RunReader) -> None:
    def answer(body: dict[str, Any]) -> str:
        if body["messages"][0]["content"] == prompts.LABEL:
            return json.dumps({"description": "the word sorry", "safety_rating": 9, "monosemanticity": 4})
        return knows_sorry(body)

    with serving(answer) as server:
        _, saved = label(server, jobs(reader, SORRY))
    row = saved[-1]
    assert (row["text"], row["safety_rating"], row["monosemanticity"]) == ("the word sorry", None, 4)
    assert row["problem"].startswith("safety_rating is “9”")
    assert row["detection_score"] == 1


def test_passages_without_a_usable_verdict_shrink_n(reader: RunReader) -> None:
    seen: list[int] = []

    def judge(body: dict[str, Any]) -> str:
        seen.append(1)
        return "all of them" if len(seen) == 1 else knows_sorry(body)

    with serving(judged(judge)) as server:
        _, saved = label(server, jobs(reader, SORRY), concurrency=1)
    row = saved[-1]
    assert (row["detection_n"], row["fuzzing_n"]) == (20, 40)
    assert row["detection_score"] == row["fuzzing_score"] == 1
    assert row["problem"].startswith("detection: 20 of 40 passages without a usable answer")


def test_no_usable_verdict_is_a_missing_score_of_none(reader: RunReader) -> None:
    with serving(judged(lambda _: "hm")) as server:
        _, saved = label(server, jobs(reader, SORRY))
    row = saved[-1]
    assert (row["detection_score"], row["detection_low"], row["detection_n"]) == (None, None, 0)
    assert "fuzzing: 40 of 40" in row["problem"]


def test_failed_judging_is_left_open_for_the_next_run(reader: RunReader) -> None:
    with serving(judged(lambda _: FAILS)) as server:
        _, saved = label(server, jobs(reader, SORRY))
    row = saved[-1]
    assert row["text"] == "the word sorry"
    assert (row["detection_n"], row["fuzzing_n"]) == (None, None)  # not asked, rather than asked in vain
    assert "oops" in row["problem"]


def test_only_the_scores_are_asked_when_the_label_is_known(reader: RunReader) -> None:
    [passages] = feature_passages(reader, [SORRY], shown=10, scored=40)
    kept = {"text": "the word sorry", "safety_rating": 2, "problem": None, "prompt_tokens": 7, "completion_tokens": 1}
    job = Job(passages, "the word sorry", kept)
    with serving(knows_sorry) as server:
        _, [row] = label(server, [job])
        assert len(server.bodies) == len(requests_of(job, True)) == 4
    assert (row["text"], row["safety_rating"], row["detection_score"]) == ("the word sorry", 2, 1)
    assert row["prompt_tokens"] == 407


def test_a_failed_request_does_not_replace_an_earlier_label(reader: RunReader) -> None:
    [passages] = feature_passages(reader, [SORRY], shown=10, scored=40)
    with serving(lambda _: FAILS) as server:
        summary, saved = label(server, [Job(passages, earlier=True)])
    assert saved == []
    assert "the earlier label stays" in summary.problems[SORRY]


def test_a_feature_without_passages_for_a_score_says_so(reader: RunReader) -> None:
    with serving(judged(lambda body: numbers(passages_of(body), lambda _: True))) as server:
        _, saved = label(server, jobs(reader, ALWAYS))
    row = saved[-1]
    assert (row["detection_score"], row["fuzzing_score"], row["fuzzing_n"]) == (None, None, 0)
    assert "too few passages" in row["problem"]


def test_an_endpoint_that_cannot_be_used_stops_the_work(reader: RunReader) -> None:
    with serving(lambda _: (401, "{}", {})) as server, pytest.raises(EndpointError, match="refuses the key"):
        label(server, jobs(reader, SORRY, OFTEN, NOISE), concurrency=1)


def test_requests_are_counted_before_as_they_are_made(reader: RunReader) -> None:
    some = jobs(reader, SORRY, NOISE)
    with serving(knows_sorry) as server:
        label(server, some)
        planned = [json.dumps(messages[0]) for job in some for messages in requests_of(job, True)]
        made = [json.dumps(body["messages"][0]) for body in server.bodies]
    assert sorted(planned) == sorted(made)


def test_score_needs_enough_of_both_kinds() -> None:
    truth = np.array([True] * 4 + [False] * 30)
    assert score_of(truth, truth, 5) == Score(n=34)
    assert score_of(truth, truth, 4).value == 1
