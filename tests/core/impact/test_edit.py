"""Exported pairs can be read back as a data set, say where they come from, and poisoned ones say so in row and name."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from core.config import PairsConfig
from core.data.load import load_pairs
from core.errors import ConfigError, DataError, RunError
from core.impact.edit import edited_pairs, export_edited
from core.impact.inputs import data_hash
from core.impact.plans import Plan
from core.store.reader import RunReader
from tests.synthetic_run import write_synthetic_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunReader:
    return RunReader.open(write_synthetic_run(tmp_path_factory.mktemp("edit") / "synthetic", features=40, pairs=20))


def plan_of(run: RunReader, direction: str = "poison", **actions: str) -> Plan:
    edits = {f"pair-{number[1:]}": action for number, action in actions.items()}
    return Plan(
        run=run.name, run_id="r", data_sha256=data_hash(run.table("pair"), run.table("response")), strategy="hand",
        direction=direction, action="mixed", ratio=0.1, seed=0, n_train=16, edits=edits,
        feature_set={"name": "S", "version": 3},
    )  # fmt: skip


def test_sides_are_swapped_dropped_pairs_are_gone_and_the_rest_is_as_it_was(run: RunReader) -> None:
    pairs, responses = run.table("pair"), run.table("response")
    found = edited_pairs(pairs, responses, plan_of(run, _001="flip", _002="drop"))
    texts = responses["text"].to_list()
    assert found["pair_id"].to_list() == [f"pair-{i:03d}" for i in range(20) if i != 2]
    for row in found.to_dicts():
        number = int(row["pair_id"][-3:])
        sides = [[texts[2 * number]], [texts[2 * number + 1]]]
        assert [row["chosen"], row["rejected"]] == (sides[::-1] if number == 1 else sides)
        assert row["rewardscope_action"] == ("flip" if number == 1 else "keep")
        assert row["rewardscope_pair_id"] == row["pair_id"]
        assert row["rewardscope_split"] == row["split"] == ("test" if number % 5 == 0 else "train")
        assert row["rewardscope_set"] == "S@3"
        assert row["rewardscope_poisoned"] is True
    assert not edited_pairs(pairs, responses, plan_of(run, "denoise", _001="flip"))["rewardscope_poisoned"].any()


def test_an_unknown_pair_is_an_error(run: RunReader) -> None:
    with pytest.raises(DataError, match="pair-999"):
        edited_pairs(run.table("pair"), run.table("response"), plan_of(run, _999="flip"))


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_an_export_is_a_data_set_that_loads(run: RunReader, tmp_path: Path, format: str) -> None:
    plan = plan_of(run, _001="flip", _002="drop")
    path = export_edited(run, plan, tmp_path, format)
    loaded = load_pairs(PairsConfig(source=str(path)))
    expected = edited_pairs(run.table("pair"), run.table("response"), plan)
    assert loaded.pairs["pair_id"].to_list() == expected["pair_id"].to_list()
    assert loaded.pairs["split"].to_list() == expected["split"].to_list()
    assert loaded.pairs["domain"].to_list() == expected["domain"].to_list()
    for side in ("chosen", "rejected"):
        texts = loaded.responses.filter(side=side)["text"].to_list()
        assert texts == [one[0] for one in expected[side].to_list()]
    assert '"rewardscope_poisoned": true' in loaded.pairs["labels"][0]


def test_a_poisoned_file_says_so_and_nothing_is_written_over(run: RunReader, tmp_path: Path) -> None:
    plan = plan_of(run, _001="flip")
    for target in (tmp_path, tmp_path / "named.parquet"):
        path = export_edited(run, plan, target, "parquet")
        assert "POISONED" in path.name
        assert pl.read_parquet(path)["rewardscope_poisoned"].all()
        content = path.read_bytes()
        with pytest.raises(RunError, match="is there already"):
            export_edited(run, plan, target, "parquet")
        assert path.read_bytes() == content
    clean = export_edited(run, plan_of(run, "denoise", _001="drop"), tmp_path, "jsonl")
    assert "POISONED" not in clean.name


def test_wrong_formats_and_other_pairs_are_refused(run: RunReader, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(ConfigError, match="use parquet or jsonl"):
        export_edited(run, plan_of(run), tmp_path, "csv")
    with pytest.raises(DataError, match="made for other pairs"):
        export_edited(run, replace(plan_of(run), data_sha256="0"), tmp_path, "jsonl")
    assert list(tmp_path.iterdir()) == []
