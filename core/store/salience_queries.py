"""The dashboard's questions about the table `salience`; with the writer and reader the only place that speaks SQL about it."""

from __future__ import annotations

import duckdb
import polars as pl

SALIENCE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "feature_id": pl.UInt32,
    "slice": pl.String,
    "pooling": pl.String,
    "n_pairs": pl.UInt32,
    "n_prompts": pl.UInt32,
    "n_active": pl.UInt32,
    "chosen_sum": pl.Float64,
    "rejected_sum": pl.Float64,
    "s": pl.Float64,
    "effect": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "effect_size": pl.Float64,
    "p": pl.Float64,
    "q": pl.Float64,
    "p_family": pl.Float64,
    "effect_length_adjusted": pl.Float64,
    "adjusted_low": pl.Float64,
    "adjusted_high": pl.Float64,
    "p_adjusted": pl.Float64,
    "q_adjusted": pl.Float64,
    "auc": pl.Float64,
    "auc_low": pl.Float64,
    "auc_high": pl.Float64,
    "effect_first": pl.Float64,
    "effect_second": pl.Float64,
    "replication": pl.String,
}
"""The columns of the table `salience`, as in schema.sql."""
SIGNIFICANT = 0.05
"""Features with q at most this count as significant."""

_COLUMN = "CASE WHEN slice = 'all' THEN 'all' ELSE split_part(slice, '=', 1) END"


def _table(cursor: duckdb.DuckDBPyConnection) -> str:
    """`salience`, or an empty table of its columns where the run was built by a version that had others."""
    rows = cursor.execute("SELECT column_name FROM duckdb_columns() WHERE table_name = 'salience'").fetchall()
    if {row[0] for row in rows} >= set(SALIENCE_SCHEMA):
        return "salience"
    kinds = {pl.UInt32: "UINTEGER", pl.Float64: "DOUBLE", pl.String: "VARCHAR"}
    nothing = ", ".join(f'NULL::{kinds[kind]} AS "{name}"' for name, kind in SALIENCE_SCHEMA.items())  # type: ignore[index]
    return f"(SELECT {nothing} WHERE false)"


def slices(cursor: duckdb.DuckDBPyConnection, pooling: str) -> pl.DataFrame:
    """The slices of a pooling: slice, column, value ('' for 'all'), n_pairs, n_prompts, n_tested, n_significant.

    'all' comes first, then split, domain and category, then label columns by name; larger slices of a column first.
    """
    return cursor.sql(
        f"""
        WITH counted AS (
            SELECT slice, {_COLUMN} AS "column", any_value(n_pairs) AS n_pairs, any_value(n_prompts) AS n_prompts,
                   count(p) AS n_tested, count(*) FILTER (q <= {SIGNIFICANT}) AS n_significant
            FROM {_table(cursor)} WHERE pooling = $pooling GROUP BY slice
        )
        SELECT slice, "column", CASE WHEN slice = 'all' THEN '' ELSE substr(slice, length("column") + 2) END AS "value",
               n_pairs, n_prompts, n_tested, n_significant
        FROM counted
        ORDER BY CASE "column" WHEN 'all' THEN 0 WHEN 'split' THEN 1 WHEN 'domain' THEN 2 WHEN 'category' THEN 3
                 ELSE 4 END, "column", n_pairs DESC, slice
        """,
        params={"pooling": pooling},
    ).pl()


def salience_rows(cursor: duckdb.DuckDBPyConnection, slice: str, pooling: str) -> pl.DataFrame:
    """The rows of one slice and pooling, ordered by feature."""
    return cursor.sql(
        f"SELECT * FROM {_table(cursor)} WHERE slice = $slice AND pooling = $pooling ORDER BY feature_id",
        params={"slice": slice, "pooling": pooling},
    ).pl()


def feature_salience(cursor: duckdb.DuckDBPyConnection, feature_id: int) -> pl.DataFrame:
    """Every row of one feature: 'all' first, then by slice and pooling."""
    return cursor.sql(
        f"SELECT * FROM {_table(cursor)} WHERE feature_id = $id ORDER BY slice <> 'all', slice, pooling",
        params={"id": feature_id},
    ).pl()


def sign_changes(cursor: duckdb.DuckDBPyConnection, pooling: str) -> pl.DataFrame:
    """Features that speak for the chosen answer in one slice and against it in another slice of the same column.

    Both are significant (q <= 0.05). Of several slices the one with the lowest q is given, larger effects first among
    equals. The most certain changes come first (by the larger of the two q, then by the smaller effect size).

    Returns:
        feature_id, column, slice_up, effect_size_up, q_up, slice_down, effect_size_down, q_down.
    """
    return cursor.sql(
        f"""
        WITH significant AS (
            SELECT feature_id, slice, {_COLUMN} AS "column", effect_size, q FROM {_table(cursor)}
            WHERE pooling = $pooling AND q <= {SIGNIFICANT} AND effect_size <> 0 AND slice <> 'all'
        ),
        best AS (
            SELECT * FROM significant QUALIFY row_number() OVER (
                PARTITION BY feature_id, "column", effect_size > 0 ORDER BY q, abs(effect_size) DESC, slice
            ) = 1
        )
        SELECT up.feature_id, up."column", up.slice AS slice_up, up.effect_size AS effect_size_up, up.q AS q_up,
               down.slice AS slice_down, down.effect_size AS effect_size_down, down.q AS q_down
        FROM best up JOIN best down ON up.feature_id = down.feature_id AND up."column" = down."column"
        WHERE up.effect_size > 0 AND down.effect_size < 0
        ORDER BY greatest(q_up, q_down), least(effect_size_up, -effect_size_down) DESC, up.feature_id, up."column"
        """,
        params={"pooling": pooling},
    ).pl()
