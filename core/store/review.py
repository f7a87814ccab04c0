"""review.sqlite: what people add beside the runs. Many small writers, so SQLite in WAL mode, not DuckDB.

Runs are never changed; what is here refers to them by the hash of their SAE (features) or by their run id (figures).
Nothing is created by reading: a store that is not there is an empty one.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import DataError, RunError, disk_full_is_said
from core.paths import runs_folder
from core.store.sets import FeatureSet
from core.store.steerings import Steering, changes_of_json, changes_to_json

SCHEMA = """
CREATE TABLE IF NOT EXISTS feature_set (
    sae TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
    s_plus TEXT NOT NULL, s_minus TEXT NOT NULL, how TEXT NOT NULL, created TEXT NOT NULL,
    PRIMARY KEY (sae, name, version)
);
CREATE TABLE IF NOT EXISTS steering (        -- changed head weights, {feature: [symbol, value]}
    sae TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
    changes TEXT NOT NULL, how TEXT NOT NULL, created TEXT NOT NULL,
    PRIMARY KEY (sae, name, version)
);
CREATE TABLE IF NOT EXISTS label (           -- from an endpoint or a reviewer; the newest of (sae, feature, source) counts
    sae TEXT NOT NULL, run_id TEXT NOT NULL, feature_id INTEGER NOT NULL,
    source TEXT NOT NULL,                    -- the model's name, or 'reviewer'
    text TEXT,                               -- NULL = the reply could not be parsed
    safety_rating INTEGER, monosemanticity INTEGER,          -- 1..5, NULL = missing
    problem TEXT,                            -- why something is missing
    detection_score REAL, detection_low REAL, detection_high REAL, detection_n INTEGER,
    fuzzing_score REAL, fuzzing_low REAL, fuzzing_high REAL, fuzzing_n INTEGER,
    prompt_tokens INTEGER, completion_tokens INTEGER, created TEXT NOT NULL,
    PRIMARY KEY (sae, feature_id, source)
);
CREATE TABLE IF NOT EXISTS impact (          -- columns of the table `impact` of a run
    run_id TEXT NOT NULL, plan TEXT NOT NULL, set_name TEXT, set_version INTEGER,
    direction TEXT NOT NULL, action TEXT NOT NULL, strategy TEXT NOT NULL, ratio REAL NOT NULL, seed INTEGER NOT NULL,
    domain TEXT NOT NULL, n INTEGER NOT NULL, n_prompts INTEGER NOT NULL,
    accuracy REAL, accuracy_low REAL, accuracy_high REAL, mean_margin REAL, margin_low REAL, margin_high REAL,
    accuracy_change REAL, change_low REAL, change_high REAL,
    kind TEXT NOT NULL, scope TEXT NOT NULL DEFAULT '',       -- 'preview', or 'retrained' with head | lora | full
    details TEXT NOT NULL DEFAULT '{}', created TEXT NOT NULL,
    PRIMARY KEY (run_id, plan, domain, kind, scope)
);
CREATE TABLE IF NOT EXISTS causal (          -- columns of the table `causal` of a run
    run_id TEXT NOT NULL, feature_id INTEGER NOT NULL, method TEXT NOT NULL,
    n_pairs INTEGER NOT NULL, n_prompts INTEGER NOT NULL, attribution REAL, effect REAL, ci_low REAL, ci_high REAL,
    random_low REAL, random_high REAL, n_random INTEGER NOT NULL, verdict TEXT NOT NULL, created TEXT NOT NULL,
    PRIMARY KEY (run_id, feature_id, method)
);
"""


class ReviewStore:
    """The store of one folder of runs.

    Attributes:
        path: the SQLite file, `<runs>/review.sqlite`; it need not exist.
    """

    def __init__(self, runs: Path | None = None) -> None:
        self.path = (runs or runs_folder()) / "review.sqlite"

    # -------------------------------------------------------------------- sets

    def save_set(self, one: FeatureSet) -> FeatureSet:
        """Stores a new version of a set and returns it with its version and time; earlier versions stay."""
        with self._writing() as db:
            row = db.execute(
                "SELECT max(version) FROM feature_set WHERE sae = ? AND name = ?", (one.sae, one.name)
            ).fetchone()
            version, created = (row[0] or 0) + 1, now()
            values = (
                one.sae,
                one.name,
                version,
                json.dumps(one.plus),
                json.dumps(one.minus),
                json.dumps(one.how),
                created,
            )
            db.execute("INSERT INTO feature_set VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return FeatureSet(one.name, one.plus, one.minus, one.sae, one.how, version, created)

    def sets(self, sae: str, *, all_versions: bool = False) -> list[FeatureSet]:
        """The sets of an SAE, newest first; of each name the newest version unless `all_versions`."""
        rows = self._rows("SELECT * FROM feature_set WHERE sae = ? ORDER BY created DESC, version DESC", (sae,))
        seen: set[str] = set()
        found = []
        for row in rows:
            if all_versions or row["name"] not in seen:
                found.append(_set_of(row))
            seen.add(row["name"])
        return found

    def find_set(self, sae: str, name: str, version: int | None = None) -> FeatureSet:
        """A set by name, its newest version unless one is given; `name@3` also names version 3.

        Raises:
            RunError: there is none; the message lists what there is.
        """
        bare, _, number = name.rpartition("@")
        if version is None and bare and number.isdigit():
            name, version = bare, int(number)
        for one in self.sets(sae, all_versions=True):
            if one.name == name and version in (None, one.version):
                return one
        names = ", ".join(sorted({one.name for one in self.sets(sae)})) or "none yet"
        raise RunError(
            f"There is no set {name!r}{f' version {version}' if version else ''} for this run's SAE; there is: {names}."
        )

    # --------------------------------------------------------------- steerings

    def save_steering(self, one: Steering) -> Steering:
        """Stores a new version of a steering and returns it with its version and time; earlier versions stay.

        Raises:
            DataError: it has no name, or does not say its SAE.
        """
        if not one.name.strip() or len(one.name) > 80:
            raise DataError("A steering needs a name of 1 to 80 characters to be stored.")
        if not one.sae:
            raise DataError("A steering that does not say its SAE cannot be stored: its ids would mean nothing.")
        with self._writing() as db:
            row = db.execute(
                "SELECT max(version) FROM steering WHERE sae = ? AND name = ?", (one.sae, one.name)
            ).fetchone()
            version, created = (row[0] or 0) + 1, now()
            values = (one.sae, one.name, version, json.dumps(changes_to_json(one)), json.dumps(one.how), created)
            db.execute("INSERT INTO steering VALUES (?, ?, ?, ?, ?, ?)", values)
        return replace(one, version=version, created=created)

    def steerings(self, sae: str, *, all_versions: bool = False) -> list[Steering]:
        """The steerings of an SAE, newest first; of each name the newest version unless `all_versions`."""
        rows = self._rows("SELECT * FROM steering WHERE sae = ? ORDER BY created DESC, version DESC", (sae,))
        seen: set[str] = set()
        found = []
        for row in rows:
            if all_versions or row["name"] not in seen:
                found.append(_steering_of(row))
            seen.add(row["name"])
        return found

    def find_steering(self, sae: str, name: str, version: int | None = None) -> Steering:
        """A steering by name, its newest version unless one is given; `name@3` also names version 3.

        Raises:
            RunError: there is none; the message lists what there is.
        """
        bare, _, number = name.rpartition("@")
        stored = self.steerings(sae, all_versions=True)
        if version is None and bare and number.isdigit() and not any(one.name == name for one in stored):
            name, version = bare, int(number)
        for one in stored:
            if one.name == name and version in (None, one.version):
                return one
        names = ", ".join(sorted({one.name for one in stored})) or "none yet"
        raise RunError(
            f"There is no steering {name!r}{f' version {version}' if version else ''} for this run's SAE; there is: {names}."
        )

    # ------------------------------------------------------------------ labels

    def save_labels(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds labels, replacing those of the same feature and source; keys are columns of the table `label`."""
        self._insert("label", rows)

    def labels(self, sae: str) -> pl.DataFrame:
        """Every label of an SAE's features, newest first."""
        return self._frame("label", "sae = ? ORDER BY created DESC, feature_id", (sae,))

    # ------------------------------------------------------------------ impact

    def save_impact(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds measured points; the same plan, domain, kind and scope replaces the earlier one."""
        self._insert("impact", rows)

    def impact(self, run_id: str) -> pl.DataFrame:
        """Every point measured for a run, oldest first."""
        return self._frame("impact", "run_id = ? ORDER BY created, plan, domain", (run_id,))

    # ------------------------------------------------------------------ causal

    def save_causal(self, rows: Sequence[dict[str, Any]]) -> None:
        self._insert("causal", rows)

    def causal(self, run_id: str) -> pl.DataFrame:
        """Every causal check of a run's features."""
        return self._frame("causal", "run_id = ? ORDER BY feature_id, method", (run_id,))

    # ------------------------------------------------------------------ shared

    def _insert(self, table: str, rows: Sequence[dict[str, Any]]) -> None:
        if not rows:
            return
        with self._writing() as db:
            for row in rows:
                row = {"created": now(), **row}
                names = ", ".join(row)
                marks = ", ".join("?" * len(row))
                db.execute(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with disk_full_is_said(self.path.parent):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.closing(sqlite3.connect(self.path, timeout=20)) as db:
                    db.execute("PRAGMA journal_mode = WAL")
                    db.executescript(SCHEMA)
                    db.execute("BEGIN IMMEDIATE")
                    with db:
                        yield db
        except (sqlite3.Error, OSError) as error:
            if "disk is full" in str(error):
                raise RunError(
                    f"The disk that holds {self.path} is full; free some room and try again: nothing was lost."
                ) from None
            raise RunError(f"{self.path} cannot be written ({error}); nothing was changed.") from None

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[sqlite3.Row]:
        if not self.path.exists():
            return []
        try:
            with contextlib.closing(
                sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, timeout=20)
            ) as db:
                db.row_factory = sqlite3.Row
                return db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            if "no such table" in str(error):
                return []
            raise RunError(f"{self.path} cannot be read ({error}); move it away to start a new one.") from None

    def _frame(self, table: str, where: str, values: tuple[Any, ...]) -> pl.DataFrame:
        schema = _columns(table)
        rows = [
            tuple(row[name] for name in schema) for row in self._rows(f"SELECT * FROM {table} WHERE {where}", values)
        ]
        return pl.DataFrame(rows, schema=schema, orient="row")


def _columns(table: str) -> dict[str, Any]:
    """Names and types of a table's columns, from SCHEMA itself."""
    types = {"TEXT": pl.String, "INTEGER": pl.Int64, "REAL": pl.Float64}
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return {name: types[kind] for _, name, kind, *_ in db.execute(f"PRAGMA table_info({table})")}


def _set_of(row: sqlite3.Row) -> FeatureSet:
    plus, minus = tuple(json.loads(row["s_plus"])), tuple(json.loads(row["s_minus"]))
    return FeatureSet(row["name"], plus, minus, row["sae"], json.loads(row["how"]), row["version"], row["created"])


def _steering_of(row: sqlite3.Row) -> Steering:
    changes = changes_of_json(json.loads(row["changes"]))
    return Steering(changes, row["name"], row["sae"], json.loads(row["how"]), row["version"], row["created"])


def now() -> str:
    """The time in UTC as stored: ISO, to the microsecond, so that text order is time order."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
