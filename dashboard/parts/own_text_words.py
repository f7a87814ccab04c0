"""What stands around typed text: where the model stands, what was cut, and the waterfall of one answer. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from core.rewards.decomposition import SUM_TOLERANCE
from dashboard.escape import esc, plain, shorten, signed
from dashboard.parts.aligned import aligned
from dashboard.parts.own_text_model import Draft
from dashboard.parts.own_text_ranks import Decider, Place, steered_factors
from dashboard.parts.tokens import plain_html
from dashboard.parts.waterfall import CUT
from dashboard.scoring import ModelState
from dashboard.scoring_process import ScoredText

WITHOUT = (
    "The run can be browsed and steered without it, and its own pairs can be ranked here (the button under the boxes fills "
    "one in); only new text cannot be scored."
)
SHOWN = 12
"""Features a waterfall lists by themselves."""


def status_html(state: ModelState, request: str, ahead: int, problem: str, restarted: bool, done: str) -> str:
    """The state of the model and of the request, as one line.

    Args:
        request: '', 'waiting' or 'scoring'; ahead: jobs of others before it.
        problem: why the last request failed; restarted: the process had stopped before it.
        done: what was scored last, in words.
    """
    lines = []
    if state.state == "loading":
        lines.append(_bar(f"{state.step or 'waiting to start'}…", state.share, "Reading the model"))
    if request == "waiting" and state.state != "loading":
        others = f"queued behind {ahead} other{'' if ahead == 1 else 's'}" if ahead else "about to start"
        lines.append(_bar(f"{others}…", None, "Waiting to score"))
    elif request == "waiting":
        lines.append('<div class="line rs-small rs-muted">Your text is scored as soon as the model is there.</div>')
    elif request == "scoring":
        lines.append(_bar("scoring…", None, "Scoring"))
    if state.state == "failed" and state.crashed:
        lines.append(f'<div class="rs-failed" role="alert">{esc(state.problem)} Score again to start a new one.</div>')
    elif state.state == "failed":
        lines.append(
            f'<div class="rs-failed" role="alert"><b>No model available.</b> {esc(state.problem)}<p>{WITHOUT}</p></div>'
        )
    elif problem:
        lines.append(f'<div class="rs-failed" role="alert">{esc(problem)}</div>')
    if restarted:
        lines.append(
            '<div class="line rs-small rs-muted">The process that scores had stopped; it was started again.</div>'
        )
    if not done and not lines and state.held is not None:
        done = f"{state.held.about}, ready"
        if state.held.seconds:
            done += f" (read in {plain(state.held.seconds, 2)} s)"
    if done and not request:
        lines.append(f'<div class="line rs-small rs-muted">{esc(done)}</div>')
    return "".join(lines)


def _bar(text: str, share: float | None, label: str) -> str:
    """A progress bar; without a share, one whose end is not known."""
    if share is None:
        inner, value = '<span class="going"></span>', ""
    else:
        inner, value = f'<span style="width:{100 * share:.0f}%"></span>', f' aria-valuenow="{100 * share:.0f}"'
    return (
        f'<div class="line working"><span class="track" role="progressbar" aria-label="{esc(label)}" aria-valuemin="0" '
        f'aria-valuemax="100"{value}>{inner}</span><span><b>{esc(label)}:</b> {esc(text)}</span></div>'
    )


def done_words(n: int, seconds: float, about: str) -> str:
    """What was scored last."""
    return f"{n} answer{'' if n == 1 else 's'} scored in {plain(seconds, 2)} s by {about}."


def answer_html(answer: ScoredText, draft: Draft, place: Place, steered: bool) -> str:
    """The heading of the open answer."""
    reward = f'<span class="big">r = {signed(place.before, 4)}</span>'
    if steered:
        reward += f'<span class="big">→ {signed(place.after, 4)} steered</span>'
    note = f' <span class="rs-tag">{esc(draft.note)}</span>' if draft.note else ""
    return (
        f'<div class="head"><span class="word">ANSWER {place.index + 1}</span>{note}{reward}'
        f'<span class="rs-muted">{answer.n_read:,} tokens</span></div>'
    )


def cut_html(answer: ScoredText, limit: int) -> str:
    """What the model did not read of an answer and its prompt; '' when it read everything."""
    parts = []
    written = answer.char[answer.char[:, 1] > answer.char[:, 0]]  # without the end-of-turn token
    rest = answer.text[int(written.max(initial=0)) :]
    if answer.prompt_dropped:
        parts.append(f"the first {answer.prompt_dropped:,} of {answer.n_prompt:,} tokens of the prompt")
    if answer.n_read < answer.n_tokens:
        parts.append(f"the last {answer.n_tokens - answer.n_read:,} of {answer.n_tokens:,} tokens of the answer")
    elif rest.strip():
        parts.append(f"the last {len(rest):,} characters of the answer")
    if not parts:
        return ""
    shown = f" {plain_html(rest[:300])}{'…' if len(rest) > 300 else ''}" if rest.strip() else ""
    return (
        f'<div class="cutoff"><b>Cut:</b> the model reads at most {limit:,} tokens. It did not read '
        f"{' and '.join(parts)}.{shown}</div>"
    )


def waterfall_of(
    answer: ScoredText,
    multipliers: Mapping[int, float],
    names: Callable[[list[int]], Mapping[int, str | None]],
    link: Callable[[int], str],
    steer: Callable[[int], str],
    scale: float,
) -> dict[str, Any]:
    """What the features of one answer add to its reward, as content of a Waterfall.

    Unsteered: each contribution, and the running sum that ends at the reward. Steered: before, after, and the running
    sum that ends at the steered reward.

    Args:
        names: the labels of some features.
        link, steer: the hrefs of a feature's card and of a link that puts it on the sliders.
        scale: the run's reward scale, reward units (errors are judged in it).
    """
    before = answer.contributions
    factors = steered_factors(answer.features, multipliers)
    after = before * factors
    steered = bool(np.any(factors != 1))
    order = np.lexsort((answer.features, -np.maximum(np.abs(before), np.abs(after))))
    top, rest = order[:SHOWN], order[SHOWN:]
    sides = [before, after] if steered else [before]
    write = aligned([float(side[i]) for side in sides for i in top] or [answer.reward])
    longest = max((abs(float(side[i])) for side in sides for i in top), default=0.0)
    whole = max([longest, *(abs(float(side.sum())) for side in sides)])
    limit = (min(whole, CUT * longest) if longest > 0 else whole) or 1.0

    def side_cell(value: float, why: str) -> dict[str, Any]:
        cut = abs(value) > limit
        end = max(-limit, min(limit, value))
        why += "; the bar is cut" if cut else ""
        return {"start": 0.0, "end": end, "text": write(value), "why": why, "cut": cut}

    def step_cell(level: float, value: float) -> dict[str, Any]:
        return {"start": level, "end": level + value, "text": write(level + value), "why": "sum so far", "cut": False}

    labels = names([int(answer.features[i]) for i in top])
    drawn: list[dict[str, Any]] = []
    level, levels = 0.0, [0.0]
    for i in top:
        feature, value = int(answer.features[i]), float(after[i])
        weight = float(before[i] / answer.pooled[i]) if answer.pooled[i] else 0.0
        why = f"activation {answer.pooled[i]:.4g} × weight {signed(weight, 4)}"
        cells = [side_cell(float(before[i]), why)]
        if steered:
            cells.append(side_cell(value, f"{why} × {plain(float(factors[i]))}"))
        cells.append(step_cell(level, value))
        level += value
        levels.append(level)
        drawn.append(
            {
                "feature": feature,
                "name": labels.get(feature) or "",
                "weight": f"w {signed(weight)}",
                "link": link(feature),
                "steer": steer(feature),
                "cells": cells,
            }
        )
    if len(rest):
        sums = [float(side[rest].sum()) for side in sides]
        cells = [side_cell(value, f"sum over {len(rest):,} features") for value in sums]
        cells.append(step_cell(level, sums[-1]))
        name = f"other ({len(rest):,} feature{'' if len(rest) == 1 else 's'})"
        drawn.append({"feature": None, "kind": "other", "name": name, "cells": cells})
        levels.append(level + sums[-1])
    totals = [float(side.sum()) for side in sides]
    cells = [side_cell(value, "sum over all features") for value in totals]
    cells.append({"start": 0.0, "end": totals[-1], "text": write(totals[-1]), "why": "the sum", "cut": False})
    drawn.append({"feature": None, "kind": "sum", "name": "sum = reward", "cells": cells})
    titles = ["As it is", "Steered"] if steered else ["Contribution"]
    columns = [{"title": title, "kind": "side", "low": -limit, "high": limit} for title in titles]
    state, sentence = sum_sentence(answer, scale)
    return {
        "caption": "Contributions to the reward by feature, largest first",
        "columns": [*columns, {"title": "Sum so far", "kind": "stack", "low": min(levels), "high": max(levels)}],
        "rows": drawn,
        "state": state,
        "sentence": sentence,
    }


def deciders_html(
    found: Sequence[Decider],
    names: Mapping[int, str | None],
    places: Sequence[Place],
    steer: Callable[[int], str],
    write: Callable[[float], str] = signed,
) -> str:
    """Features worth a slider, each as a link that puts it on one."""
    if not found:
        return ""
    if len(places) > 1:
        first, second = (f"answer {place.index + 1}" for place in places[:2])
        title = f"Parts {first} from {second} most:"
    else:
        title = "Counts most:"
    chips = []
    for one in found:
        label = names.get(one.feature)
        name = f"#{one.feature} {shorten(label, 34) if label else 'no label'}"
        why = f"Put feature {one.feature} on a slider; it adds {write(one.first)}"
        if len(places) > 1:
            why = f"Put feature {one.feature} on a slider; it adds {write(one.first)} to {first}, {write(one.second)} to {second}"
        swap = f'<span class="swap">{write(one.first - one.second)}</span>'
        if len(places) > 1 and one.swap is not None:
            swap += f'<span class="swap">· tie at × {plain(one.swap, 2)}</span>'
        chips.append(
            f'<a class="rs-chip" href="{esc(steer(one.feature))}" data-adds="{one.feature}:1" title="{esc(why)}"><span aria-hidden="true">+</span>'
            f"<b>{esc(name)}</b>{swap}</a>"
        )
    return f'<div class="deciders"><span class="title">{title}</span>{"".join(chips)}</div>'


def sum_sentence(answer: ScoredText, scale: float) -> tuple[str, str]:
    """Whether the contributions sum to the reward computed apart in float32: ('ok' or 'wrong', one sentence)."""
    error = abs(answer.model_reward - answer.reward)
    written = f"{error:.0e}".replace("e-0", "e-") if error else "0"
    if error <= SUM_TOLERANCE * scale:
        return "ok", f"contributions sum to the reward (error {written}): {signed(answer.reward, 6)}"
    return "wrong", (
        f"Contributions do not sum to the reward: error {written}, allowed {SUM_TOLERANCE * scale:.1g} "
        f"({signed(answer.reward, 6)}, computed apart {signed(answer.model_reward, 6)}). Do not rely on this "
        "decomposition; run `rewardscope doctor` on the run."
    )
