"""Training a SARM model: each mode trains what it says, by the right gradients; the best step is kept; nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from core.cli import app
from core.config import PairsConfig, SarmTrainingConfig
from core.data.load import load_pairs
from core.data.schema import PreferencePairs
from core.errors import ConfigError, DataError, ModelError
from core.models.sarm import load_sarm, sarm_of
from core.progress import Silent
from core.rewards import train_sarm as module
from core.rewards import validation
from core.rewards.scopes import opened, reconstructs
from core.rewards.train_sarm import held_back_prompts, train_sarm
from core.sae.topk import TopKSAE
from tests.core.models.architectures import save_model
from tests.tiny_run import write_config, write_pairs

LAYER, LATENTS, K = 3, 48, 5
FAST = {"epochs": 3, "learning_rate": 5e-3, "batch": 8}
MODES = [
    ("head", "head"),
    ("frozen_sae", "full"),
    ("frozen_sae", "lora"),
    ("joint", "lora"),
    ("separate", "full"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PreferencePairs:
    source = write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")
    return load_pairs(PairsConfig(source=str(source), test_fraction=0.3))


@pytest.fixture(scope="module")
def sae() -> TopKSAE:
    torch.manual_seed(3)
    made = TopKSAE(32, LATENTS, K, seed=1)
    for weight in (made.pre_bias, made.latent_bias):
        torch.nn.init.normal_(weight, std=0.3)
    return made


def trained(
    config: SarmTrainingConfig, base: Path, sae: TopKSAE | None, pairs: PreferencePairs, out: Path
) -> dict[str, Any]:
    return train_sarm(
        config, base, sae, LAYER, pairs, out, Silent(), pooling="mean", max_length=64, dtype="float32", device="cpu"
    )


def group_of(key: str) -> str:
    return "blocks" if key.startswith("model.layers.") else "embeddings" if key.startswith("model.") else key


# ------------------------------------------------------------------------------------------------ gradients


def plain_losses(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Bradley-Terry, and the reconstruction with and without the states' part, from a dense masked TopK, with autograd."""
    x = model.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    sae, rewards, joint, detached = model.sae, [], [], []

    def features(states: Tensor) -> tuple[Tensor, Tensor]:
        h = (states - states.mean(1, keepdim=True)) / (states.std(1, keepdim=True) + 1e-6)
        pre = (h - sae.pre_bias) @ sae.encoder.weight.T + sae.latent_bias
        mask = torch.zeros_like(pre).scatter(1, pre.topk(K, dim=1).indices, 1.0)
        return h, pre * mask

    for row, start in enumerate(inputs["answer_start"].tolist()):
        states = x[row, start : int(inputs["attention_mask"][row].sum())]
        rewards.append((features(states)[1] @ model.score.weight[0]).mean())
        for some, to in ((states, joint), (states.detach(), detached)):
            h, z = features(some)
            error = z @ sae.decoder.weight.T + sae.pre_bias - h
            to.append(error.square().sum(1) / h.square().sum(1))
    chosen, rejected = torch.stack(rewards).chunk(2)
    loss = torch.nn.functional.softplus(rejected - chosen).mean()
    return loss, torch.cat(joint).mean(), torch.cat(detached).mean()


@pytest.mark.parametrize("mode", ["head", "frozen_sae", "joint", "separate"])
def test_gradients_are_those_of_an_independent_computation(base: Path, sae: TopKSAE, mode: str) -> None:
    """In float64: what has a gradient in each mode, and which."""
    config = SarmTrainingConfig.model_validate(
        {"mode": mode, "reconstruction": 0.7, **({} if mode == "head" else {"scope": "full"})}
    )
    model = opened(sarm_of(base, sae, LAYER, "mean").double(), config, None)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.score.weight)
    mask = torch.tensor([[1] * n + [0] * (12 - n) for n in (12, 9, 10, 12)])
    inputs = {
        "input_ids": torch.randint(4, 97, (4, 12)),
        "attention_mask": mask,
        "answer_start": torch.tensor([4, 3, 5, 2]),
    }
    out = model(**inputs, reconstruct=reconstructs(config))
    chosen, rejected = out.logits[:, 0].chunk(2)
    loss = torch.nn.functional.softplus(rejected - chosen).mean()
    (loss if out.reconstruction is None else loss + config.reconstruction * out.reconstruction).backward()
    found = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    opens = {
        "head": {"score.weight"},
        "frozen_sae": {"score.weight", "blocks", "embeddings"},
    }.get(mode, {"score.weight", "blocks", "embeddings", *(f"sae.{key}" for key in sae.state_dict())})
    assert {group_of(key) for key in found} == opens

    model.requires_grad_(True)
    bradley_terry, joint, detached = plain_losses(model, inputs)
    add = {"joint": 0.7 * joint, "separate": 0.7 * detached}.get(mode, torch.zeros(()))
    names = list(found)
    expected = torch.autograd.grad(bradley_terry + add, [model.get_parameter(name) for name in names])
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, atol=1e-12, rtol=1e-8, msg=name)
    if mode == "separate":  # the blocks feel the Bradley-Terry loss alone
        bradley_terry, _, _ = plain_losses(model, inputs)
        block = "model.layers.1.mlp.up_proj.weight"
        (alone,) = torch.autograd.grad(bradley_terry, [model.get_parameter(block)])
        torch.testing.assert_close(found[block], alone, atol=1e-12, rtol=1e-8)


# ------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(("mode", "scope"), MODES)
def test_a_mode_trains_what_it_says_and_keeps_its_best_step(
    base: Path, sae: TopKSAE, pairs: PreferencePairs, tmp_path: Path, mode: str, scope: str
) -> None:
    config = SarmTrainingConfig(mode=mode, scope=scope, validation_fraction=0.3, **FAST)
    facts = trained(config, base, sae, pairs, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert json.loads((tmp_path / "model" / "rewardscope.json").read_text()) == json.loads(json.dumps(facts))
    before = sarm_of(base, sae, LAYER, "mean").state_dict()
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {group_of(key) for key, weight in after.items() if not torch.equal(weight, before[key])}
    blocks = {"head": set(), "lora": {"blocks"}, "full": {"blocks", "embeddings"}}[scope]
    assert changed == {"score.weight"} | blocks | (
        {f"sae.{k}" for k in sae.state_dict()} if mode in ("joint", "separate") else set()
    )
    # What is kept is the earliest of the best steps, as the folder itself shows.
    best = max(entry["accuracy"] for entry in facts["measured"])
    assert facts["best_step"] == min(entry["step"] for entry in facts["measured"] if entry["accuracy"] == best)
    assert facts["measured"][-1]["step"] == facts["steps"] == 9
    rest, held = held_back_prompts(pairs.pairs.filter(pl.col("split") == "train"), config)
    assert facts["n_pairs"] == rest.height
    assert not set(rest["prompt_id"]) & set(held["prompt_id"])
    as_test = PreferencePairs(held.with_columns(pl.lit("test").alias("split")), pairs.responses, (), {})
    again = module.held_out_margins(tmp_path / "model", as_test, Silent(), max_length=64, dtype="float32", device="cpu")
    assert module.held_out_accuracy(again)["accuracy"] == pytest.approx(best)
    stored = pl.read_parquet(tmp_path / "model" / "held_out.parquet")
    assert stored["pair_id"].to_list() == pairs.pairs.filter(pl.col("split") == "test")["pair_id"].to_list()
    assert facts["held_out"]["n"] == stored.height
    assert facts["held_out"]["accuracy"] == pytest.approx((stored["margin"] > 0).mean())


def test_training_teaches_the_training_pairs(base: Path, sae: TopKSAE, pairs: PreferencePairs, tmp_path: Path) -> None:
    config = SarmTrainingConfig(scope="full", validation_fraction=0, epochs=8, learning_rate=5e-3, batch=8)
    facts = trained(config, base, sae, pairs, tmp_path / "model")
    assert "best_step" not in facts  # nothing is held back: the last step is kept
    assert facts["loss_last"] < 0.4 < facts["loss_first"] == pytest.approx(np.log(2), abs=1e-3)
    train = pairs.pairs.filter(pl.col("split") == "train").with_columns(pl.lit("test").alias("split"))
    seen = module.held_out_margins(
        tmp_path / "model", PreferencePairs(train, pairs.responses, (), {}), Silent(), max_length=64,
        dtype="float32", device="cpu",
    )  # fmt: skip
    assert (seen["margin"] > 0).mean() > 0.8


def test_an_interrupted_training_ends_with_the_same_weights(
    base: Path, sae: TopKSAE, pairs: PreferencePairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SarmTrainingConfig(scope="lora", evaluate_every=2, **{**FAST, "epochs": 2})
    trained(config, base, sae, pairs, tmp_path / "whole")
    measure, calls = validation.measured_rewards, []

    def dies(*arguments: Any) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr("core.rewards.trainer.measured_rewards", dies)
    with pytest.raises(KeyboardInterrupt):
        trained(config, base, sae, pairs, tmp_path / "parts")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.training", "whole"]
    facts = trained(config, base, sae, pairs, tmp_path / "parts")
    assert len(calls) == 3 + facts["steps"] // 2 - 2  # the first two measurements are not made again
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["parts", "whole"]


def test_without_an_sae_it_is_a_plain_linear_head(base: Path, pairs: PreferencePairs, tmp_path: Path) -> None:
    config = SarmTrainingConfig(mode="head", encoder="identity", epochs=2, batch=8)
    facts = trained(config, base, None, pairs, tmp_path / "plain")
    assert (facts["encoder"], facts["latents"], facts["loss_last"] < facts["loss_first"]) == ("identity", 33, True)
    weights = load_file(tmp_path / "plain" / "model.safetensors")["score.weight"][0]
    assert (weights[:32] != 0).all()
    assert weights[32] == 0  # the spare feature is never active


def test_gradient_checkpointing_changes_nothing(
    base: Path, sae: TopKSAE, pairs: PreferencePairs, tmp_path: Path
) -> None:
    files = []
    for name, on in (("without", False), ("with", True)):
        config = SarmTrainingConfig(scope="lora", gradient_checkpointing=on, **{**FAST, "epochs": 1})
        facts = trained(config, base, sae, pairs, tmp_path / name)
        assert facts["gradient_checkpointing"] is on
        files.append(load_file(tmp_path / name / "model.safetensors"))
    for key, value in files[0].items():
        torch.testing.assert_close(files[1][key], value, atol=1e-6, rtol=1e-5)


def test_in_bfloat16_the_sae_and_the_head_are_trained_in_float32(
    base: Path, sae: TopKSAE, pairs: PreferencePairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrix products of the blocks are bfloat16 (seen in the states), those of SAE and head are not (seen in the activations)."""
    seen: list[tuple[torch.dtype, bool]] = []
    encode = TopKSAE.encode

    def watched(self: TopKSAE, x: Tensor) -> Any:
        found = encode(self, x)
        if x.requires_grad:
            fine = not torch.equal(found.values.detach().bfloat16().float(), found.values.detach())
            seen.append((found.values.dtype, fine))
        return found

    monkeypatch.setattr(module, "trains_in_bf16", lambda *_: True)
    monkeypatch.setattr(TopKSAE, "encode", watched)
    config = SarmTrainingConfig(mode="joint", scope="full", **{**FAST, "epochs": 1})
    facts = train_sarm(
        config, base, sae, LAYER, pairs, tmp_path / "model", Silent(), pooling="mean", max_length=64, device="cpu"
    )
    assert facts["bf16"]
    assert set(seen) == {(torch.float32, True)}
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {str(w.dtype) for key, w in stored.items() if not key.startswith("model.")} == {"torch.float32"}
    assert {str(w.dtype) for key, w in stored.items() if key.startswith("model.")} == {"torch.bfloat16"}
    assert not torch.equal(stored["sae.encoder.weight"].bfloat16().float(), stored["sae.encoder.weight"])


# ---------------------------------------------------------------------------------------- settings and the verb


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"mode": "joint", "scope": "head"}, "the same thing"),
        ({"mode": "head", "scope": "lora"}, "the same thing"),
        ({"mode": "separate", "scope": "full", "encoder": "identity"}, "no SAE to train"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, str], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        SarmTrainingConfig.model_validate(settings)


def test_a_lone_head_needs_no_scope() -> None:
    config = SarmTrainingConfig(mode="head")
    assert config.scope == "head"
    assert SarmTrainingConfig.model_validate(config.model_dump()) == config


def test_what_cannot_be_trained_is_said(base: Path, sae: TopKSAE, pairs: PreferencePairs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="layers is 2, but the SAE reads layer 3"):
        trained(SarmTrainingConfig(layers=2), base, sae, pairs, out)
    with pytest.raises(ConfigError, match="needs an SAE"):
        trained(SarmTrainingConfig(), base, None, pairs, out)
    held_out = PreferencePairs(pairs.pairs.filter(split="test"), pairs.responses, (), {})
    with pytest.raises(DataError, match="no training pairs"):
        trained(SarmTrainingConfig(), base, sae, held_out, out)
    with pytest.raises(ModelError, match="diverged"):
        trained(SarmTrainingConfig(scope="full", learning_rate=1e30, validation_fraction=0), base, sae, pairs, out)
    assert not out.exists()


def test_the_verb_writes_a_model(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    wrong = CliRunner().invoke(app, ["train", str(path), "-o", str(tmp_path / "model2")])
    assert wrong.exit_code == 2
    assert "nothing to train" in wrong.stderr
    raw["sae"] |= {"level": "random"}
    raw["reward_model"] = {"kind": "sarm", "sarm": {"scope": "full", **FAST}}
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    done = CliRunner().invoke(app, ["train", str(path), "-o", str(tmp_path / "sarm"), "--json"])
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["held_out"]["n"] > 5
    assert facts["sae"]["level"] == "random"
    assert load_sarm(tmp_path / "sarm", device="cpu").sae.latents == LATENTS
    again = CliRunner().invoke(app, ["train", str(path), "-o", str(tmp_path / "sarm")])
    assert again.exit_code == 2
    assert "exists" in again.stderr
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".work", ".training", ".part")]


@pytest.mark.slow
def test_two_processes_take_the_same_steps_as_one(tmp_path: Path) -> None:
    """With every pair in each step, so that the order in which pairs are drawn does not matter; gloo, on the CPU."""
    path = write_config(tmp_path)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["reward_model"] = {"kind": "sarm", "sarm": {"scope": "full", "epochs": 3, "learning_rate": 2e-3, "batch": 26}}
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    facts = {}
    for name, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--nproc_per_node", "2"])):
        command = [sys.executable, *launcher, "-m", "core", "train", str(path), "-o", str(tmp_path / name), "--json"]
        # torchrun gives every process one thread; sums over two would differ in the last bits.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3], env=environment
        )
        assert done.returncode == 0, done.stderr
        facts[name] = json.loads(done.stdout)  # one process prints
    assert [facts[name]["processes"] for name in ("one", "two")] == [1, 2]
    assert facts["one"]["n_comparisons"] == 26
    assert facts["one"]["measured"] == facts["two"]["measured"]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-6, rtol=1e-5, msg=key)
