"""`rewardscope import` from the command line, and a whole run on an imported SAE whose number of active latents varies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from core.build import build
from core.cli import app
from core.config import load_config
from core.data.chat import encode_pair
from core.models.backbone import load_backbone
from core.progress import Silent
from core.runs import find_run
from core.store.reader import RunReader
from core.summary import summary_lines
from tests.core.models.published import K as SARM_K
from tests.core.models.published import sarm_checkpoint
from tests.core.models.test_armorm import armorm_checkpoint
from tests.core.sae.test_formats import NAME, sarm_state, saved
from tests.tiny_run import LAYER, write_config

D, LATENTS, STORED = 32, 64, 16


def invoke(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["import", *arguments])
    return done.exit_code, done.stdout, done.stderr


def relu_folder(folder: Path) -> Path:
    """A SAELens ReLU SAE of the tiny model: some tokens have no active latent, some more than are stored."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(D, LATENTS, generator=generator) * 0.5
    tensors = {
        "W_enc": weights,
        "b_enc": torch.linspace(-8.0, 2.5, LATENTS),
        "W_dec": (weights / weights.norm(dim=0)).T.contiguous(),
        "b_dec": torch.randn(D, generator=generator) * 0.1,
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": LATENTS,
        "apply_b_dec_to_input": True,
        "normalize_activations": "layer_norm",
        "reshape_activations": "none",
        "dtype": "float32",
        "device": "cpu",
        "metadata": {
            "sae_lens_version": "6.5.0",
            "hook_name": f"blocks.{LAYER - 1}.hook_resid_post",
            "model_name": "tiny",
        },
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def relu_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run built on an imported ReLU SAE."""
    folder = tmp_path_factory.mktemp("relu")
    path = write_config(folder)
    code, _, error = invoke(str(relu_folder(folder / "relu")), "-o", str(folder / "imported"), "--k", str(STORED))
    assert code == 0, error
    config = yaml.safe_load(path.read_text())
    config["sae"] = {"checkpoint": "imported/sae.safetensors"}
    config["head"]["bootstrap"] = 100
    config["salience"], config["impact"] = {"draws": 100, "poolings": ["mean"]}, {"seeds": 1, "bootstrap": 100}
    path.write_text(yaml.safe_dump(config))
    build(load_config(path), Silent())
    return find_run("tiny", folder / "runs")


def test_a_run_on_a_relu_sae_is_that_of_a_plain_computation(relu_run: Path) -> None:
    """Pooled activations, statistics and rewards of a few answers, from dense ReLU activations of transformers' states."""
    folder = relu_run.parents[1]
    held = load_file(folder / "relu" / "sae_weights.safetensors")
    backbone = load_backbone(folder / "model", LAYER, dtype="float32", device="cpu")
    with RunReader.open(relu_run) as reader:
        arrays, pairs, responses = reader.arrays, reader.table("pair"), reader.table("response")
        feature, evaluation = reader.table("feature").sort("feature_id"), reader.evaluation
        manifest = reader.manifest
    weights = feature["weight"].to_numpy()
    messages = dict(zip(pairs["pair_index"].to_list(), map(json.loads, pairs["messages"].to_list()), strict=True))
    seen = 0
    for row in responses.sort("response_id").head(12).to_dicts():
        (answer,) = encode_pair(backbone.tokenizer, messages[row["pair_index"]], [row["text"]], max_length=128)
        x = backbone.states([answer.ids])[0][answer.answer_start :]
        h = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
        dense = torch.relu((h - held["b_dec"]) @ held["W_enc"] + held["b_enc"])
        kept = torch.zeros_like(dense).scatter_(1, dense.topk(STORED).indices, dense.topk(STORED).values).numpy()
        where = slice(int(arrays.pooled_ptr[row["response_id"]]), int(arrays.pooled_ptr[row["response_id"] + 1]))
        np.testing.assert_array_equal(arrays.pooled_features[where], np.flatnonzero(kept.any(axis=0)))
        np.testing.assert_allclose(arrays.mean[where], kept.mean(0)[kept.any(axis=0)], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(arrays.last[where], kept[-1][kept.any(axis=0)], rtol=1e-4, atol=1e-5)
        assert row["reward"] == pytest.approx(float(kept.mean(0).astype(np.float64) @ weights), abs=1e-4)
        seen += len(kept)
    assert seen > 60
    active = np.asarray(arrays.token_values) != 0
    assert 0 < active.mean() < 1
    counts = np.bincount(np.asarray(arrays.token_features)[active], minlength=LATENTS)
    np.testing.assert_array_equal(feature["n_tokens"].to_numpy(), counts)
    quality = manifest.sae["quality"]
    assert 0 < quality["cut_share"] < 1
    full = evaluation.filter(metric="full_tokens").to_dicts()[0]
    assert full["value"] == pytest.approx(float(active.all(axis=1).mean()))
    assert full["n"] == len(active)
    said = dict(summary_lines(manifest.model_dump(mode="json")))["sae"]
    assert f"relu (saelens), M={LATENTS}, the {STORED} largest of a token stored" in said


def test_a_sae_of_another_layer_is_refused_by_a_build(relu_run: Path, tmp_path: Path) -> None:
    folder = relu_run.parents[1]
    config = yaml.safe_load((folder / "tiny.yaml").read_text())
    config["name"], config["model"]["layer"] = "other", LAYER - 1
    config["runs"] = str(tmp_path)
    (folder / "other.yaml").write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(app, ["build", str(folder / "other.yaml")])
    assert done.exit_code == 1
    assert f"reads hidden_states[{LAYER}], but model.layer is {LAYER - 1}" in done.stderr


def test_models_and_saes_are_imported_and_said(tmp_path: Path) -> None:
    code, output, _ = invoke(str(sarm_checkpoint(tmp_path / "a")), "-o", str(tmp_path / "sarm"), "--json")
    facts = json.loads(output)
    assert (code, facts["kind"], facts["k"], facts["notes"]) == (0, "sarm", SARM_K, [])
    scored = CliRunner().invoke(app, ["score", "--model", str(tmp_path / "sarm"), "-p", "w4", "-a", "w5 w6", "--json"])
    assert scored.exit_code == 0, scored.output
    answer = json.loads(scored.stdout)["answers"][0]
    total = sum(entry["contribution"] for entry in answer["contributions"]) + answer["other"]["contribution"]
    assert total == pytest.approx(answer["reward"])

    code, output, _ = invoke(str(armorm_checkpoint(tmp_path / "b")), "-o", str(tmp_path / "armorm"), "--json")
    facts = json.loads(output)
    assert (code, facts["layout"], len(facts["objectives"])) == (0, "armorm", 19)

    pt = saved(tmp_path / NAME, sarm_state())
    code, output, _ = invoke(str(pt), "-o", str(tmp_path / "own.safetensors"), "--kind", "sae", "--json")
    facts = json.loads(output)
    assert (code, facts["layer"], facts["latents"], facts["d_model"]) == (0, 16, 6, 4)
    code, output, _ = invoke(str(pt), "-o", str(tmp_path / "folder"))
    assert code == 0
    assert (tmp_path / "folder" / "sae.safetensors").is_file()
    assert "sarm-pt" in output


def write_plain_model(folder: Path) -> Path:
    write_config(folder)
    return folder / "model"


@pytest.mark.parametrize(
    ("make", "options", "code", "sentence"),
    [
        (lambda f: saved(f / NAME, sarm_state()), ["--kind", "sarm"], 1, "of the layout pt, not what --kind sarm"),
        (lambda f: saved(f / NAME, sarm_state()), ["--kind", "sea"], 2, "--kind is auto, sarm, sae, armorm"),
        (lambda f: saved(f / "stage1.pt", sarm_state()), [], 1, "give --layer and --k"),
        (lambda f: saved(f / NAME, sarm_state()), ["--input-scale", "2"], 1, "--input-scale is for SAELens"),
        (write_plain_model, [], 1, "is an ordinary model"),
    ],
)
def test_failures_are_one_sentence(tmp_path: Path, make: Any, options: list[str], code: int, sentence: str) -> None:
    found, output, error = invoke(str(make(tmp_path)), "-o", str(tmp_path / "out"), *options)
    assert found == code
    assert sentence in error
    assert output == ""
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    code, _, error = invoke(str(sarm_checkpoint(tmp_path / "a")), "-o", str(tmp_path / "out"))
    assert code == 1
    assert "exists already" in error
