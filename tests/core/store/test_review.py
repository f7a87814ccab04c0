"""review.sqlite: versions, many writers, and what happens when it cannot be used."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from core.errors import DataError, RunError
from core.store.review import ReviewStore
from core.store.sets import FeatureSet
from core.store.steerings import Change, Steering

SET = FeatureSet("safety", (1, 2), (5,), "sae-a", {"method": "hand"})


def test_reading_creates_nothing(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path / "runs")
    assert store.sets("sae-a") == []
    assert store.labels("sae-a").columns[:3] == ["sae", "run_id", "feature_id"]
    assert len(store.impact("run")) == 0
    assert not (tmp_path / "runs").exists()


def test_each_save_is_a_new_version_and_the_old_ones_stay(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path)
    first = store.save_set(SET)
    second = store.save_set(SET.with_feature(9, -1))
    assert (first.version, second.version) == (1, 2)
    assert store.find_set("sae-a", "safety") == second
    assert store.find_set("sae-a", "safety@1") == first
    assert store.sets("sae-a") == [second]
    assert store.sets("sae-a", all_versions=True) == [second, first]
    assert store.sets("sae-b") == []  # ids of one SAE mean nothing beside another
    with pytest.raises(RunError, match=r"no set 'saftey'.*there is: safety"):
        store.find_set("sae-a", "saftey")


def test_steerings_are_versioned_like_sets(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path)
    assert store.steerings("sae-a") == []
    changes = {7: Change("scale", 1 / 3), 2: Change("set", -0.5), 9: Change("add", 2.0)}
    first = store.save_steering(Steering(changes, "mild", "sae-a", {"method": "hand"}))
    second = store.save_steering(Steering.of_multipliers({7: 0.0}, "mild", "sae-a"))
    odd = store.save_steering(Steering.of_multipliers({1: 2.0}, "mild@9", "sae-a"))
    assert (first.version, second.version, odd.version) == (1, 2, 1)
    assert store.find_steering("sae-a", "mild") == second
    assert store.find_steering("sae-a", "mild@1") == first
    assert store.find_steering("sae-a", "mild@9") == odd
    assert store.steerings("sae-a") == [odd, second]
    assert store.steerings("sae-a", all_versions=True) == [odd, second, first]
    assert store.steerings("sae-b") == []
    with pytest.raises(RunError, match=r"no steering 'wild'.*there is: mild, mild@9"):
        store.find_steering("sae-a", "wild")
    for bad in (Steering.of_multipliers({1: 2.0}, "", "sae-a"), Steering.of_multipliers({1: 2.0}, "named", "")):
        with pytest.raises(DataError, match="cannot be stored|needs a name"):
            store.save_steering(bad)


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    def save(number: int) -> None:
        for _ in range(5):
            ReviewStore(tmp_path).save_set(FeatureSet(f"set {number % 2}", (number,), (), "sae-a"))

    threads = [threading.Thread(target=save, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = sorted((one.name, one.version) for one in ReviewStore(tmp_path).sets("sae-a", all_versions=True))
    assert versions == [(f"set {name}", version) for name in (0, 1) for version in range(1, 16)]


def test_a_missing_rating_stays_missing(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path)
    row = {"sae": "a", "run_id": "r", "feature_id": 3, "source": "m", "text": None, "problem": "no JSON in the reply"}
    store.save_labels([row])
    found = store.labels("a").row(0, named=True)
    assert (found["safety_rating"], found["text"], found["problem"]) == (None, None, "no JSON in the reply")
    store.save_labels([{**row, "text": "refuses", "safety_rating": 5, "problem": None}])
    assert store.labels("a")["safety_rating"].to_list() == [5]  # tried again: the newer answer counts


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "review.sqlite").write_text("these are my notes, not a database" * 50, encoding="utf-8")
    store = ReviewStore(tmp_path)
    with pytest.raises(RunError, match="cannot be read"):
        store.sets("a")
    with pytest.raises(RunError, match="cannot be written"):
        store.save_set(SET)
    assert (tmp_path / "review.sqlite").read_text(encoding="utf-8").startswith("these are my notes")


def test_a_failure_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path)
    good = {
        "run_id": "r",
        "feature_id": 1,
        "method": "head",
        "n_pairs": 1,
        "n_prompts": 1,
        "n_random": 0,
        "verdict": "verified",
    }
    with pytest.raises(RunError, match="nothing was changed"):
        store.save_causal([good, {**good, "feature_id": 2, "verdict": None}])
    assert len(store.causal("r")) == 0


def test_every_table_of_the_store_can_be_read_as_a_frame(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path)
    store.save_set(SET)
    with sqlite3.connect(store.path) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"feature_set", "steering", "label", "impact", "causal"}
    assert len(store.labels("a")) == len(store.impact("a")) == len(store.causal("a")) == 0
