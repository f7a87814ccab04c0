"""What a steering does to pairs: those that change sides, and the domains whose accuracy changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import param
from panel.custom import JSComponent

from core.evaluate.specificity import Specificity, SteeringData
from core.store import pair_queries
from core.store.reader import RunReader
from dashboard.escape import shorten, signed
from dashboard.parts.impact_curve import points_text
from dashboard.parts.steering_effect import points_span
from dashboard.theme import script, sheet

UNDER_HAND, AT_REST = 12, 200
"""Pairs listed while a slider moves, and when it rests."""


class SteeringPairs(JSComponent):
    """Draws what `pairs_content` returns, in place; `selected` marks a pair of the list."""

    content = param.String("{}", doc="What it draws, as JSON: one string is quicker on its way than a tree of values.")
    selected = param.String("", doc="pair_id of the marked pair.")

    _esm = script("steering_pairs")
    _stylesheets: ClassVar[list[str]] = [sheet("parts"), sheet("steering")]


@dataclass(frozen=True)
class PairNames:
    """How pairs are called in lists, by pair_index: read once for a run."""

    ids: list[str]
    domains: list[str]
    texts: list[str]


@lru_cache(maxsize=4)
def pair_names(reader: RunReader) -> PairNames:
    """Names of every pair of a run."""
    with reader.cursor() as cursor:
        rows = pair_queries.matching_pairs(cursor, pair_queries.PairFilter())
    domains = [shorten(domain, 30) for domain in rows["domain"].fill_null("")]
    return PairNames(rows["pair_id"].to_list(), domains, [shorten(text, 110) for text in rows["snippet"].fill_null("")])


def flips_of(data: SteeringData, after: np.ndarray, result: Specificity) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs that change sides, those whose margin changes most first.

    Returns:
        pair_index int64 [n], margin before and after float64 [n]: lowest chosen minus highest rejected reward.
    """
    every = data.pairs_of("held-out")
    turned = np.sort(np.concatenate([result.fixed, result.broken]))
    at = np.searchsorted(every.pairs, turned)
    was, now = (_margins(rewards, every.order, every.starts)[at] for rewards in (data.rewards, after))
    order = np.argsort(-np.abs(now - was), kind="stable")
    return turned[order], was[order], now[order]


def _margins(rewards: np.ndarray, order: np.ndarray, starts: np.ndarray) -> np.ndarray:
    ordered = rewards[order]
    lowest, highest = np.minimum.reduceat(ordered, starts)[0::2], np.maximum.reduceat(ordered, starts)[1::2]
    return np.asarray(lowest - highest)


def pairs_content(
    names: PairNames,
    flips: tuple[np.ndarray, np.ndarray, np.ndarray],
    result: Specificity,
    link: Callable[[str], str],
    most: int,
) -> dict[str, Any]:
    """The lists, as JSON.

    Args:
        flips: from `flips_of`.
        link: the href that opens a pair, by pair_id.
        most: pairs listed.
    """
    fixed = set(result.fixed.tolist())
    rows = [
        {
            "kind": "fixed" if index in fixed else "broken",
            "pair": names.ids[index],
            "index": index,
            "domain": names.domains[index],
            "text": names.texts[index],
            "margin": f"{signed(was, 2)} → {signed(now, 2)}",
            "href": link(names.ids[index]),
        }
        for index, was, now in zip(*(part[:most].tolist() for part in flips), strict=True)
    ]
    n, hidden = result.accuracy.n, len(flips[0]) - len(rows)
    counts = [["fixed", f"{len(result.fixed):,} fixed"], ["broken", f"{len(result.broken):,} broken"]]
    return {
        "flips": rows,
        "counts": [*counts, ["rs-muted", f"of {n:,} held-out pairs · margin before → after"]],
        "rest": f"{hidden:,} more with smaller changes of the margin."
        if hidden
        else ""
        if rows
        else "No pair changes sides.",
        **_domains(result),
    }


def _domains(result: Specificity) -> dict[str, Any]:
    domains = sorted(result.domains.iter_rows(named=True), key=lambda row: (-row["n"], row["domain"]))
    rows = [
        {
            "name": row["domain"],
            "help": f"{row['domain']}: {row['n']:,} held-out pairs of {row['n_prompts']:,} prompts",
            "n": f"{row['n']:,}",
            "before": f"{100 * row['before']:.1f} %",
            "after": f"{100 * row['after']:.1f} %",
            "change": points_text(row["change"]).removesuffix(" pts"),
            "interval": points_span(row["low"], row["high"]),
            "word": domain_word(row["harmed"], row["low"]),
        }
        for row in domains
    ]
    n = sum(row["harmed"] is True for row in domains)
    return {
        "domains": rows,
        "domains_title": f"Accuracy by domain: {n or 'none'} of {len(rows):,} harmed",
        "domains_note": "Harmed: the 95 % interval of the change, over prompts, lies below 0. Many domains are looked at, so one "
        "may be called harmed by chance.",
    }


def domain_word(harmed: bool | None, low: float | None) -> str:
    """What is said of a domain besides its figures."""
    if harmed is None:
        return "too few"
    return "harmed" if harmed else "improved" if low is not None and low > 0 else ""
