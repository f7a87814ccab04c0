"""The words around a pair as escaped HTML: verdict, labels, prompt and the headings of its answers. Pure functions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from dashboard.escape import MISSING, esc, known, shorten, signed
from dashboard.parts.tokens import plain_html, scale_legend
from dashboard.theme import sheet

LONG_PROMPT = 700
"""Characters from which a prompt is folded."""

SHOWN_LABELS = 8
LABEL_LENGTH = 80

PAIR_SHEETS = [sheet("parts"), sheet("pair")]


def wilson(successes: int, n: int) -> tuple[float, float] | None:
    """Wilson's 95 % interval of a proportion (Wilson 1927); None for n = 0."""
    if n == 0:
        return None
    z = 1.959963984540054
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def filter_summary(n: int, total: int, prompts: int, right: int | None, computed: int) -> str:
    """What a filter matches: pairs, prompts, and how often the model is right among them.

    Args:
        n, total: pairs matched and pairs in the run.
        prompts: distinct prompts among the matched.
        right, computed: pairs the model gets right (None = the filter asks for that already), of those with a margin.
    """
    shown = f"<b>{n:,}</b> of {total:,} pairs" if n != total else f"<b>all {total:,}</b> pairs"
    parts = [f"{shown}, {prompts:,} prompt{'' if prompts == 1 else 's'}"]
    interval = None if right is None else wilson(right, computed)
    if right is not None and interval is not None:
        low, high = (f"{100 * end:.1f}" for end in interval)
        parts.append(
            "<span title=\"Share of pairs whose chosen answer gets the higher reward; the 95 % interval is Wilson's, "
            'which takes pairs as independent">'
            f"model right in <b>{100 * right / computed:.1f} %</b> "
            f"({low}–{high}), n = {computed:,}</span>"
        )
    if computed < n:
        parts.append(f"{n - computed:,} without a margin")
    return f'<div class="line">{"".join(f"<span>{part}</span>" for part in parts)}</div>'


def title_html(pair: Mapping[str, Any]) -> str:
    """Which pair, whether the model agrees with the preference, the margin, and where the pair comes from."""
    margin = pair["margin"]
    if not known(margin):
        badge = '<span class="badge unknown">no margin computed</span>'
    elif margin > 0:
        badge = '<span class="badge right">model right</span>'
    else:
        badge = f'<span class="badge wrong">model wrong{" (tie)" if margin == 0 else ""}</span>'
    size = f'<span class="big">margin {signed(margin)}</span>' if known(margin) else ""
    if known(margin) and pair["n_responses"] > 2:
        size += f'<span class="rs-muted">lowest chosen − highest rejected of {pair["n_responses"]} answers</span>'
    places = [pair["domain"], pair["category"] or "no category", pair["source"], f"{pair['split']} split"]
    where = " · ".join(esc(str(place)) for place in places)
    name = f'<span class="big">{esc(shorten(pair["pair_id"], 48))}</span>'
    return f'<div class="line">{name}{badge}{size}<span class="rs-muted">{where}</span></div>'


def labels_html(pair: Mapping[str, Any]) -> str:
    """The source's other columns as small chips, what repeats the heading left out; many and missing ones are folded."""
    try:
        parsed = json.loads(pair["labels"])
    except (ValueError, RecursionError):
        return '<div class="line rs-muted">The labels of this pair cannot be read.</div>'
    if not isinstance(parsed, dict) or not parsed:
        return ""
    said = {pair[name] for name in ("pair_id", "source", "split", "domain", "category")} - {None}
    kept = {str(key): value for key, value in parsed.items() if not (isinstance(value, str) and value in said)}
    chips = [_chip(key, value) for key, value in sorted(kept.items(), key=_label_rank)]
    shown = min(SHOWN_LABELS, sum(value is not None for value in kept.values()))
    first = f'<div class="line">{"".join(chips[:shown])}</div>' if shown else ""
    if shown == len(chips):
        return first
    more = f"{len(chips) - shown} more label{'' if len(chips) - shown == 1 else 's'}"
    return f'{first}<details class="rs-small"><summary>{more}</summary><div class="line">{"".join(chips[shown:])}</div></details>'


def _label_rank(item: tuple[str, Any]) -> int:
    """Names and numbers first, then what is so, what is not so, what is not known."""
    value = item[1]
    if value is None:
        return 3
    if isinstance(value, bool):
        return 1 if value else 2
    return 0


def _label_text(value: Any) -> str:
    """A label as a person reads it."""
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_label_text(item) for item in value) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _chip(key: str, value: Any) -> str:
    text = _label_text(value)
    name, value_shown = (esc(shorten(part, LABEL_LENGTH)) for part in (key, text))
    return f'<span class="label" title="{esc(f"{key}: {text[:600]}")}"><b>{name}</b> {value_shown}</span>'


def prompt_html(prompt: str, messages: str) -> str:
    """The conversation before the answers, folded when it is long."""
    turns = _turns(messages)
    if len(turns) > 1:
        body = "".join(
            f'<div class="turn" dir="auto"><span class="who">{esc(role)}</span>{plain_html(content)}</div>'
            for role, content in turns
        )
    else:
        body = f'<div dir="auto">{plain_html(prompt)}</div>'
    text = f'<div class="prompt">{body}</div>'
    if len(prompt) <= LONG_PROMPT:
        return text
    opening = plain_html(shorten(prompt[:400], 200))
    more = f'<span class="more">all {len(prompt):,} characters</span>'
    return f"<details><summary>{opening} {more}</summary>{text}</details>"


def _turns(messages: str) -> list[tuple[str, str]]:
    try:
        parsed = json.loads(messages)
        return [(str(turn["role"]), str(turn["content"])) for turn in parsed]
    except (ValueError, TypeError, KeyError):
        return []


def answer_heading(side: str, response: Mapping[str, Any], position: int, count: int) -> str:
    """CHOSEN or REJECTED, the reward, the length; which of several when there are several."""
    which = f" {position + 1} of {count}" if count > 1 else ""
    reward = signed(response["reward"]) if known(response["reward"]) else MISSING
    return (
        f'<div class="head"><span class="word">{side.upper()}{which}</span>'
        f'<span class="big">r = {reward}</span>'
        f'<span class="rs-muted">{response["n_tokens"]:,} tokens</span></div>'
    )


def cutoff_html(rest: str) -> str:
    """What of an answer the model did not read, because it was longer than the run's limit."""
    if not rest.strip():
        return ""
    shown = rest if len(rest) <= 400 else rest[:400] + "…"
    told = f"<b>Cut here:</b> the model did not read the last {len(rest):,} characters."
    return f'<div class="cutoff">{told} {plain_html(shown)}</div>'


def total_legend(scale: float, basis: str, pooling: str) -> str:
    """The key to tokens coloured by what they add, and how tokens make the reward."""
    how = (
        "The reward is read at the last token only, so that token carries all of it."
        if pooling == "last"
        else "The reward is a mean over tokens: what the tokens add sums to it exactly."
    )
    key = scale_legend(scale, basis=basis, unit="what each token adds to the reward", signed=True)
    return f'{key}<div class="rs-small rs-muted">{how} Click a token to see its features.</div>'


def feature_html(row: Mapping[str, Any], active: Mapping[str, tuple[int, int]], href: str, steer: str = "") -> str:
    """The feature the tokens are coloured by, in one line.

    Args:
        row: its row of FeatureTable.frame.
        active: for each side, on how many of how many tokens it is active.
        href: a link to its card; steer: one that puts it on a slider, as HTML.
    """
    label = esc(shorten(row["label"], 90)) if row["label"] else "no label"
    counts = ", ".join(f"{n} of {total} {side} tokens" for side, (n, total) in active.items())
    return (
        f'<div class="line"><b>Feature {row["feature_id"]}</b><span>{label}</span>'
        f'<span class="rs-muted">w {signed(row["weight"])} (rank {row["weight_rank"]:,}); '
        f'active on {counts}</span><a href="{esc(href)}">open its card</a>{steer}</div>'
    )


def state_html(sentence: str, kind: str = "empty") -> str:
    """A view's state in one sentence: 'empty' (nothing here) or 'failed'."""
    role = ' role="alert"' if kind == "failed" else ""
    return f'<div class="rs-{kind}"{role}>{esc(sentence)}</div>'
