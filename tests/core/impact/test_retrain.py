"""Retraining: both kinds of runs, every scope, really another model; kept once trained; nothing half-written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from core.build import build
from core.config import RewardTrainingConfig, load_config
from core.errors import DataError, RunError
from core.impact import retrain as module
from core.impact.inputs import load_inputs
from core.impact.plans import make_plan, save_plan
from core.impact.retrain import Retraining, read_retrained
from core.progress import Silent
from core.store.reader import RunReader
from core.store.review import ReviewStore
from tests.tiny_run import LAYER, write_config

SETTINGS = {"epochs": 3.0, "learning_rate": 5e-3, "batch": 8}


def build_run(folder: Path, **sections: object) -> Path:
    path = write_config(folder)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **sections}))
    return build(load_config(path), Silent()).folder


@pytest.fixture(scope="module")
def sarm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose head on SAE features is the reward model."""
    return build_run(tmp_path_factory.mktemp("sarm"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an ordinary reward model, trained by the build."""
    train = {"scope": "full", "layers": LAYER, **SETTINGS}
    return build_run(tmp_path_factory.mktemp("classifier"), reward_model={"kind": "classifier", "train": train})


@pytest.fixture(params=["sarm", "classifier"])
def run(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(
    ("kind", "scope"), [("sarm", "head"), ("sarm", "lora"), ("sarm", "full"), ("classifier", "lora")]
)
def test_a_plan_is_retrained_and_measured_against_the_baseline(
    request: pytest.FixtureRequest, kind: str, scope: str
) -> None:
    run: Path = request.getfixturevalue(kind)
    with RunReader.open(run) as reader:
        inputs = load_inputs(reader)
        plan = make_plan(inputs, strategy="random", direction="poison", action="flip", ratio=0.5, seed=1)
        retraining = Retraining(reader, inputs, RewardTrainingConfig(scope=scope, **SETTINGS), Silent())
        rows = pl.DataFrame(retraining.points(plan))
        before, after = retraining.baseline(), retraining.retrain(plan)
    assert set(rows["plan"]) == {"none", plan.id}
    assert set(rows["domain"]) == {"all", "safety", "chat"}
    assert rows["n"].sum() == 4 * int((~inputs.train).sum())
    assert np.abs(after.rewards - before.rewards).max() > 1e-3
    facts = json.loads(rows.filter(plan=plan.id)["details"][0])
    assert facts["scope"] == scope
    assert facts["n_changed"] == len(plan.edits)
    assert facts["loss_last"] < facts["loss_first"]
    ReviewStore(run.parent).save_impact(rows.to_dicts())
    stored = ReviewStore(run.parent).impact(inputs.run_id).filter(kind="retrained", scope=scope)
    assert len(stored) == len(rows)


def test_flipping_every_pair_turns_what_is_learnt_around(run: Path) -> None:
    """On a head that starts at zero, swapped answers train the exact opposite."""
    with RunReader.open(run) as reader:
        inputs = load_inputs(reader)
        everything = make_plan(inputs, strategy="random", direction="poison", action="flip", ratio=1.0)
        retraining = Retraining(reader, inputs, RewardTrainingConfig(scope="head", **SETTINGS), Silent())
        before, after = retraining.baseline().rewards, retraining.retrain(everything).rewards
    np.testing.assert_allclose(after, -before, atol=1e-4 * np.abs(before).max())


def test_a_finished_retrain_is_kept_and_a_broken_one_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise RuntimeError("the power went")

    with RunReader.open(run) as reader:
        inputs = load_inputs(reader)
        retraining = Retraining(reader, inputs, RewardTrainingConfig(scope="head", **SETTINGS), Silent())
        first = retraining.baseline()
        kept = sorted((run / module.FOLDER).iterdir())
        monkeypatch.setattr(module, "fit_bradley_terry", none)
        again = retraining.baseline()  # from the file: nothing is trained
        np.testing.assert_array_equal(again.rewards, first.rewards)
        assert again.facts == first.facts
        other = Retraining(reader, inputs, RewardTrainingConfig(scope="head", seed=5, **SETTINGS), Silent())
        with pytest.raises(RuntimeError, match="power"):
            other.baseline()
    assert sorted((run / module.FOLDER).iterdir()) == kept
    assert read_retrained(run / "nothing.npz") is None
    damaged = run.parent / "damaged.npz"
    for content in (b"", b"PK\x03\x04", kept[0].read_bytes()[:-40]):
        damaged.write_bytes(content)
        assert read_retrained(damaged) is None


def test_a_limit_takes_fewer_pairs_evenly(sarm: Path) -> None:
    with RunReader.open(sarm) as reader:
        inputs = load_inputs(reader)
        settings = RewardTrainingConfig(scope="head", **SETTINGS)
        pairs = np.unique(Retraining(reader, inputs, settings, Silent(), limit=9).comparisons.pair)
        everything = np.unique(Retraining(reader, inputs, settings, Silent()).comparisons.pair)
    np.testing.assert_array_equal(everything, np.flatnonzero(inputs.train))
    assert len(pairs) == 9
    assert inputs.train[pairs].all()
    assert np.diff(np.searchsorted(everything, pairs)).max() <= len(everything) // 9 + 1


def test_a_plan_for_other_pairs_is_refused(sarm: Path) -> None:
    with RunReader.open(sarm) as reader:
        inputs = load_inputs(reader)
        plan = make_plan(inputs, strategy="random", direction="poison", action="flip", ratio=0.1)
        retraining = Retraining(reader, inputs, RewardTrainingConfig(scope="head"), Silent())
        with pytest.raises(DataError, match="made for other pairs"):
            retraining.retrain(replace(plan, data_sha256="0" * 64))


def test_a_given_checkpoint_cannot_be_trained_again(classifier: Path) -> None:
    with RunReader.open(classifier) as reader:
        inputs = load_inputs(reader)
        reader.manifest.config["reward_model"]["train"] = None
        with pytest.raises(RunError, match="not known what to train again from"):
            Retraining(reader, inputs, RewardTrainingConfig(scope="head"), Silent()).baseline()


def test_the_verb_writes_its_points_beside_the_preview(sarm: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    import core.commands.retrain  # noqa: F401
    from core.cli import app

    with RunReader.open(sarm) as reader:
        inputs = load_inputs(reader)
    plan = make_plan(inputs, strategy="margin", direction="denoise", action="drop", ratio=0.2)
    save_plan(plan, tmp_path / "plan.json")
    options = ["--scope", "head", "--epochs", "3", "--learning-rate", "0.005", "--json"]
    done = CliRunner().invoke(app, ["retrain", str(sarm), "--plan", str(tmp_path / "plan.json"), *options])
    assert done.exit_code == 0, done.stderr
    points = json.loads(done.stdout)["points"]
    assert {point["kind"] for point in points} == {"retrained"}
    assert all(point["preview"]["domain"] == point["domain"] for point in points)
    stored = ReviewStore(sarm.parent).impact(inputs.run_id)
    assert set(stored.filter(plan=plan.id, scope="head")["domain"]) == {"all", "safety", "chat"}
    wrong = CliRunner().invoke(app, ["retrain", str(sarm), "--scope", "head"])
    assert wrong.exit_code == 2
    assert "either --plan FILE or --baseline" in wrong.stderr
