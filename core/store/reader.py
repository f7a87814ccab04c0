"""Opens a finished run for reading: one hardened read-only connection, a cursor for each call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

from core.errors import RunError
from core.store import feature_queries, salience_queries
from core.store.arrays import RunArrays, load_arrays
from core.store.feature_queries import BY_SIZE, FeatureFilter, FeatureTable
from core.store.manifest import Manifest, read_manifest

HARDENED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "threads": 2,
    "memory_limit": "1GB",
}
TABLES = (
    "pair",
    "response",
    "activation",
    "activation_by_feature",
    "feature",
    "context",
    "layout",
    "label",
    "evaluation",
)
SALIENCE_KEPT = 16
"""Slices of the table `salience` that an open run keeps in memory."""


@dataclass(frozen=True)
class FeatureCard:
    """Everything a feature's card shows.

    Attributes:
        figures: the feature's row of FeatureTable.frame.
        labels: every label (feature_queries.labels).
        histogram: (edges, counts) over active tokens, or None when not stored.
        bands: quantile intervals (feature_queries.bands).
        contexts: passages with their pairs (feature_queries.contexts).
        neighbours: kind, other_id, score, and the other's label and weight.
    """

    figures: dict[str, Any]
    labels: pl.DataFrame
    histogram: tuple[np.ndarray, np.ndarray] | None
    bands: pl.DataFrame
    contexts: pl.DataFrame
    neighbours: pl.DataFrame


class RunReader:
    """A finished run, read-only. The methods are queries without side effects; results are new frames.

    Attributes:
        folder: the run's folder.
        manifest: its manifest as it was when opened.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, connection: duckdb.DuckDBPyConnection, tables: set[str]
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._connection = connection
        self._tables = tables
        self._salience: dict[tuple[str, str], pl.DataFrame] = {}

    @classmethod
    def open(cls, folder: Path) -> RunReader:
        """Opens the database that the run's manifest names.

        Raises:
            RunError: no run, an unfinished one, or its database is missing or damaged.
        """
        manifest = read_manifest(folder)
        path = folder / manifest.database
        if Path(manifest.database).name != manifest.database or not path.is_file():
            raise RunError(
                f"{folder} names the database {manifest.database!r}, which is not there; build the run again."
            )
        try:
            connection = duckdb.connect(str(path), read_only=True, config=HARDENED)
            if not connection.execute("SELECT current_setting('lock_configuration')").fetchall()[0][0]:
                connection.execute("SET lock_configuration = true")  # once: every connection to a file shares it
            present = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        except duckdb.Error as error:
            raise RunError(f"{path} cannot be opened ({str(error).splitlines()[0]}); build the run again.") from None
        missing = [name for name in TABLES if name not in present]
        if missing:
            connection.close()
            raise RunError(f"{path} lacks the tables {', '.join(missing)}; build the run again.")
        return cls(folder, manifest, connection, present)

    @property
    def name(self) -> str:
        """The name the command line knows the run by: its folder's, or of a bundle opened in the cache the run's own."""
        opened = f"{self.manifest.name}-{self.manifest.run_id}"
        return self.manifest.name if self.folder.name == opened else self.folder.name

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A cursor for one call (connections must not be shared by threads); use it as a context manager."""
        return self._connection.cursor()

    def __enter__(self) -> RunReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; cursors still open become unusable."""
        self._connection.close()

    @cached_property
    def features(self) -> FeatureTable:
        """Every feature's figures, read once and shared by all sessions."""
        with self.cursor() as cursor:
            return FeatureTable(feature_queries.feature_frame(cursor))

    @cached_property
    def clusters(self) -> pl.DataFrame:
        """The map's clusters, largest first."""
        with self.cursor() as cursor:
            return feature_queries.clusters(cursor)

    @cached_property
    def arrays(self) -> RunArrays:
        """The token-level and pooled activations, memory-mapped.

        Raises:
            RunError: the folder or one of its arrays is missing or damaged.
        """
        return load_arrays(self.folder / self.manifest.arrays)

    @cached_property
    def evaluation(self) -> pl.DataFrame:
        """Every measured figure of the run: benchmark, subset, metric, value, ci_low, ci_high, n, note."""
        with self.cursor() as cursor:
            return cursor.sql("SELECT * FROM evaluation ORDER BY benchmark, subset, metric").pl()

    def table(self, name: str) -> pl.DataFrame:
        """A whole table, in stored order.

        Raises:
            RunError: the run has no such table.
        """
        if name not in self._tables:
            raise RunError(f"{self.folder} has no table {name!r}; there are: {', '.join(sorted(self._tables))}.")
        with self.cursor() as cursor:
            return cursor.sql(f'SELECT * FROM "{name}"').pl()

    def labels(self) -> dict[int, str]:
        """The preferred label of every feature that has one."""
        frame = self.features.frame.select("feature_id", "label").drop_nulls()
        return dict(frame.iter_rows())

    def slices(self, pooling: str) -> pl.DataFrame:
        """The slices that have salience: slice, column, value, n_pairs, n_prompts, n_tested, n_significant; 'all' first."""
        with self.cursor() as cursor:
            return salience_queries.slices(cursor, pooling)

    def salience(self, slice: str, pooling: str) -> pl.DataFrame:
        """One slice and pooling of the table `salience`, with each feature's label, weight, density, detection_score and
        alive; ordered by feature, empty when there is no such slice. Kept for the next caller."""
        key = (slice, pooling)
        found = self._salience.get(key)
        if found is None:
            with self.cursor() as cursor:
                rows = salience_queries.salience_rows(cursor, slice, pooling)
            about = self.features.frame.select("feature_id", "label", "weight", "density", "detection_score", "alive")
            while len(self._salience) >= SALIENCE_KEPT:
                self._salience.pop(next(iter(list(self._salience))), None)
            found = self._salience[key] = rows.join(about, on="feature_id", how="left", maintain_order="left")
        return found

    def sign_changes(self, pooling: str) -> pl.DataFrame:
        """Features significant with opposite signs in two slices of the same column (salience_queries.sign_changes), and
        their label."""
        with self.cursor() as cursor:
            rows = salience_queries.sign_changes(cursor, pooling)
        labels = self.features.frame.select("feature_id", "label")
        rows = rows.join(labels, on="feature_id", how="left", maintain_order="left")
        return rows.select("feature_id", "label", pl.exclude("feature_id", "label"))

    def feature_salience(self, feature_id: int) -> pl.DataFrame:
        """Every row of one feature in the table `salience`: 'all' first."""
        with self.cursor() as cursor:
            return salience_queries.feature_salience(cursor, feature_id)

    def rewards(self) -> np.ndarray:
        """The stored reward of every answer, float64 [n_responses]."""
        with self.cursor() as cursor:
            return cursor.sql("SELECT reward FROM response ORDER BY response_id").pl()["reward"].to_numpy()

    def contribution_sums(self) -> np.ndarray:
        """sum_i w_i z_i of every answer from the stored rows, float64 [n_responses]; 0 for an answer with none."""
        with self.cursor() as cursor:
            return feature_queries.contribution_sums(cursor, str(self.manifest.head["pooling"]))

    def figure(self, benchmark: str, metric: str, subset: str = "all") -> dict[str, object] | None:
        """One row of `evaluation`, or None where the run has none."""
        rows = self.evaluation.filter(benchmark=benchmark, metric=metric, subset=subset)
        return rows.row(0, named=True) if len(rows) else None

    @cached_property
    def _searchable(self) -> pl.DataFrame:
        with self.cursor() as cursor:
            return feature_queries.searchable_text(cursor)

    def search(self, text: str) -> np.ndarray | None:
        """Ids of the features found in labels and strongest contexts, ascending; None for an empty search."""
        return feature_queries.search_hits(self._searchable, text) if text.strip() else None

    def feature_mask(self, chosen: FeatureFilter, without: str | None = None) -> np.ndarray:
        """bool [n]: the features that pass the filter (optionally ignoring one column's range)."""
        return self.features.mask(chosen, self.search(chosen.search), without)

    def feature_ids(self, chosen: FeatureFilter, sort: str = BY_SIZE, descending: bool = True) -> np.ndarray:
        """Ids of the features that pass the filter, in table order."""
        return self.features.ordered(self.feature_mask(chosen), sort, descending)

    def card(self, feature_id: int) -> FeatureCard | None:
        """Everything the feature's card shows; None when the run has no such feature."""
        if feature_id not in self.features:
            return None
        with self.cursor() as cursor:
            related = feature_queries.neighbours(cursor, feature_id)
            others = self.features.frame.select("feature_id", "label", "weight", "weight_rank")
            return FeatureCard(
                figures=self.features.take(np.array([feature_id])).row(0, named=True),
                labels=feature_queries.labels(cursor, feature_id),
                histogram=feature_queries.histogram(cursor, feature_id),
                bands=feature_queries.bands(cursor, feature_id),
                contexts=feature_queries.contexts(cursor, feature_id),
                neighbours=related.join(
                    others, left_on="other_id", right_on="feature_id", how="left", maintain_order="left"
                ),
            )
