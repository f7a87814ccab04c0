"""The Benchmarks view without a browser: what results and state make of table, items and waterfall."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.store.benchmarks import read_activations, read_items, read_weights
from core.store.reader import RunReader
from dashboard import benchmarks as board
from dashboard.parts.benchmark_item import answers_html, ranked
from dashboard.parts.benchmark_table import MAIN
from dashboard.state import AppState
from dashboard.views.benchmarks import BenchmarksView
from tests.dashboard.conftest import elements
from tests.synthetic_benchmark import write_synthetic_benchmark
from tests.synthetic_run import HOSTILE, write_synthetic_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run = write_synthetic_run(folder / "plain", features=120, pairs=30)
    write_synthetic_benchmark(folder, run)
    write_synthetic_benchmark(folder, run, tag="half", seed=1)
    write_synthetic_benchmark(folder, run, "rm-bench", n=12)
    write_synthetic_benchmark(folder, run, run_id="model-other", kind="classifier", seed=2)
    return folder


@pytest.fixture(scope="module")
def reader(runs: Path) -> Iterator[RunReader]:
    with RunReader.open(runs / "plain") as reader:
        yield reader


@pytest.fixture(autouse=True)
def _here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDSCOPE_RUNS", str(runs))


def view_of(reader: RunReader, **given: Any) -> tuple[AppState, BenchmarksView]:
    state = AppState(run="plain", view="benchmarks", **given)
    return state, BenchmarksView(state, reader)


CELL = "synthetic/rewardbench2:Safety"


def links(html: str) -> list[str]:
    return [str(attributes["href"]) for tag, attributes in elements(html) if tag == "a"]


def test_our_rows_come_first_then_variants_others_and_published(reader: RunReader) -> None:
    _, view = view_of(reader)
    html = view._table.object
    places = [html.index(text) for text in ("this run", "half", "ordinary reward model", "Published", "SARM-4B")]
    assert places == sorted(places)
    assert [row.key for row in view._rows] == [
        "synthetic/rewardbench2",
        "synthetic/rewardbench2-half",
        "model-other/rewardbench2",
    ]
    assert "https://arxiv.org/abs/2508.08746" in html
    assert "SARM paper, table 1" in html
    assert not view._lower.visible
    view.__panel__().get_root()


def test_figures_carry_n_and_interval_and_missing_stays_missing(reader: RunReader) -> None:
    _, view = view_of(reader)
    figures = view._rows[0].figures
    safety = figures["Safety"]
    assert f"<b>{100 * safety['value']:.1f}</b>" in view._table.object
    assert f"{100 * safety['low']:.1f}–{100 * safety['high']:.1f} · n 12" in view._table.object
    assert figures["overall"]["value"] is None
    row = view._table.object.split('<tr class="ours">')[1]
    assert row.count("rs-missing") == len(MAIN["rewardbench2"]) - 3
    # A local part of RewardBench 2 is never shown as if it were the public one.
    assert row.count("≠") == 3
    assert "only the subsets in it are scored" in view._table.object


def test_a_cell_lists_its_items_and_opens_the_first(reader: RunReader) -> None:
    state, view = view_of(reader, benchmark="rewardbench2", benchmark_cell=CELL)
    assert view._lower.visible
    items = read_items(view._rows[0].result).filter(subset="Safety").sort("margin")
    assert view._items.listed._ids == items["item_id"].to_list()
    assert state.benchmark_item == items["item_id"][0]
    view.step(1)
    assert state.benchmark_item == items["item_id"][1]
    view.step(-1)
    view.step(-1)
    assert state.benchmark_item == items["item_id"][0]
    view._items._verdict.value = "right"
    assert view._items.listed.count == int((items["result"] == 1).sum())


def test_the_waterfall_sums_to_the_rewards_of_the_two_answers(reader: RunReader) -> None:
    state, view = view_of(reader, benchmark_cell=CELL, benchmark_item="item-03", benchmark="rewardbench2")
    content = view._panel._waterfall.content
    assert content["state"] == "ok"
    item = read_items(view._rows[0].result).filter(item_id="item-03").row(0, named=True)
    order = ranked(np.array(item["rewards"]), 1)
    strongest = next(at for at in order if at > 0)
    assert (view._panel._first.value, view._panel._second.value) == (0, strongest)
    activations, weights = read_activations(view._rows[0].result), read_weights(view._rows[0].result)
    assert activations is not None
    assert weights is not None
    features, pooled = activations.row(item["vectors"][0])
    own = dict(zip(features.tolist(), (pooled * weights[features]).tolist(), strict=True))
    for row in content["rows"]:
        if row.get("feature") in own:
            assert row["cells"][0]["end"] == pytest.approx(own[row["feature"]], abs=1e-9)
    state.benchmark_item = "nothing"
    assert not view._panel._body.visible


def test_answers_stand_in_the_order_of_their_rewards_and_wrong_ones_are_blurred() -> None:
    row = {"answers": ["a", "b", "c"], "n_correct": 1, "styles": [], "truncated": [False] * 3}
    html = answers_html(row, np.array([1.0, 1.0, 2.0]), None, blurred=True, domain="safety")
    words = [attributes["class"] for tag, attributes in elements(html) if tag == "li"]
    assert words == ["wrong", "wrong", "right"]  # a tie counts against the right answer
    assert html.count("rs-blur") == 2
    assert "rs-blur" not in answers_html(row, np.array([1.0, 1.0, 2.0]), None, blurred=True, domain="math")
    assert "rs-blur" not in answers_html(row, np.array([1.0, 1.0, 2.0]), None, blurred=False, domain="safety")
    moved = answers_html(row, np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0]), blurred=False, domain="safety")
    assert "was +1.000, place 3" in moved


def test_the_sliders_give_a_row_of_their_own_without_a_model(reader: RunReader) -> None:
    state, view = view_of(reader)
    result = view._rows[0].result
    activations, weights = read_activations(result), read_weights(result)
    assert activations is not None
    assert weights is not None
    totals = np.abs(np.asarray(activations.matrix().sum(axis=0)).reshape(-1) * weights)
    feature = int(totals.argmax())
    state.steer(feature, -2.0)
    live = view._rows[1]
    assert live.key == board.LIVE
    changed = weights.copy()
    changed[feature] *= -2
    expected = activations.rewards(changed)
    stored = read_items(result)
    for vectors, rewards in zip(stored["vectors"].to_list(), live.rewards, strict=True):
        assert rewards == pytest.approx(expected[vectors], abs=1e-9)
    assert "steered now by the sliders" in view._table.object
    state.benchmark_cell = f"{board.LIVE}:Safety"
    assert view._panel._waterfall.content["state"] == "ok"
    state.steering = {feature: 1.0}
    assert [row.key for row in view._rows][1] == "synthetic/rewardbench2-half"
    assert "no such cell" in view._heading.object


def test_a_model_without_features_says_so(reader: RunReader) -> None:
    _, view = view_of(reader, benchmark="rewardbench2", benchmark_cell="model-other/rewardbench2:Focus")
    assert "has no features" in view._panel._why.object
    assert view._panel._waterfall.content == {}


def test_rm_bench_lists_comparisons_and_says_which_domain_is_missing(reader: RunReader) -> None:
    _, view = view_of(reader, benchmark="rm-bench", benchmark_cell="synthetic/rm-bench:code hard")
    assert "Mean of chat, code, safety" in view._table.object
    assert "No published rows are shown for RM-Bench" in view._table.object
    assert view._items.listed.count == 4
    assert "code hard" in view._subsets.object
    assert "<details" in view._subsets.object
    assert " open" in view._subsets.object


def test_without_a_result_it_says_which_command_to_run(reader: RunReader) -> None:
    _, view = view_of(reader, benchmark="rewardbench")
    assert "rewardscope evaluate rewardbench plain" in view._table.object
    assert "allenai/reward-bench" in view._table.object
    _, pairs = view_of(reader, benchmark="pairs")
    assert "rewardscope evaluate pairs plain --data FILE" in pairs._table.object


def test_a_damaged_result_is_left_out_or_said(reader: RunReader, runs: Path) -> None:
    other = write_synthetic_benchmark(runs, runs / "plain", tag="broken", seed=3)
    (other.folder / "items.parquet").write_bytes(b"no")
    try:
        _, view = view_of(reader, benchmark="rewardbench2", benchmark_cell="synthetic/rewardbench2-broken:Safety")
        assert "has no readable items" in view._heading.object
        (other.folder / "summary.json").write_text("{")
        _, view = view_of(reader)
        assert "broken" not in view._table.object
    finally:
        import shutil

        shutil.rmtree(other.folder)


def test_hostile_text_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_synthetic_run(tmp_path / "hostile", features=60, pairs=20, hostile=True)
    write_synthetic_benchmark(tmp_path, run, bad=HOSTILE, n=8)
    monkeypatch.setenv("REWARDSCOPE_RUNS", str(tmp_path))
    with RunReader.open(run) as reader:
        state = AppState(run="hostile", view="benchmarks", benchmark_cell=CELL)
        view = BenchmarksView(state, reader)
        parts = [
            view._table,
            view._picker,
            view._heading,
            view._panel._title,
            view._panel._prompt,
            view._panel._answers,
        ]
        for part in parts:
            tags = {tag for tag, _ in elements(part.object)}
            assert not tags & {"img", "script"}, part
        assert "onerror" in view._panel._answers.object  # it is there, as text


def test_sliders_moved_in_another_view_cost_nothing_until_this_one_is_looked_at(reader: RunReader) -> None:
    state, view = view_of(reader, benchmark="rewardbench2")
    state.view = "steering"
    state.steer(3, 0.0)
    assert all(row.key != board.LIVE for row in view._rows)
    state.view = "benchmarks"
    assert view._rows[1].key == board.LIVE
