"""Published SARM checkpoints: the rewards of the folder made of them are those of a plain float64 computation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import AutoModel

from core.data.chat import encode_pair
from core.errors import ModelError
from core.models.published_sarm import import_sarm
from core.models.sarm import load_sarm
from tests.core.models.published import LATENTS, LAYER, D, K, sarm_checkpoint

MESSAGES = [{"role": "user", "content": "w4 w5 w6"}]
ANSWERS = ["w7 w8", "w9 w10 w11 w12 w13", "w14"]


def plain_rewards(source: Path, base: Path, sequences: list[list[int]]) -> list[float]:
    """w . TopK(W_enc (h - b_pre) + b_lat) of the last token's hidden_states[l], in float64, one sequence at a time."""
    held = {name: tensor.double() for file in source.glob("*.safetensors") for name, tensor in load_file(file).items()}
    model = AutoModel.from_pretrained(base, dtype=torch.float64).eval()
    own = {name.removeprefix("model."): tensor for name, tensor in held.items() if name.startswith("model.")}
    model.load_state_dict(own, strict=False)  # blocks above the SAE keep other weights: they must not matter
    rewards = []
    for ids in sequences:
        with torch.no_grad():
            x = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER][0, -1]
        h = (x - x.mean()) / (x.std() + 1e-6)
        pre = held["sae.encoder.weight"] @ (h - held["sae.pre_bias"]) + held["sae.latent_bias"]
        top = pre.topk(K)
        rewards.append(float(held["score.weight"][0, top.indices] @ top.values))
    return rewards


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize("pad", ["[PAD]", "</s>"], ids=["pad", "pad-is-end-of-turn"])
def test_rewards(tmp_path: Path, architecture: str, pad: str) -> None:
    """Also with a padding token that ends the turn: the published code then reads the wrong token."""
    source = sarm_checkpoint(tmp_path, architecture=architecture, pad=pad)
    made = import_sarm(source, tmp_path / "sarm")
    assert bool(made.notes) is (pad == "</s>")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sarm")
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    encoded = encode_pair(tokenizer, MESSAGES, ANSWERS, max_length=64)
    ids = [answer.ids for answer in encoded]
    assert all(row[-1] == tokenizer.eos_token_id for row in ids)
    expected = plain_rewards(source, tmp_path / "base", ids)

    loaded = load_sarm(tmp_path / "sarm", dtype="float32", device="cpu")
    found = loaded.rewards([[(answer.ids, answer.answer_start) for answer in encoded]])
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # As transformers loads it, in one padded batch, padded on either side with the tokenizer's own token.
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sarm", dtype=torch.float32).eval()
    for side in ("right", "left"):
        batch = tokenizer.pad({"input_ids": ids}, padding_side=side, return_tensors="pt")
        with torch.no_grad():
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
        np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_what_is_written(tmp_path: Path) -> None:
    """The weights bit for bit, without what is not used; no code; the folder says where it comes from."""
    source = sarm_checkpoint(tmp_path)
    made = import_sarm(source, tmp_path / "sarm")
    written = load_file(tmp_path / "sarm" / "model.safetensors")
    given = {name: tensor for file in source.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert set(given) - set(written) == {"model.norm.weight"}
    assert all(torch.equal(tensor, given[name]) and tensor.dtype == torch.bfloat16 for name, tensor in written.items())
    assert not list((tmp_path / "sarm").glob("*.py"))
    config = json.loads((tmp_path / "sarm" / "config.json").read_text())
    assert config["model_type"] == "rewardscope_sarm"
    assert config["backbone"]["num_hidden_layers"] == LAYER
    assert "auto_map" not in json.dumps(config)
    assert made.facts | {"path": ""} == {
        "kind": "sarm",
        "path": "",
        "layer": LAYER,
        "latents": LATENTS,
        "k": K,
        "pooling": "last",
        "d_model": D,
        "architecture": "llama",
        "head": "trained",
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_a_checkpoint_before_reward_training_is_said_to_give_zero(tmp_path: Path) -> None:
    source = sarm_checkpoint(tmp_path, changes={"score.weight": torch.zeros(1, LATENTS)})
    made = import_sarm(source, tmp_path / "sarm")
    assert "every reward will be 0" in made.notes[0]
    assert made.facts["head"] == "zero"


def test_the_older_layout_must_be_told_k_and_topk(tmp_path: Path) -> None:
    source = sarm_checkpoint(tmp_path, older=True)
    with pytest.raises(ModelError, match="does not say whether its head was trained with TopK.*--topk"):
        import_sarm(source, tmp_path / "sarm", k=K)
    with pytest.raises(ModelError, match="give --k"):
        import_sarm(source, tmp_path / "sarm", topk=True)
    made = import_sarm(source, tmp_path / "sarm", k=K, topk=True)
    assert (made.facts["layer"], made.facts["k"]) == (LAYER, K)
    with pytest.raises(ModelError, match="says the layer = 2, the option asks for 3"):
        import_sarm(source, tmp_path / "other", k=K, layer=3, topk=True)
    named = tmp_path / f"Llama_sequence_Latent{LATENTS}_Layer{LAYER}_K{K}_1B-SARM-TopK"
    shutil.copytree(source, named)
    assert import_sarm(named, tmp_path / "named", topk=True).facts["k"] == K
    # The published parser finds "TopK" in this name and evaluates with TopK what was trained without.
    without = tmp_path / f"Llama_sequence_Latent{LATENTS}_Layer{LAYER}_K{K}_1B-SARM-woTopK-LastToken-1"
    shutil.copytree(source, without)
    with pytest.raises(ModelError, match="trained without TopK"):
        import_sarm(without, tmp_path / "without", topk=True)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        ({"param": {"sarm_use_activation": False}}, "trained without TopK"),
        ({"param": {"sarm_use_activation": None, "sarm_use_topk": False}}, "trained without TopK"),
        ({"param": {"sarm_use_activation": None}}, "does not say whether its head was trained with TopK"),
        ({"param": {"sae_k": None}}, "sarm_param does not say sae_k"),
        ({"param": {"sae_k": 0}}, "sae_k must be a whole number above 0"),
        ({"param": {"sae_latent_size": 64}}, "says 64 latents, its sae.latent_bias has 48"),
        ({"param": {"sae_source_layer": 3}}, r"no model.layers.2.\S+ and \d+ other tensors"),
        ({"changes": {"sae.encoder.weight": None}}, "no sae.encoder.weight"),
        ({"changes": {"sae.latent_bias": None}}, "no sae.latent_bias"),
        ({"changes": {"score.weight": None}}, "no score.weight"),
        ({"changes": {"score.weight": torch.ones(2, LATENTS)}}, r"score.weight is \[2, 48\].*asks for \[1, 48\]"),
        ({"changes": {"sae.decoder.weight": torch.ones(LATENTS, D)}}, r"sae.decoder.weight is \[48, 32\]"),
        ({"changes": {"sae.pre_bias": torch.full((D,), float("nan"))}}, "sae.pre_bias holds NaN"),
        ({"changes": {"model.embed_tokens.weight": torch.ones(90, D)}}, r"embed_tokens.weight is \[90, 32\]"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, make: dict[str, Any], sentence: str) -> None:
    source = sarm_checkpoint(tmp_path, **make)
    with pytest.raises(ModelError, match=sentence):
        import_sarm(source, tmp_path / "sarm")
    assert not (tmp_path / "sarm").exists()
    assert not (tmp_path / "sarm.part").exists()


def test_damaged_files_are_said(tmp_path: Path) -> None:
    source = sarm_checkpoint(tmp_path)
    shard = source / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        import_sarm(source, tmp_path / "sarm")
    shard.unlink()
    with pytest.raises(ModelError, match="is missing, though the index"):
        import_sarm(source, tmp_path / "sarm")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"]["score.weight"] = "../elsewhere.safetensors"
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="not a file of its folder"):
        import_sarm(source, tmp_path / "sarm")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    (source / "model.safetensors.index.json").unlink()
    shard.write_bytes(whole)
    with pytest.raises(ModelError, match="no decoder that transformers knows"):
        import_sarm(source, tmp_path / "sarm")
