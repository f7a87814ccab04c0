"""What the reader answers about salience."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

from core.store.manifest import read_manifest
from core.store.reader import SALIENCE_KEPT, RunReader
from core.store.salience_queries import SALIENCE_SCHEMA
from tests.synthetic_run import write_synthetic_run

FEATURES = 50
SLICES = {
    "request=harmful": 40,
    "all": 60,
    "domain=privacy": 15,
    "domain=chat": 30,
    "split=train": 48,
    "split=test": 12,
    "category=a=b": 20,
    "request=ordinary": 20,
}


def salience_frame() -> pl.DataFrame:
    """Features 0-9 are tested in every slice; 0 turns over by domain and by request, 1 by split and domain only."""
    rng = np.random.default_rng(0)
    rows = []
    for name, n in SLICES.items():
        for pooling in ("mean", "last"):
            for feature in range(0, FEATURES, 1 if name == "all" else 2):
                tested = feature < 10
                size = float(rng.normal(0, 0.1)) or 0.1
                q = 0.4
                if pooling == "mean" and feature == 0 and name.startswith(("domain", "request")):
                    size, q = (0.9, 1e-6) if name in ("domain=privacy", "request=ordinary") else (-0.8, 1e-5)
                if pooling == "mean" and feature == 2 and name.startswith("domain"):
                    size, q = (0.5, 1e-3) if name == "domain=privacy" else (-0.5, 0.2)  # not significant
                rows.append(
                    {
                        "feature_id": feature, "slice": name, "pooling": pooling, "n_pairs": n, "n_prompts": n // 2,
                        "n_active": 40 if tested else 7, "chosen_sum": 1.0, "rejected_sum": 2.0, "s": -0.1, "effect": size,
                        "effect_size": size, "p": q / 10 if tested else None, "q": q if tested else None,
                    }
                )  # fmt: skip
    given = pl.DataFrame(rows, infer_schema_length=None)
    missing = [pl.lit(None).alias(name) for name in SALIENCE_SCHEMA if name not in given.columns]
    return (
        given.with_columns(missing)
        .select(list(SALIENCE_SCHEMA))
        .cast(dict(SALIENCE_SCHEMA))
        .sample(fraction=1.0, shuffle=True, seed=1)
    )


def database(run: Path) -> Path:
    return run / read_manifest(run).database


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_synthetic_run(tmp_path_factory.mktemp("runs") / "one", features=FEATURES)
    with duckdb.connect(str(database(folder))) as connection:
        connection.register("incoming", salience_frame().to_arrow())
        connection.execute("DELETE FROM salience")
        connection.execute("INSERT INTO salience BY NAME SELECT * FROM incoming")
    return folder


@pytest.fixture
def reader(run: Path) -> Iterator[RunReader]:
    with RunReader.open(run) as opened:
        yield opened


def test_slices_come_in_reading_order_with_their_counts(reader: RunReader) -> None:
    found = reader.slices("mean")
    assert found.columns == ["slice", "column", "value", "n_pairs", "n_prompts", "n_tested", "n_significant"]
    assert found["slice"].to_list() == [
        "all", "split=train", "split=test", "domain=chat", "domain=privacy", "category=a=b",
        "request=harmful", "request=ordinary",
    ]  # fmt: skip
    assert found.filter(slice="all").row(0) == ("all", "all", "", 60, 30, 10, 0)
    assert found.filter(slice="domain=privacy").row(0) == ("domain=privacy", "domain", "privacy", 15, 7, 5, 2)
    assert found.filter(slice="category=a=b")["value"].to_list() == ["a=b"]
    assert reader.slices("last")["n_significant"].sum() == 0


def test_salience_of_a_slice_comes_with_what_the_features_are(reader: RunReader) -> None:
    found = reader.salience("all", "mean")
    assert found.columns == [*SALIENCE_SCHEMA, "label", "weight", "density", "detection_score", "alive"]
    assert found["feature_id"].to_list() == list(range(FEATURES))
    known = reader.features.frame
    assert found["weight"].to_list() == known["weight"].to_list()
    assert found["label"].to_list() == known["label"].to_list()
    assert found.filter(pl.col("feature_id") >= 10)["q"].null_count() == FEATURES - 10  # not tested is not zero


def test_a_slice_that_is_not_there_is_empty(reader: RunReader) -> None:
    found = reader.salience("domain=nothing' OR 'a'='a", "mean")
    assert found.is_empty()
    assert set(SALIENCE_SCHEMA) < set(found.columns)


def test_a_slice_is_read_once_and_few_are_kept(reader: RunReader) -> None:
    assert reader.salience("all", "mean") is reader.salience("all", "mean")
    for i in range(2 * SALIENCE_KEPT):
        reader.salience(f"domain={i}", "mean")
    assert len(reader._salience) == SALIENCE_KEPT


def test_sign_changes_are_significant_on_both_sides(reader: RunReader) -> None:
    found = reader.sign_changes("mean")
    assert found.columns == [
        "feature_id", "label", "column", "slice_up", "effect_size_up", "q_up", "slice_down", "effect_size_down", "q_down",
    ]  # fmt: skip
    assert found.drop("label").rows() == [
        (0, "domain", "domain=privacy", 0.9, 1e-6, "domain=chat", -0.8, 1e-5),
        (0, "request", "request=ordinary", 0.9, 1e-6, "request=harmful", -0.8, 1e-5),
    ]
    assert found["label"].to_list() == [reader.labels().get(0)] * 2
    assert reader.sign_changes("last").is_empty()


def test_all_rows_of_a_feature(reader: RunReader) -> None:
    found = reader.feature_salience(2)
    assert found.columns == list(SALIENCE_SCHEMA)
    assert len(found) == 2 * len(SLICES)
    assert found["slice"][0] == "all"
    assert reader.feature_salience(1)["slice"].unique().to_list() == ["all"]
    assert reader.feature_salience(10_000).is_empty()


@pytest.mark.parametrize("statement", ["DROP TABLE salience", "ALTER TABLE salience DROP COLUMN replication"])
def test_runs_of_earlier_versions_have_no_salience(tmp_path: Path, statement: str) -> None:
    folder = write_synthetic_run(tmp_path / "old", features=30)
    with duckdb.connect(str(database(folder))) as connection:
        connection.execute(statement)
    with RunReader.open(folder) as old:
        assert old.slices("mean").is_empty()
        assert old.salience("all", "mean").is_empty()
        assert old.sign_changes("mean").is_empty()
        assert old.feature_salience(1).is_empty()
        assert old.salience("all", "mean").columns[: len(SALIENCE_SCHEMA)] == list(SALIENCE_SCHEMA)


def test_the_schema_is_that_of_the_database(run: Path) -> None:
    with duckdb.connect(str(database(run)), read_only=True) as connection:
        rows = connection.execute("SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 'salience'")
        kinds = {"UINTEGER": pl.UInt32, "DOUBLE": pl.Float64, "VARCHAR": pl.String}
        assert {name: kinds[kind] for name, kind in rows.fetchall()} == SALIENCE_SCHEMA
