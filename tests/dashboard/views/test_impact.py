"""The Impact view without a browser: real refits of a small run, done at once instead of in the other process."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from core.store.reader import RunReader
from core.store.review import ReviewStore
from core.store.sets import FeatureSet
from dashboard import impact_tasks, sets
from dashboard.state import AppState
from dashboard.views.impact import ImpactView
from dashboard.worker import Outcome, Worker
from dashboard.worker_process import answer
from tests.dashboard.conftest import assert_harmless
from tests.synthetic_run import write_synthetic_run


class AtOnce(Worker):
    """Does every job in this process, when it is asked for or, while `held`, when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.held: dict[str, Callable[[], None]] = {}
        self.hold = False
        self.problem: Outcome | None = None

    def ask(self, owner: str, slot: str, task: Any, *args: Any, done: Any, urgent: bool = False) -> None:
        self.asked.append(slot)

        def work() -> None:
            done(self.problem or Outcome(*answer(task, args)))

        if self.hold:
            self.held[slot] = work
        else:
            work()

    def drop(self, owner: str, slot: str | None = None) -> None:
        for name in [name for name in self.held if slot in (None, name)]:
            del self.held[name]

    def release(self) -> None:
        while self.held:
            self.held.pop(next(iter(self.held)))()


@pytest.fixture
def folder(synthetic: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("REWARDSCOPE_RUNS", str(synthetic))
    yield synthetic
    for file in synthetic.glob("review.sqlite*"):
        file.unlink()


@pytest.fixture
def worker() -> AtOnce:
    return AtOnce()


@pytest.fixture
def state() -> AppState:
    return AppState(run="plain", view="impact", ratio=0.1)


@pytest.fixture
def view(state: AppState, plain: RunReader, worker: AtOnce, folder: Path) -> ImpactView:
    view = ImpactView(state, plain, worker)
    view.__panel__()
    return view


def line(view: ImpactView, key: str, domain: str = "all") -> list[list[float]]:
    domains = {one["name"]: one for one in view._curve.content["domains"]}
    return {one["key"]: one["points"] for one in domains[domain]["lines"]}.get(key, [])


def test_it_opens_with_every_curve_and_a_pair(view: ImpactView, state: AppState) -> None:
    names = [one["key"] for one in view._curve.content["domains"][0]["lines"]]
    assert sorted(names) == ["length", "loss", "margin", "random", "set"]
    assert [point[0] for point in line(view, "set")] == [0.0, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2]
    assert view._curve.now["state"] == "done"
    assert "Flips 3 of 32 training pairs" in view._count.object
    assert state.pair == view._pairs.listed.at(0)
    assert "Flipped: the rejected answer becomes the chosen one" in view._detail._place.object
    assert "pair score" in view._detail._why.object
    assert "head refit, not a" in view._honest.object
    assert "No retrained point yet" in view._words.object


def test_what_the_build_measured_is_there_before_anything_is_computed(
    state: AppState, plain: RunReader, worker: AtOnce, folder: Path
) -> None:
    worker.hold = True
    view = ImpactView(state, plain, worker)
    assert [point[0] for point in line(view, "set")] == [0.0, 0.025, 0.05]
    assert view._curve.now["state"] == "computing"
    assert "Ranking the pairs" in view._count.object
    assert "points of the curves" in view._waiting.object
    worker.release()
    assert view._curve.now["state"] == "done"
    assert view._waiting.object == ""


def test_the_table_and_a_refit_of_now_agree(view: ImpactView, state: AppState, plain: RunReader) -> None:
    stored = plain.table("impact").filter(strategy="set", direction="poison", ratio=0.05)
    fresh = impact_tasks.measure(
        view._refits._run, [impact_tasks.PlanChoice("set", "poison", "flip", 0.05, 0, sets.default_set(plain))]
    ).frame.filter(strategy="set")
    assert fresh["accuracy"].to_list() == pytest.approx(stored["accuracy"].to_list())
    assert fresh["mean_margin"].to_list() == pytest.approx(stored["mean_margin"].to_list(), abs=1e-4)


def test_moving_the_slider_refits_and_only_the_newest_answer_is_shown(
    view: ImpactView, state: AppState, worker: AtOnce
) -> None:
    worker.hold = True
    view._bar.slider.ratio = 0.12
    first = worker.held["point"]
    view._bar.slider.ratio = 0.16
    first()
    assert view._curve.now == view._curve.now | {"ratio": 0.16, "state": "computing"}
    worker.release()
    assert view._curve.now == view._curve.now | {"ratio": 0.16, "state": "done"}
    assert state.ratio == 0.16
    assert "Flips 5 of 32" in view._count.object
    assert 0.16 in [point[0] for point in line(view, "set")]  # what was visited is part of the curve
    assert 0.12 in [point[0] for point in line(view, "set")]
    view._curve._handle_msg({"ratio": 0.2})
    assert (view._bar.slider.ratio, view._curve.ratio) == (0.2, 0.2)
    view._curve._handle_msg({"ratio": "0.1"})
    view._curve._handle_msg({"ratio": 7})
    assert view._curve.ratio == 0.2


def test_nothing_changed_is_the_unchanged_head(view: ImpactView) -> None:
    view._bar.slider.ratio = 0.0
    assert view._curve.now["state"] == "done"
    assert view._curve.now["values"]["all"]["change"] == "0.0 pts"
    assert "Flips 0 of 32" in view._count.object


def test_each_strategy_orders_the_pairs_by_its_own_figure(view: ImpactView, state: AppState) -> None:
    firsts = set()
    for strategy, says in (
        ("margin", "Reward margin"),
        ("loss", "gives its label a chance"),
        ("length", "log ratio"),
        ("random", "Drawn by lot"),
    ):
        state.strategy = strategy
        state.pair = view._pairs.listed.at(0)
        assert says in view._detail._why.object
        assert {one["key"]: one["main"] for one in view._curve.content["domains"][0]["lines"]}[strategy]
        firsts.add(tuple(view._pairs.listed.at(i) for i in range(3)))
    assert len(firsts) == 4


def test_the_direction_brings_its_usual_action_and_the_order_turns_round(view: ImpactView, state: AppState) -> None:
    state.strategy = "length"
    first = view._pairs.listed.at(0)
    view._bar._direction.value = "denoise"
    assert (state.direction, state.action) == ("denoise", "drop")
    assert view._pairs.listed.at(0) != first
    assert "Drops" in view._count.object
    assert [label for _, label, _ in view._bar.export.choices][1] == "Edited data (Parquet)"
    view._bar._action.value = "flip"
    assert (state.direction, state.action) == ("denoise", "flip")


def test_stepping_goes_through_the_pairs_the_plan_changes(view: ImpactView, state: AppState) -> None:
    ids = [view._pairs.listed.at(i) for i in range(view._pairs.listed.count)]
    view.step(-1)
    assert state.pair == ids[0]
    for expected in ids[1:]:
        view.step(1)
        assert state.pair == expected
    view.step(1)
    assert state.pair == ids[-1]
    state.pair = "pair-000"  # held out
    assert "Plans change training pairs only" in view._detail._place.object
    view.step(1)
    assert state.pair == ids[0]


def test_another_set_needs_only_its_own_curve(
    view: ImpactView, state: AppState, plain: RunReader, worker: AtOnce, folder: Path
) -> None:
    other = FeatureSet("other", (1, 2, 3, 11, 12), (4, 5, 6), sets.sae_of(plain))
    saved = ReviewStore(folder).save_set(other)
    margin = line(view, "margin")
    worker.asked.clear()
    state.set_name = "other"
    assert worker.asked.count("ranking") == 1
    assert line(view, "margin") == margin
    assert len(line(view, "set")) == 8
    assert f"--set other@{saved.version}" in view._bar.export.command
    sets.mark(state, plain, ReviewStore(folder), [7], 1)
    assert view._bar.export.command == ""
    assert any("unsaved" in label for label in view._bar._set.options)


def test_domains_are_picked_and_an_unknown_one_falls_back(view: ImpactView, state: AppState) -> None:
    view._curve._handle_msg({"domain": "privacy"})
    assert state.impact_domain == "privacy"
    assert "Privacy" in view._heading.object
    view._curve._handle_msg({"domain": "nowhere"})
    assert state.impact_domain == "privacy"
    state.impact_domain = "nowhere"
    assert view._curve.content["big"] == "all"
    view._measure.value = "margin"
    assert view._curve.content["measure"] == "margin"


def test_retrained_points_stand_beside_previews_with_the_error(
    view: ImpactView, state: AppState, plain: RunReader, folder: Path
) -> None:
    preview = plain.table("impact").filter(strategy="set", direction="poison", ratio=0.05)
    default = sets.default_set(plain)
    rows = [
        {**row, "run_id": "synthetic", "kind": "retrained", "scope": "lora", "set_name": default.name, "set_version": 0, "accuracy_change": row["accuracy_change"] - 0.03}
        for row in preview.iter_rows(named=True)
    ]  # fmt: skip
    ReviewStore(folder).save_impact(rows)
    state.strategy = "margin"  # another choice reads the store again
    assert "mean absolute error of the accuracy change <b>3.0 points</b>" in view._words.object
    assert "n = 4 points of 1 plan" in view._words.object
    drawn = view._curve.content["domains"][0]["retrained"]
    assert [point["main"] for point in drawn] == [False]
    assert drawn[0]["said"].startswith("Retrained (LoRA), 5 % flipped by this set")


def test_exports_carry_their_marker(view: ImpactView, state: AppState) -> None:
    made: list[impact_tasks.ExportedFile] = []
    view._bar.export.save = made.append  # type: ignore[method-assign]
    for form in ("plan", "parquet", "jsonl"):
        view._bar.export._handle_msg({"form": form})
    view._bar.export._handle_msg({"form": "exe"})
    plan, parquet, jsonl = made
    facts = json.loads(plan.data)
    assert [entry["pair_id"] for entry in facts["pairs"]] == [view._pairs.listed.at(i) for i in range(3)]
    assert (facts["direction"], facts["ratio"]) == ("poison", 0.1)
    assert parquet.name.startswith("POISONED-plain-poison-flip-set-10pct-")
    frame = pl.read_parquet(io.BytesIO(parquet.data))
    assert frame["rewardscope_poisoned"].all()
    assert (frame["rewardscope_action"] == "flip").sum() == 3
    assert all(json.loads(row)["rewardscope_poisoned"] for row in jsonl.data.decode().splitlines())
    state.param.update(direction="denoise", action="drop")
    view._bar.export._handle_msg({"form": "parquet"})
    assert "POISON" not in made[-1].name
    assert not pl.read_parquet(io.BytesIO(made[-1].data))["rewardscope_poisoned"].any()
    assert len(pl.read_parquet(io.BytesIO(made[-1].data))) == 37


def test_failures_are_words_with_a_way_out(view: ImpactView, state: AppState, worker: AtOnce) -> None:
    worker.problem = Outcome(problem="The process has stopped.", crashed=True)
    state.param.update(strategy="set", action="drop")
    assert view._failed.visible
    assert "The process has stopped." in view._failed.object
    assert view._retry.visible
    assert view._curve.now["state"] == "failed"
    worker.problem = None
    view._on_retry(None)
    assert not view._failed.visible
    assert view._curve.now["state"] == "done"
    assert len(line(view, "set")) == 8


def test_a_strategy_that_cannot_be_had_costs_the_others_nothing(
    view: ImpactView, state: AppState, plain: RunReader, folder: Path
) -> None:
    ReviewStore(folder).save_set(FeatureSet("foreign", (1,), (2,), sets.sae_of(plain)))
    other = FeatureSet("empty", (), (), sets.sae_of(plain))
    ReviewStore(folder).save_set(other)
    state.set_name = "empty"
    assert "pick features first" in view._failed.object
    assert len(line(view, "margin")) == 8
    state.set_name = "nobody"
    assert "There is no set" in view._failed.object
    assert not view._retry.visible
    assert view._bar.export.disabled
    state.set_name = ""
    assert not view._failed.visible


def test_a_set_without_an_active_sentence_end_is_said(
    view: ImpactView, state: AppState, plain: RunReader, folder: Path
) -> None:
    dead = int(plain.features.frame.filter(~pl.col("alive"))["feature_id"][0])
    ReviewStore(folder).save_set(FeatureSet("silent", (dead,), (), sets.sae_of(plain)))
    state.set_name = "silent"
    assert "every pair score is 0" in view._count.object


@pytest.mark.parametrize(
    ("split", "says"),
    [("test", "None of its pairs is a training pair"), ("train", "All of its pairs are training pairs")],
)
def test_a_run_that_cannot_have_plans_says_why(
    tmp_path: Path, worker: AtOnce, folder: Path, split: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.synthetic_run as synthetic

    monkeypatch.setattr(synthetic, "_impact", lambda *_: pl.DataFrame(schema={"plan": pl.String}))
    original = synthetic._pair_tables

    def one_split(*args: Any) -> dict[str, pl.DataFrame]:
        tables = original(*args)
        return tables | {"pair": tables["pair"].with_columns(split=pl.lit(split))}

    monkeypatch.setattr(synthetic, "_pair_tables", one_split)
    with RunReader.open(write_synthetic_run(tmp_path / split, features=40, pairs=12)) as reader:
        view = ImpactView(AppState(run=split, view="impact"), reader, worker)
        assert says in view.__panel__().object
    assert worker.asked == []


def test_it_costs_nothing_while_another_view_is_on_show(plain: RunReader, worker: AtOnce, folder: Path) -> None:
    state = AppState(run="plain", view="pairs")
    view = ImpactView(state, plain, worker)
    state.strategy = "margin"
    state.ratio = 0.15
    assert worker.asked == []
    state.view = "impact"
    assert view._curve.now["state"] == "done"
    assert view._curve.ratio == 0.15


def test_hostile_text_stays_text(hostile: RunReader, worker: AtOnce, folder: Path) -> None:
    state = AppState(run="hostile", view="impact", ratio=0.2)
    view = ImpactView(state, hostile, worker)
    for strategy in ("set", "margin"):
        state.strategy = strategy
        panes = [view._heading, view._words, view._point, view._count, view._failed, view._waiting]
        detail = view._detail
        panes += [detail._title, detail._place, detail._why, detail._prompt, detail._legend]
        for pane in panes:
            assert_harmless(pane.object or "")
        for pane in detail._panes.values():
            assert_harmless(pane.strip.content)
    domains = [one["name"] for one in view._curve.content["domains"]]
    assert any("onerror" in name for name in domains)  # drawn as text by impact_curve.js


def test_rejected_answers_are_blurred_until_they_are_asked_for(view: ImpactView, state: AppState) -> None:
    state.pair = "pair-001"  # weapons
    assert view._detail._panes["rejected"].strip.blurred
    assert not view._detail._panes["chosen"].strip.blurred
    state.reveal = True
    assert not view._detail._panes["rejected"].strip.blurred


def test_answers_wait_until_the_browser_has_the_page(view: ImpactView) -> None:
    def ended(call: object) -> None:
        raise RuntimeError("the document is gone")

    seen: list[str] = []
    deliver = view._deliver
    deliver._early, deliver._document = [], SimpleNamespace(add_next_tick_callback=lambda call: call())
    deliver._receive(lambda: seen.append("early"))
    assert seen == []
    deliver._on_load()
    assert seen == ["early"]
    deliver._receive(lambda: seen.append("later"))
    assert seen == ["early", "later"]
    deliver._document.add_next_tick_callback = ended
    deliver._receive(lambda: seen.append("too late"))
    assert seen == ["early", "later"]
