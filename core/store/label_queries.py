"""What labelling asks of a run: where features are active, their stored passages, and the texts these come from."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import polars as pl


def pair_prompts(cursor: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """pair_id and prompt_id of every pair, in order."""
    return cursor.sql("SELECT pair_id, prompt_id FROM pair ORDER BY pair_index").pl()


def response_pairs(cursor: duckdb.DuckDBPyConnection) -> pl.Series:
    """The pair_id of every answer, in order of response_id."""
    return cursor.sql("SELECT pair_id FROM response ORDER BY response_id").pl()["pair_id"]


def strong_contexts(cursor: duckdb.DuckDBPyConnection, features: Sequence[int]) -> pl.DataFrame:
    """Passages in which these features are active, each feature's strongest first.

    Returns:
        feature_id, response_id, start, peak, tokens, values: of the bands 'top' and 'q4' to 'q1', in this order.
    """
    return cursor.sql(
        """
        SELECT feature_id, response_id, start, peak, tokens, "values" FROM context
        WHERE feature_id IN (SELECT unnest($ids)) AND band IN ('top', 'q4', 'q3', 'q2', 'q1')
        ORDER BY feature_id, band DESC, rank
        """,  # 'top' > 'q4' > .. > 'q1'
        params={"ids": _ids(features)},
    ).pl()


def active_responses(cursor: duckdb.DuckDBPyConnection, features: Sequence[int]) -> pl.DataFrame:
    """The answers in which these features are active: feature_id, response_id, ordered by both."""
    return cursor.sql(
        """
        SELECT feature_id, response_id FROM activation_by_feature
        WHERE feature_id IN (SELECT unnest($ids)) ORDER BY feature_id, response_id
        """,
        params={"ids": _ids(features)},
    ).pl()


def answer_texts(cursor: duckdb.DuckDBPyConnection, responses: Sequence[int]) -> dict[int, str]:
    """The text of some answers by response_id."""
    rows = cursor.sql(
        "SELECT response_id, text FROM response WHERE response_id IN (SELECT unnest($ids))",
        params={"ids": _ids(responses)},
    ).fetchall()
    return dict(rows)


def _ids(values: Sequence[int]) -> list[int]:
    return [int(value) for value in values]
