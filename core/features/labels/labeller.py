"""Labels features through an endpoint and tests each label; every answer is handed over when it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from core.features.labels import prompts
from core.features.labels.accuracy import Score, score_of
from core.features.labels.endpoint import Endpoint, Reply
from core.features.labels.passages import LEAST_SHOWN, FeaturePassages, Passage
from core.features.labels.replies import ReplyError, read_label, read_numbers
from core.progress import Task

PASSAGES_A_REQUEST = 20
LEAST_JUDGED = 5
"""Judged passages of either kind that a score needs at least."""
JUDGES = {"detection": prompts.DETECTION, "fuzzing": prompts.FUZZING}

Save = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """One feature to be done.

    Attributes:
        text: its label from this model where it has one already and only the scores are missing.
        kept: the stored columns of that label.
        earlier: there is a label that is asked for again; a request that fails does not replace it.
    """

    passages: FeaturePassages
    text: str | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    earlier: bool = False


@dataclass
class Summary:
    """What labelling ended with.

    Attributes:
        labelled: features with a description.
        rated: features with a safety rating.
        scored: features with a detection score.
        problems: {feature: why something is missing}.
        requests: requests asked.
        prompt_tokens, completion_tokens: as counted by the server.
        uncounted: replies for which the server gave no count.
    """

    labelled: int = 0
    rated: int = 0
    scored: int = 0
    problems: dict[int, str] = field(default_factory=dict)
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0


def requests_of(job: Job, score: bool) -> list[prompts.Messages]:
    """Every request a feature takes; a label that is not known yet is stood for by one of ordinary length."""
    found = [] if job.text else [prompts.label_messages(job.passages.shown)]
    for kind, system in JUDGES.items() if score else ():
        label = job.text or "x " * 15
        found += [prompts.judge_messages(system, label, part) for part in _parts(getattr(job.passages, kind))]
    return found


async def label_features(jobs: Sequence[Job], endpoint: Endpoint, save: Save, bar: Task, *, score: bool) -> Summary:
    """Labels every feature, tests its label, and calls `save` with what is known whenever more is.

    Args:
        save: takes columns of the table `label` of the review store.
        score: test the labels.

    Raises:
        EndpointError: the endpoint cannot be used; what was saved before stays.
    """
    summary = Summary()

    async def one(job: Job) -> None:
        row = await _label(job, endpoint, save, summary, score=score)
        summary.labelled += row["text"] is not None
        summary.rated += row.get("safety_rating") is not None
        summary.scored += row.get("detection_score") is not None
        if row["problem"]:
            summary.problems[job.passages.feature] = row["problem"]
        bar.advance()

    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(one(job))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        summary.requests = endpoint.requests
    return summary


async def _label(job: Job, endpoint: Endpoint, save: Save, summary: Summary, *, score: bool) -> dict[str, Any]:
    """One feature from its passages to its scores; returns the row as it was saved last."""
    used = _Used(summary, job.kept)
    row: dict[str, Any] = {"feature_id": job.passages.feature, **job.kept}
    if job.text is None:
        reply = await endpoint.ask(prompts.label_messages(job.passages.shown), "label", prompts.LABEL_SCHEMA)
        used.count(reply)
        found = read_label(reply.content or "")
        problems = (reply.problem,) if reply.problem else found.problems
        row |= {
            "text": found.text,
            "safety_rating": found.safety_rating,
            "monosemanticity": found.monosemanticity,
            "problem": _joined(problems),
            **used.columns(),
        }
        if job.earlier and not reply.answered:
            return row | {"problem": f"{reply.problem}; the earlier label stays"}
        save(row)
    if score and row["text"] is not None:
        row |= await _scores(row["text"], job.passages, endpoint, used, row["problem"])
        row |= used.columns()
        save(row)
    return row


async def _scores(
    label: str, passages: FeaturePassages, endpoint: Endpoint, used: _Used, problem: str | None
) -> dict[str, Any]:
    """Both scores of a label as columns, and what is missing of them."""
    columns: dict[str, Any] = {}
    problems = [problem] if problem else []
    judged = [_judge(label, kind, getattr(passages, kind), endpoint, used) for kind in JUDGES]
    for kind, (score, why) in zip(JUDGES, await asyncio.gather(*judged), strict=True):
        columns |= score.columns(kind)
        problems += [f"{kind}: {why}"] if why else []
    return {**columns, "problem": _joined(problems)}


async def _judge(
    label: str, kind: str, passages: Sequence[Passage], endpoint: Endpoint, used: _Used
) -> tuple[Score, str | None]:
    """One score. Passages without a usable answer are missing from it; where a request failed and no score came out, its
    n stays NULL, so that the next run asks again."""

    async def part(some: Sequence[Passage]) -> tuple[Reply, set[int] | None, str | None]:
        messages = prompts.judge_messages(JUDGES[kind], label, some)
        reply = await endpoint.ask(messages, "numbers", prompts.NUMBERS_SCHEMA)
        used.count(reply)
        if reply.content is None:
            return reply, None, reply.problem
        try:
            return reply, read_numbers(reply.content, len(some)), None
        except ReplyError as error:
            return reply, None, str(error)

    truth, said, lost, failed, why = [], [], 0, False, None
    parts = _parts(passages)
    for some, (reply, numbers, problem) in zip(parts, await asyncio.gather(*map(part, parts)), strict=True):
        if numbers is None:
            lost, failed, why = lost + len(some), failed or not reply.answered, why or problem
            continue
        truth += [one.truth for one in some]
        said += [number in numbers for number in range(1, len(some) + 1)]
    score = score_of(np.array(truth, bool), np.array(said, bool), LEAST_JUDGED)
    if score.value is None and failed:
        score = Score()
    if lost:
        return score, f"{lost} of {len(passages)} passages without a usable answer ({why})"
    return (
        score,
        None if score.value is not None else "too few passages of either kind in the other half of the prompts",
    )


class _Used:
    """Adds up the tokens of one feature and of all; a feature's sum is missing where one reply gave no count."""

    def __init__(self, summary: Summary, kept: dict[str, Any]) -> None:
        self.summary = summary
        self.prompt: int | None = kept.get("prompt_tokens", 0)
        self.completion: int | None = kept.get("completion_tokens", 0)

    def count(self, reply: Reply) -> None:
        if not reply.answered:
            return
        prompt, completion = reply.prompt_tokens, reply.completion_tokens
        self.summary.prompt_tokens += prompt or 0
        self.summary.completion_tokens += completion or 0
        self.summary.uncounted += prompt is None or completion is None
        self.prompt = None if self.prompt is None or prompt is None else self.prompt + prompt
        self.completion = None if self.completion is None or completion is None else self.completion + completion

    def columns(self) -> dict[str, int | None]:
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion}


def can_label(passages: FeaturePassages) -> bool:
    """Whether there is enough to show."""
    return len(passages.shown) >= LEAST_SHOWN


def _parts(passages: Sequence[Passage]) -> list[Sequence[Passage]]:
    """Passages in requests of about equal size."""
    n = -(-len(passages) // PASSAGES_A_REQUEST)
    cuts = [round(i * len(passages) / n) for i in range(n + 1)] if n else []
    return [passages[a:b] for a, b in pairwise(cuts)]


def _joined(problems: Sequence[str]) -> str | None:
    return "; ".join(problems) or None
