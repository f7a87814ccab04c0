"""Benchmark files in the layouts the Hub has them in, and the uniform pair schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pytest

from core.errors import DataError
from core.evaluate.items import read_items
from core.evaluate.published import COLUMNS, REWARDBENCH2, comparability, comparable
from core.evaluate.rewardbench2 import overall_score
from core.evaluate.run_benchmark import Computed, items_frame
from core.evaluate.score_items import benchmark_figures, by_style, cell_items
from core.rewards.score import UniqueAnswers

SHARED = Path(__file__).parents[4] / "shared" / "data"


def rewardbench_rows() -> list[dict[str, Any]]:
    return [
        {"prompt": "p1", "chosen": "good", "rejected": "bad", "subset": "alpacaeval-easy", "id": 0},
        {"prompt": "p2", "chosen": "same", "rejected": "same", "subset": "donotanswer", "id": 7},
        {"prompt": "p2", "chosen": "a", "rejected": "", "subset": "donotanswer", "id": 8},
        {"prompt": None, "chosen": "a", "rejected": "b", "subset": "donotanswer", "id": 9},
    ]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "saved"])
def test_rewardbench_from_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    rows, path = rewardbench_rows(), tmp_path / f"filtered.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:  # as save_to_disk writes the whole dataset: the raw split is not scored
        parts = {"filtered": datasets.Dataset.from_list(rows), "raw": datasets.Dataset.from_list(rows[:1])}
        datasets.DatasetDict(parts).save_to_disk(str(path))
    found = read_items("rewardbench", str(path))
    assert [item.item_id for item in found.items] == ["alpacaeval-easy/0", "donotanswer/7", "donotanswer/8"]
    # A tie of two equal texts is an item (and wrong by the rule), an empty answer is an answer, no prompt is no item.
    assert found.items[1].answers == ["same", "same"]
    assert found.items[2].answers == ["a", ""]
    assert [bad.reason for bad in found.skipped] == ["column 'prompt' is missing"]
    assert found.origin["n_skipped"] == 1
    assert found.items[1].prompt == found.items[2].prompt != found.items[0].prompt


def test_rm_bench_as_published(tmp_path: Path) -> None:
    chosen, rejected = ["c0", "c1", "c2"], ["r0", "r1", "r2"]
    rows = [
        {"id": str(i), "prompt": f"p{i}", "chosen": chosen, "rejected": rejected, "domain": domain}
        for i, domain in enumerate(("chat", "math", "code", "safety-refuse", "safety-response"))
    ]
    path = tmp_path / "total_dataset.json"
    path.write_text(json.dumps([*rows, {**rows[0], "chosen": ["only"]}]))
    found = read_items("rm-bench", str(path))
    assert [item.subset for item in found.items] == ["chat", "math", "code", "safety", "safety"]
    assert found.items[3].group == "safety-refuse"
    assert found.items[0].answers == chosen + rejected
    assert "not the 3 styles" in found.skipped[0].reason


def uniform_row(**given: Any) -> dict[str, Any]:
    base = {"pair_id": "x", "source": "s", "section": "safety", "subset": "rb2-safety", "category": None, "prompt": "p"}
    return {**base, "chosen": "c", "rejected": "r", "label_type": "gold", "group_id": "g", "meta": None, **given}


def test_uniform_files_are_grouped_into_best_of_n_and_styles(tmp_path: Path) -> None:
    rows = [uniform_row(pair_id=f"a{i}", rejected=f"r{i}") for i in range(3)]
    pl.DataFrame([*rows, uniform_row(pair_id="b", group_id="h", prompt="q")]).write_parquet(tmp_path / "rb2.parquet")
    best = read_items("rewardbench2", str(tmp_path / "rb2.parquet")).items
    assert [(item.subset, list(item.answers), item.n_correct) for item in best] == [
        ("Safety", ["c", "r0", "r1", "r2"], 1),
        ("Safety", ["c", "r"], 1),
    ]
    styles = ("concise", "detailed_plain", "detailed_markdown")
    grid = [
        uniform_row(
            pair_id=f"{i}{j}",
            chosen=f"c{i}",
            rejected=f"r{j}",
            chosen_model=styles[i],
            rejected_model=styles[j],
            section="reasoning",
            meta=json.dumps({"domain": "code", "language": "go"}),
        )
        for i in range(3)
        for j in range(3)
        if j != 1
    ]
    pl.DataFrame(grid).write_parquet(tmp_path / "rm.parquet")
    (item,) = read_items("rm-bench", str(tmp_path / "rm.parquet")).items
    assert (item.subset, list(item.answers), item.n_correct) == ("code", ["c0", "c1", "c2", "r0", "r2"], 3)
    assert list(item.styles) == [*styles, "concise", "detailed_markdown"]
    # The style that no row has is missing, not lost: its comparisons do not count.
    unique = UniqueAnswers([], np.arange(5), [])
    frame = items_frame(
        read_items("rm-bench", str(tmp_path / "rm.parquet")),
        unique,
        Computed(None, np.arange(5.0), np.zeros(5, bool), np.ones(5, np.int64), 0.0),
    )
    chosen, rejected = by_style(frame, [np.arange(5.0)])
    assert chosen.tolist() == [[0, 1, 2]]
    assert rejected[0, [0, 2]].tolist() == [3, 4]
    assert np.isnan(rejected[0, 1])


def test_what_is_no_benchmark_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    with pytest.raises(DataError, match="it lacks subset"):
        read_items("rewardbench", str(tmp_path / "x.jsonl"))
    with pytest.raises(DataError, match="There is no file"):
        read_items("rewardbench", str(tmp_path / "no.jsonl"))
    assert read_items("pairs", str(tmp_path / "x.jsonl")).items[0].answers == ["b", "c"]


def test_published_rows_are_whole_and_sourced() -> None:
    for row in REWARDBENCH2:
        assert row.source
        assert row.url.startswith("https://")
        assert list(row.scores) in ([*COLUMNS], ["overall"])
        if len(row.scores) > 1:  # the printed overall is the mean of the six, to its rounding
            rest = {name: score for name, score in row.scores.items() if name != "overall"}
            assert overall_score(rest) == pytest.approx(row.scores["overall"], abs=0.1)


def test_what_is_not_the_published_data_is_never_comparable() -> None:
    local = {"uniform": True, "n_items": 2396}
    assert comparability("rewardbench", local)
    assert comparability("rewardbench", {"uniform": False, "n_items": 100})
    assert not comparability("rewardbench2", {"uniform": False, "n_items": 1865})
    figure = {"name": "Safety", "value": 0.5, "n": 450, "note": ""}
    assert comparable("rewardbench2", {"uniform": True, "n_items": 450}, figure)
    assert not comparable("rewardbench2", {"uniform": True, "n_items": 450}, {**figure, "n": 449})
    assert not comparable("rewardbench2", {"uniform": False, "n_items": 450, "limit": 450}, figure)
    fewer = {**figure, "note": "2 of 450 prompts have another number of answers than 4"}
    assert not comparable("rewardbench2", {"uniform": True, "n_items": 450}, fewer)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here: the research files are not shipped")
def test_the_local_research_files_have_the_known_counts() -> None:
    rb1 = read_items("rewardbench", str(SHARED / "rewardbench_style_eval.parquet"))
    assert (len(rb1.items), len({item.prompt for item in rb1.items})) == (2396, 1501)
    rb2 = read_items("rewardbench2", str(SHARED / "rewardbench2_safety.parquet"))
    assert (len(rb2.items), sum(len(item.answers) for item in rb2.items)) == (450, 450 + 1348)
    rm = read_items("rm-bench", str(SHARED / "rm_bench.parquet"))
    counts = {domain: sum(item.subset == domain for item in rm.items) for domain in ("chat", "math", "code", "safety")}
    assert counts == {"chat": 129, "math": 0, "code": 228, "safety": 441}
    # Every comparison of the file is one of the 3 x 3 cells, and the other way round.
    pairs = sum(item.n_correct * (len(item.answers) - item.n_correct) for item in rm.items)
    assert pairs == 6987


def test_cells_of_rm_bench_are_comparisons() -> None:
    frame = pl.DataFrame(
        {
            "subset": ["chat", "code"],
            "item_id": ["a", "b"],
            "prompt_id": ["a", "b"],
            "n_correct": [3, 3],
            "styles": [["concise", "detailed_plain", "detailed_markdown"] * 2] * 2,
        }
    )
    rewards = [np.array([1.0, 2, 3, 0, 2, 1]), np.array([0.0, 1, 2, 1, 0, 3])]
    for one in benchmark_figures("rm-bench", frame, rewards):
        cell = cell_items("rm-bench", frame, rewards, one.name)
        if one.value is not None and one.kind == "subset":
            assert cell.result.mean() == pytest.approx(one.value)
    hard = cell_items("rm-bench", frame, rewards, "chat hard")
    assert hard.index.tolist() == [0]
    assert hard.margin.tolist() == [1.0 - 2.0]
    assert len(cell_items("rm-bench", frame, rewards, "math").index) == 0
