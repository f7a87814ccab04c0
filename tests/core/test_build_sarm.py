"""A run of a SARM model: trained by the build or given as a folder; its rewards are the model's own, to the last verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from core.build import BuildResult, build
from core.cli import app
from core.config import RewardTrainingConfig, load_config
from core.errors import ConfigError, RunError
from core.impact.inputs import load_inputs
from core.impact.retrain import Retraining
from core.models.sarm import load_sarm
from core.progress import Silent
from core.rewards.score import load_scorer
from core.sae.checkpoint import load_sae
from core.store.reader import RunReader
from core.store.sets import FeatureSet, set_to_json
from tests.tiny_run import LATENTS, LAYER, write_config

SARM = {"mode": "frozen_sae", "scope": "full", "epochs": 4, "learning_rate": 2e-3, "batch": 8}


def changed(path: Path, **sections: object) -> Path:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**raw, **sections}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """reward_model.sarm: an SAE, then the model, then its run."""
    path = write_config(tmp_path_factory.mktemp("trained"))
    return build(load_config(changed(path, reward_model={"kind": "sarm", "sarm": SARM})), Silent())


@pytest.fixture(scope="module")
def folder(trained: BuildResult) -> Path:
    return trained.folder / str(trained.manifest.model["checkpoint"])


def given_config(folder: Path, where: Path, **sections: object) -> Path:
    """A run of the finished folder; nothing is said of layer, SAE and pooling."""
    path = write_config(where)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    model = {key: value for key, value in raw["model"].items() if key != "layer"} | {"name": str(folder)}
    return changed(
        path, **{"model": model, "sae": {}, "head": {"bootstrap": 200}, "reward_model": {"kind": "sarm"}, **sections}
    )


def plain_rewards(folder: Path, frame: object) -> list[float]:
    """Through AutoModelForSequenceClassification, one answer at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for row in frame.to_dicts():  # type: ignore[attr-defined]
        before = tokenizer(f"User: {row['prompt']}\n\nAssistant:")["input_ids"]
        ids = tokenizer(f"User: {row['prompt']}\n\nAssistant: {row['text']}")["input_ids"] + [tokenizer.eos_token_id]
        with torch.inference_mode():
            found.append(model(torch.tensor([ids]), answer_start=torch.tensor([len(before)])).logits.item())
    return found


def test_the_runs_rewards_are_the_trained_models(trained: BuildResult, folder: Path) -> None:
    with RunReader.open(trained.folder) as reader:
        rows = reader.table("response").join(reader.table("pair").select("pair_id", "prompt"), on="pair_id").head(20)
        held = reader.figure("held-out", "accuracy")
    expected = plain_rewards(folder, rows)
    np.testing.assert_allclose(rows["reward"], expected, atol=1e-4 * np.std(expected))
    assert np.std(expected) > 0.01
    assert trained.manifest.health["sum_error"] < 1e-4
    # The head is the model's, not a fit; the figure measured after training is the run's.
    facts = json.loads((folder / "rewardscope.json").read_text())
    loaded = load_sarm(folder, dtype="float32", device="cpu")
    np.testing.assert_array_equal(load_scorer(trained.folder, device="cpu").head.weights, loaded.head.weights)
    assert held is not None
    assert facts["held_out"]["accuracy"] == pytest.approx(held["value"])
    assert facts["held_out"]["n"] == held["n"]
    sae, metadata = load_sae(trained.folder / "sae.safetensors")
    assert all(
        torch.equal(mine, theirs) for mine, theirs in zip(sae.parameters(), loaded.sae.parameters(), strict=True)
    )
    assert metadata["level"] == "token"
    assert trained.manifest.head["trained"]["mode"] == "frozen_sae"


def test_a_given_folder_decides_layer_sae_and_pooling(trained: BuildResult, folder: Path, tmp_path: Path) -> None:
    path = given_config(folder, tmp_path)
    made = build(load_config(path), Silent())
    with RunReader.open(made.folder) as reader, RunReader.open(trained.folder) as own:
        np.testing.assert_array_equal(reader.rewards(), own.rewards())
    assert made.manifest.model["layer"] == LAYER
    assert made.manifest.config["sae"]["latents"] == LATENTS
    assert made.manifest.sae["latents"] == trained.manifest.sae["latents"] == str(LATENTS)
    again = load_config(made.folder / "config.yaml").model_copy(update={"runs": tmp_path / "runs"})
    assert build(again, Silent()).unchanged
    for sections, what in (
        ({"sae": {"latents": 64}}, "sae.latents is 64, but the SARM model .* has 48; leave sae.latents out"),
        ({"head": {"pooling": "last"}}, "head.pooling is last, but the SARM model .* has mean"),
        ({"reward_model": {"kind": "head"}}, "is a SARM folder; set reward_model"),
        ({"reward_model": {"kind": "sarm", "sarm": SARM}}, "is a SARM folder; leave reward_model.sarm out"),
        ({"model": {"name": str(tmp_path / "model")}}, "is not a SARM folder; give one"),
    ):
        with pytest.raises(ConfigError, match=what):
            build(load_config(changed(given_config(folder, tmp_path), **sections)), Silent())
    with RunReader.open(made.folder) as reader:
        inputs = load_inputs(reader)
        with pytest.raises(RunError, match=r"build the run .* with reward_model.sarm"):
            Retraining(reader, inputs, RewardTrainingConfig(scope="head"), Silent()).baseline()


def test_the_verbs_work_on_it(trained: BuildResult, tmp_path: Path) -> None:
    def run(*arguments: str) -> dict[str, object]:
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    where = str(trained.folder)
    with RunReader.open(trained.folder) as reader:
        pair, answer = reader.table("pair").row(0, named=True), reader.table("response").row(0, named=True)
        sae = reader.manifest.sae["sha256"]
        frequent = np.bincount(reader.arrays.token_features.reshape(-1), minlength=LATENTS).argsort()[-2:].tolist()
    scored = run("score", where, "-p", pair["prompt"], "-a", answer["text"])
    assert scored["answers"][0]["reward"] == pytest.approx(answer["reward"], abs=1e-4)  # type: ignore[index]
    retrained = run("retrain", where, "--baseline", "--scope", "head", "--epochs", "2")
    assert retrained["points"][0]["kind"] == "retrained"  # type: ignore[index]
    previewed = run("impact", where, "--strategies", "margin", "--ratios", "20%")
    assert previewed["points"]
    assert run("info", where)["head"]["l2"] is None  # type: ignore[index]
    shown = CliRunner().invoke(app, ["info", where])
    assert "of the SARM model (mode frozen_sae, scope full" in " ".join(shown.stdout.split())
    one = FeatureSet("frequent", (frequent[0],), (frequent[1],), sae)
    (tmp_path / "set.json").write_text(set_to_json(one), encoding="utf-8")
    for method in ("head", "residual"):
        checked = run("ablate", where, "--set", str(tmp_path / "set.json"), "--method", method, "--pairs", "10")
        assert checked["n_checked"], method


def test_a_preview_refits_first(trained: BuildResult) -> None:
    """The trained head is no ridge optimum: changes are counted from the refit on unchanged pairs, not from it."""
    with RunReader.open(trained.folder) as reader:
        inputs = load_inputs(reader)
    assert inputs.kind == "sarm"
    assert inputs.head is None
    assert inputs.unchanged.gradient_norm <= inputs.settings.tolerance


def test_an_sae_that_has_seen_the_pairs_is_not_trained_with_again(trained: BuildResult) -> None:
    with RunReader.open(trained.folder) as reader:
        reader.manifest.config["reward_model"]["sarm"]["mode"] = "joint"
        with pytest.raises(RunError, match="SAE was trained on its preference pairs too"):
            Retraining(reader, load_inputs(reader), RewardTrainingConfig(scope="head"), Silent()).baseline()
