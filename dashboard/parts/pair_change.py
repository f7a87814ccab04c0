"""Why a pair stands where it does in a plan, and what the plan does to it: figures and escaped words. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from core.store.sets import FeatureSet
from dashboard.escape import MISSING, esc, figure, known, shorten, signed
from dashboard.parts.aligned import aligned

SHOWN_PARTS = 6


@dataclass(frozen=True)
class ScorePart:
    """What one feature of the set adds to a pair score.

    Attributes:
        feature, sign: the feature, 1 for S+ and -1 for S-.
        chosen, rejected: its signed part of g(chosen) and of g(rejected), activation units.
    """

    feature: int
    sign: int
    chosen: float
    rejected: float

    @property
    def difference(self) -> float:
        return self.chosen - self.rejected


def score_parts(
    activations: pl.DataFrame, answers: Mapping[str, Sequence[Mapping[str, Any]]], one: FeatureSet
) -> list[ScorePart]:
    """The pair score g(chosen) - g(rejected) split by feature, largest |difference| first; their sum is the score.

    g is SAFER's (section 3): the set's positive activations summed over the sentence-boundary tokens of an answer, S+
    minus S-, divided by the number of these tokens; several answers of a side count by their mean.

    Args:
        activations: the pair's rows of `activation` (response_id, feature_id, boundary_sum).
        answers: for each side its rows of `response` (response_id, n_boundary).
    """
    members = pl.DataFrame({"feature_id": list(one.features)}, schema={"feature_id": pl.UInt32})
    rows = activations.join(members, on="feature_id", how="semi").select("response_id", "feature_id", "boundary_sum")
    sums = {(response, feature): value for response, feature, value in rows.iter_rows()}
    parts = []
    for feature in {feature for _, feature in sums}:
        sides = {
            side: one.sign(feature)
            * float(
                np.mean(
                    [sums.get((row["response_id"], feature), 0.0) / max(row["n_boundary"], 1) for row in rows_of_side]
                )
            )
            for side, rows_of_side in answers.items()
        }
        if sides["chosen"] or sides["rejected"]:
            parts.append(ScorePart(feature, one.sign(feature), sides["chosen"], sides["rejected"]))
    return sorted(parts, key=lambda part: (-abs(part.difference), part.feature))


def set_values(features: np.ndarray, values: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """What the set sees in each token: positive activations of S+ minus those of S-, float64 [n_tokens].

    Args:
        features, values: [n_tokens, k], the active features of each token and their activations.
        signs: float64 [M], +1, -1 or 0.
    """
    return (signs[features.astype(np.int64)] * np.maximum(values.astype(np.float64), 0)).sum(axis=1)


def place_html(rank: int | None, n_changed: int, n_ranked: int, direction: str, action: str) -> str:
    """Where the pair stands in the plan's order and what happens to it."""
    if rank is None:
        return (
            '<div class="verdictline"><b>Not changed.</b><span class="rs-muted">Plans change training pairs only, and this '
            "is not one they rank.</span></div>"
        )
    order = f"rank {rank:,} of {n_ranked:,}"
    if rank > n_changed:
        return f'<div class="verdictline"><b>Not changed at this ratio</b><span class="rs-muted">{order}; the plan stops at {n_changed:,}</span></div>'
    what = {
        "flip": "Flipped: the rejected answer becomes the chosen one",
        "drop": "Dropped: left out of the training pairs",
    }[action]
    return f'<div class="verdictline"><b>{what}</b><span class="rs-muted">{order}, {direction}</span></div>'


def set_why_html(
    parts: Sequence[ScorePart],
    score: float | None,
    names: Mapping[int, str | None],
    link: Callable[[int], str],
    what: str,
) -> str:
    """The pair score by feature as a table that adds up.

    Args:
        score: the score the plan ranked it by, None or NaN when it has none.
        names: label by feature; link: the href of a feature's card; what: the order in words.
    """
    total = sum(part.difference for part in parts)
    number = aligned([*(part.chosen for part in parts), *(part.rejected for part in parts), total])
    shown, rest = parts[:SHOWN_PARTS], parts[SHOWN_PARTS:]
    rows = [
        f'<tr><td class="name"><a href="{esc(link(part.feature))}" title="{esc(names.get(part.feature) or "no label")}">'
        f"<b>{part.feature}</b> {esc(shorten(names.get(part.feature) or 'no label', 60))}</a></td>"
        f"<td>{'S+' if part.sign > 0 else 'S−'}</td>{_cells(number, part.chosen, part.rejected, part.difference)}</tr>"
        for part in shown
    ]
    if rest:
        sums = [sum(getattr(part, name) for part in rest) for name in ("chosen", "rejected", "difference")]
        rows.append(f'<tr><td class="name rs-muted">other ({len(rest)})</td><td></td>{_cells(number, *sums)}</tr>')
    chosen, rejected = (sum(getattr(part, name) for part in parts) for name in ("chosen", "rejected"))
    rows.append(f'<tr class="sum"><td>pair score</td><td></td>{_cells(number, chosen, rejected, total)}</tr>')
    if not parts:
        says = "None of the set's features is active at a sentence end of these answers, so the pair score is 0."
        return f'<div class="why">{_order(what)}<p>{says}</p></div>'
    check = ""
    if known(score) and not math.isclose(score, total, rel_tol=1e-4, abs_tol=1e-6):  # type: ignore[arg-type]
        check = f'<p class="rs-failed">These parts sum to {signed(total)}, the plan ranked it by {figure(score, "signed")}.</p>'
    heads = "<tr><th>feature of the set</th><th></th><th class='num'>chosen</th><th class='num'>rejected</th><th class='num'>difference</th></tr>"
    return f'<div class="why">{_order(what)}<table><thead>{heads}</thead><tbody>{"".join(rows)}</tbody></table>{check}</div>'


def other_why_html(strategy: str, score: float | None, what: str, lengths: Mapping[str, Sequence[int]]) -> str:
    """The figure by which a baseline ranks this pair, in words.

    Args:
        lengths: tokens of each chosen and each rejected answer.
    """
    if strategy == "random":
        says = "Drawn by lot: nothing about the pair put it here."
    elif not known(score):
        says = f"This pair has no figure to rank by: {MISSING}"
    elif strategy == "margin":
        agrees = "the model prefers the chosen answer" if score > 0 else "the model does not prefer the chosen answer"  # type: ignore[operator]
        says = f"Reward margin <b>{figure(score, 'signed')}</b>: {agrees}."
    elif strategy == "loss":
        says = f"A head fitted without this pair gives its label a chance of <b>{figure(score, 'percent')}</b>."
    else:
        chosen, rejected = (" and ".join(f"{n:,}" for n in lengths[side]) for side in ("chosen", "rejected"))
        says = f"Chosen <b>{chosen}</b> tokens, rejected <b>{rejected}</b>: log ratio {figure(score, 'signed')}."
    return f'<div class="why">{_order(what)}<p>{says}</p></div>'


def _order(what: str) -> str:
    return f'<p class="rs-small rs-muted">Ranked by: {esc(what)}</p>' if what else ""


def _cells(number: Callable[[float], str], *values: float) -> str:
    return "".join(f'<td class="num">{number(value)}</td>' for value in values)
