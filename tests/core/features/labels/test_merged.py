"""One place that knows every label of a feature, and which one speaks for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.features.labels.merged import MERGED_SCHEMA, merged_labels, preferred_labels
from core.store.reader import RunReader
from core.store.review import ReviewStore
from tests.core.features.labels.planted import DEAD, LATENTS, NOISE, OFTEN, SAE, SORRY


@pytest.fixture
def store(tmp_path: Path) -> ReviewStore:
    return ReviewStore(tmp_path)


def save(store: ReviewStore, feature: int, source: str, created: str, **columns: Any) -> None:
    row = {"sae": SAE, "run_id": "r", "feature_id": feature, "source": source, "created": created, **columns}
    store.save_labels([row])


def test_without_a_store_there_are_the_runs_own_labels(reader: RunReader, store: ReviewStore) -> None:
    rows = merged_labels(reader, store)
    assert rows.schema == MERGED_SCHEMA
    assert rows["feature_id"].to_list() == list(range(LATENTS))
    row = rows.row(SORRY, named=True)
    assert (row["source"], row["text"], row["safety_rating"], row["problem"]) == ("offline", "“sorry”", None, None)
    assert row["detection_score"] == row["fuzzing_score"] == 1
    assert not store.path.exists()


def test_offline_comes_first_then_the_newest(reader: RunReader, store: ReviewStore) -> None:
    save(store, SORRY, "old", "2026-01-01", text="apologies", safety_rating=4)
    save(store, SORRY, "new", "2026-02-01", text=None, problem="the reply is empty")
    save(store, NOISE, "old", "2026-01-01", text="noise", monosemanticity=1, fuzzing_score=0.5, fuzzing_n=40)
    rows = merged_labels(reader, store, [SORRY, NOISE])
    assert list(rows.select("feature_id", "source").iter_rows()) == [
        (SORRY, "offline"),
        (SORRY, "new"),
        (SORRY, "old"),
        (NOISE, "offline"),
        (NOISE, "old"),
    ]
    assert rows["problem"].to_list() == [None, "the reply is empty", None, None, None]
    assert rows["fuzzing_n"].to_list()[-1] == 40


def test_a_reply_that_could_not_be_used_never_speaks_for_a_feature(reader: RunReader, store: ReviewStore) -> None:
    save(store, SORRY, "old", "2026-01-01", text="apologies", safety_rating=4, detection_score=0.9, detection_n=40)
    save(store, SORRY, "new", "2026-02-01", text=None, problem="the reply is empty")
    save(store, OFTEN, "new", "2026-02-01", text="rivers", problem="safety_rating is “9”")
    save(store, DEAD, "reviewer", "2026-01-01", text="nothing", safety_rating=1)
    save(store, DEAD, "new", "2026-02-01", text="something", safety_rating=5)
    found = preferred_labels(reader, store)
    assert found["feature_id"].to_list() == list(range(LATENTS))
    by_feature = {row["feature_id"]: row for row in found.iter_rows(named=True)}
    sorry = by_feature[SORRY]
    assert (sorry["label"], sorry["source"], sorry["safety_rating"], sorry["detection_score"]) == (
        "apologies",
        "old",
        4,
        0.9,
    )
    assert (by_feature[OFTEN]["label"], by_feature[OFTEN]["safety_rating"]) == ("rivers", None)
    assert (by_feature[DEAD]["label"], by_feature[DEAD]["rating_source"]) == ("nothing", "reviewer")
    assert (by_feature[NOISE]["source"], by_feature[NOISE]["safety_rating"]) == ("offline", None)


def test_labels_of_another_sae_are_not_this_runs(reader: RunReader, store: ReviewStore) -> None:
    store.save_labels([{"sae": "other", "run_id": "r", "feature_id": SORRY, "source": "m", "text": "x"}])
    assert len(merged_labels(reader, store)) == LATENTS


def test_reading_labels_needs_neither_torch_nor_openai() -> None:
    code = "import sys; import core.features.labels.merged; print([m for m in ('torch', 'openai') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
