"""The dashboard's questions about pairs; with the writer and reader the only place that speaks SQL about them.

Each function takes a cursor of its own (a DuckDB connection refuses two threads at once) and returns a frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import duckdb
import polars as pl

Verdict = Literal["any", "right", "wrong"]

SNIPPET = 120
"""Characters of the prompt that a list row carries."""

FACETS = ("domain", "category", "source", "split")

_ORDERS = {
    "index": "pair_index",
    "margin": "margin ASC NULLS LAST, pair_index",
    "-margin": "margin DESC NULLS LAST, pair_index",
}


@dataclass(frozen=True)
class PairFilter:
    """Which pairs are listed; None, '' and 'any' leave a question open.

    Attributes:
        text: found, ignoring case, in the prompt or in any answer; matched literally.
        category: '' stands for pairs without a category.
        verdict: 'right' = margin above 0, 'wrong' = not above (a tie is wrong); pairs without a margin are neither.
        margin: (low, high), both included, None = open end.
    """

    text: str = ""
    domain: str | None = None
    category: str | None = None
    source: str | None = None
    split: str | None = None
    verdict: Verdict = "any"
    margin: tuple[float | None, float | None] = (None, None)

    @property
    def any_margin(self) -> PairFilter:
        """The same filter without its margin range: what the margin histogram shows."""
        return replace(self, margin=(None, None))


def matching_pairs(cursor: duckdb.DuckDBPyConnection, wanted: PairFilter, order: str = "index") -> pl.DataFrame:
    """The pairs a filter matches, with the first line of what they ask.

    Args:
        order: 'index' (file order), 'margin' (lowest first) or '-margin'; pairs without a margin come last.

    Returns:
        pair_index, pair_id, prompt_id, domain, category, source, split, margin (null = not computed), snippet.
    """
    where, params = _where(wanted)
    return cursor.sql(
        f"""
        SELECT pair_index, pair_id, prompt_id, domain, category, source, split, margin,
               left(prompt, {SNIPPET}) AS snippet
        FROM pair WHERE {where} ORDER BY {_ORDERS[order]}
        """,
        params=params,
    ).pl()


def margins(cursor: duckdb.DuckDBPyConnection, wanted: PairFilter) -> pl.DataFrame:
    """The margins of the pairs a filter matches: one column `margin`, null = not computed."""
    where, params = _where(wanted)
    return cursor.sql(f"SELECT margin FROM pair WHERE {where}", params=params).pl()


def facet_counts(cursor: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """How many pairs each value of domain, category, source and split has.

    Returns:
        facet, value ('' = no category), n; by facet, then most frequent first.
    """
    parts = [
        f"SELECT {i} AS place, '{facet}' AS facet, coalesce({facet}, '') AS value, count(*) AS n "
        "FROM pair GROUP BY value"
        for i, facet in enumerate(FACETS)
    ]
    return cursor.sql(f"SELECT facet, value, n FROM ({' UNION ALL '.join(parts)}) ORDER BY place, n DESC, value").pl()


def pair_row(cursor: duckdb.DuckDBPyConnection, pair_id: str) -> pl.DataFrame:
    """The `pair` row with this id: one row, or none when there is no such pair."""
    return cursor.sql("SELECT * FROM pair WHERE pair_id = ?", params=[pair_id]).pl()


def pair_responses(cursor: duckdb.DuckDBPyConnection, pair_index: int) -> pl.DataFrame:
    """The `response` rows of one pair, chosen first, then by rank."""
    return cursor.sql("SELECT * FROM response WHERE pair_index = ? ORDER BY response_id", params=[pair_index]).pl()


def response_activations(cursor: duckdb.DuckDBPyConnection, response_ids: list[int]) -> pl.DataFrame:
    """The `activation` rows of some answers: every feature active in them, ordered by response and feature."""
    marks = ", ".join("?" for _ in response_ids) or "NULL"
    return cursor.sql(
        f"SELECT * FROM activation WHERE response_id IN ({marks}) ORDER BY response_id, feature_id",
        params=[int(response) for response in response_ids],
    ).pl()


def all_rewards(cursor: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """The stored reward of every answer (column `reward`), in order of response_id."""
    return cursor.sql("SELECT reward FROM response ORDER BY response_id").pl()


def pair_facts(cursor: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """What slices are cut by, for every pair in order: pair_id, pair_index, prompt_id, split, domain, category, labels."""
    return cursor.sql(
        "SELECT pair_id, pair_index, prompt_id, split, domain, category, labels FROM pair ORDER BY pair_index"
    ).pl()


def answer_facts(cursor: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """Every answer without its text: response_id, pair_id, pair_index, side, rank, n_tokens, n_boundary, in order."""
    return cursor.sql(
        "SELECT response_id, pair_id, pair_index, side, rank, n_tokens, n_boundary FROM response ORDER BY response_id"
    ).pl()


def feature_differences(cursor: duckdb.DuckDBPyConnection, feature_id: int, pooling: str) -> pl.DataFrame:
    """How much more of a feature the chosen answers of a pair have than the rejected ones, for each pair where it is
    active in one of them.

    Args:
        pooling: 'last', 'mean', 'max' or 'boundary_sum'.

    Returns:
        pair_index, pair_id, domain, snippet, difference (mean over chosen minus mean over rejected answers); largest first.
    """
    if pooling not in ("last", "mean", "max", "boundary_sum"):
        raise ValueError(f"pooling {pooling!r}")
    value = f"coalesce(a.{pooling}, 0)"
    return cursor.sql(
        f"""
        WITH a AS (SELECT response_id, {pooling} FROM activation_by_feature WHERE feature_id = $id),
        touched AS (SELECT DISTINCT pair_index FROM response JOIN a USING (response_id)),
        differing AS (
            SELECT r.pair_index, avg({value}) FILTER (r.side = 'chosen') - avg({value}) FILTER (r.side = 'rejected') AS difference
            FROM response r JOIN touched USING (pair_index) LEFT JOIN a USING (response_id) GROUP BY r.pair_index
        )
        SELECT p.pair_index, p.pair_id, p.domain, left(p.prompt, {SNIPPET}) AS snippet, difference
        FROM differing JOIN pair p USING (pair_index) WHERE difference IS NOT NULL
        ORDER BY difference DESC, p.pair_index
        """,
        params={"id": feature_id},
    ).pl()


def _where(wanted: PairFilter) -> tuple[str, list[Any]]:
    """The filter as a condition with placeholders: values never become part of the statement."""
    parts: list[str] = []
    params: list[Any] = []

    def add(condition: str, *values: Any) -> None:
        parts.append(condition)
        params.extend(values)

    for facet in FACETS:
        value = getattr(wanted, facet)
        if value is not None:
            add(f"coalesce({facet}, '') = ?", value)
    if wanted.verdict != "any":
        add("margin > 0" if wanted.verdict == "right" else "margin <= 0")
    low, high = wanted.margin
    if low is not None:
        add("margin >= ?", low)
    if high is not None:
        add("margin <= ?", high)
    if text := wanted.text.strip():
        answers = "SELECT pair_index FROM response WHERE contains(lower(text), lower(?))"
        add(f"(contains(lower(prompt), lower(?)) OR pair_index IN ({answers}))", text, text)
    return " AND ".join(parts) or "true", params
