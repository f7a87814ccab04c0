"""Ordinary reward models: packed final states and rewards equal plain transformers, and what is no reward model is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from core.errors import ModelError
from core.models.backbone import load_backbone
from core.models.classifier import (
    HEAD_FILE,
    RewardHead,
    final_states,
    load_classifier,
    load_reward_head,
    save_reward_head,
)
from core.progress import Silent
from tests.core.models.architectures import save_model
from tests.core.models.test_backbone import sequences

GROUPS = [sequences(0), sequences(1, n=1), sequences(2, n=3, shared=30)]
FLAT = [ids for group in GROUPS for ids in group]


def save_classifier(name: str, folder: Path, labels: int = 1) -> Path:
    """A random classifier of that architecture, its head large enough to tell errors."""
    causal = save_model(name, folder / "causal")
    config = AutoConfig.from_pretrained(causal, num_labels=labels)
    model = AutoModelForSequenceClassification.from_pretrained(causal, config=config, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder / "classifier")
    AutoTokenizer.from_pretrained(causal).save_pretrained(folder / "classifier")
    return folder / "classifier"


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(request.param, tmp_path_factory.mktemp(request.param))


@torch.inference_mode()
def test_rewards_and_final_states_equal_plain_transformers(checkpoint: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    model.score.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, -1]))
    expected = np.array([model(torch.tensor([ids])).logits[0, 0].item() for ids in FLAT])
    classifier = load_classifier(checkpoint, dtype="float32", device="cpu")
    assert np.ptp(expected) > 1
    for budget in (1, 40, 10_000):
        np.testing.assert_allclose(classifier.rewards(GROUPS, budget), expected, atol=1e-4, rtol=1e-4)
        states = dict(classifier.final_states(GROUPS, budget))
        for index, state in enumerate(seen):
            np.testing.assert_allclose(states[index], state.numpy(), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_its_base_model_can_be_cut_for_an_sae(checkpoint: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    backbone = load_backbone(checkpoint, 3, dtype="float32", device="cpu")
    got = backbone.states(FLAT)
    for ids, states in zip(FLAT, got, strict=True):
        expected = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0]
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)


def test_final_states_stand_by_response_id(tmp_path: Path) -> None:
    from core.data.chat import EncodedAnswer
    from core.features.extract import Answer

    classifier = load_classifier(save_classifier("llama", tmp_path), dtype="float32", device="cpu")
    order = np.random.default_rng(0).permutation(len(FLAT))
    ids = iter(order.tolist())
    groups = [[Answer(next(ids), "x", EncodedAnswer(one, 1, [], False, 0)) for one in group] for group in GROUPS]
    final = final_states(groups, classifier, Silent(), 64)
    assert final.dtype == np.float32
    assert final.shape == (len(FLAT), 32)
    np.testing.assert_allclose(classifier.head.rewards(final)[order], classifier.rewards(GROUPS, 64), atol=1e-6)


def test_the_scalar_head_survives_the_disk(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=32).astype(np.float32).astype(np.float64)
    save_reward_head(tmp_path / HEAD_FILE, RewardHead(weights, {"scope": "lora"}))
    read = load_reward_head(tmp_path / HEAD_FILE)
    np.testing.assert_array_equal(read.weights, weights)
    assert read.metadata["scope"] == "lora"
    with pytest.raises(ModelError, match="no reward head"):
        load_reward_head(tmp_path / "elsewhere.safetensors")


def test_what_is_no_reward_model_is_said(tmp_path: Path) -> None:
    causal = save_model("llama", tmp_path / "causal")
    with pytest.raises(
        ModelError, match=r"no reward model: it holds LlamaForCausalLM and no score.weight \(but lm_head"
    ):
        load_classifier(causal, device="cpu")
    with pytest.raises(ModelError, match="a classifier with 3 outputs; a reward model has one"):
        load_classifier(save_classifier("llama", tmp_path, labels=3), device="cpu")
