"""Re-runs without a feature: the same as a whole forward pass with a hook that makes the same edit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from core.data.chat import EncodedAnswer
from core.errors import ModelError
from core.models.backbone import Backbone, load_backbone
from core.models.classifier import load_classifier
from core.rewards.ablation_rerun import ClassifierRerun, HeadRerun, activations_of_features
from core.sae.topk import TopKSAE, normalise
from tests.core.models.architectures import CONFIGS, hash_of, save_model

LAYER, LATENTS, K = 2, 48, 5
FEATURES = list(range(0, LATENTS, 3))
NAMES = ("llama", "qwen2-window", "gemma3", "mistral")


def save_classifier(name: str, folder: Path) -> Path:
    """A random sequence classifier with one output, and the word tokenizer."""
    save_model(name, folder)
    torch.manual_seed(hash_of(name) + 1)
    config = type(CONFIGS[name])(**{**CONFIGS[name].to_dict(), "num_labels": 1})
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(request.param, tmp_path_factory.mktemp(request.param))


def small_sae(d: int = 32) -> TopKSAE:
    return TopKSAE(d, LATENTS, K, seed=3).requires_grad_(False)


def answers(seed: int = 0, n: int = 2, prompt: int = 9) -> list[EncodedAnswer]:
    """Answers of different length to one prompt."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(4, 97, prompt).tolist()
    made = []
    for i in range(n):
        own = [*rng.integers(4, 97, 11 + 4 * i).tolist(), 2]
        made.append(EncodedAnswer(shared + own, prompt, [(0, 0)] * len(own), False, 0))
    return made


def whole_model(folder: Path) -> Any:
    """transformers' own classifier, with its own attention."""
    return AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def whole_reward(model: Any, ids: list[int], edit: Callable[[Tensor], Tensor] | None = None) -> float:
    """Its reward of one sequence, unpacked, with an edit of what leaves block LAYER - 1."""

    def hook(_module: object, _inputs: object, output: object) -> object:
        states = output if isinstance(output, Tensor) else output[0]  # type: ignore[index]
        assert edit is not None
        return edit(states[0])[None] if isinstance(output, Tensor) else (edit(states[0])[None], *output[1:])  # type: ignore[index]

    hooked = model.model.layers[LAYER - 1].register_forward_hook(hook) if edit is not None else None
    with torch.no_grad():
        reward = float(model(torch.tensor([ids])).logits[0, 0])
    if hooked is not None:
        hooked.remove()
    return reward


def without(sae: TopKSAE, feature: int, answer_start: int) -> Callable[[Tensor], Tensor]:
    """The edit as the definition has it, written densely."""

    def edit(states: Tensor) -> Tensor:
        found = sae.encode(states)
        dense = torch.zeros(len(states), sae.latents).scatter_(1, found.indices, found.values)
        deviation = states.std(dim=-1, unbiased=True, keepdim=True)
        part = dense[:, feature, None] * sae.decoder.weight[:, feature] * deviation
        part[:answer_start] = 0
        return states - part

    return edit


def test_a_rerun_equals_a_whole_forward_with_the_same_edit(checkpoint: Path) -> None:
    sae, two = small_sae(), answers()
    rerun = ClassifierRerun(load_classifier(checkpoint, dtype="float32", device="cpu"), sae, LAYER)
    found, model = rerun.ablate(two, FEATURES), whole_model(checkpoint)
    moved = 0
    for answer, effects in zip(two, found, strict=True):
        whole = whole_reward(model, answer.ids)
        assert effects.reward == pytest.approx(whole, abs=2e-4)
        for i, feature in enumerate(FEATURES):
            edited = whole_reward(model, answer.ids, without(sae, feature, answer.answer_start))
            assert effects.change[i] == pytest.approx(whole - edited, abs=2e-4)
            if not effects.active[i]:
                assert effects.change[i] == 0
                assert effects.attribution[i] == 0
            moved += abs(whole - edited) > 1e-2
    assert moved >= 5, "the edits must do something for this test to mean anything"


def test_results_do_not_depend_on_what_is_batched_together(checkpoint: Path) -> None:
    classifier, two = load_classifier(checkpoint, dtype="float32", device="cpu"), answers(1)
    together = ClassifierRerun(classifier, small_sae(), LAYER).ablate(two, FEATURES)
    rerun = ClassifierRerun(classifier, small_sae(), LAYER, tokens_per_batch=1)
    for which, answer in enumerate(two):
        for i, feature in enumerate(FEATURES):
            (alone,) = rerun.ablate([answer], [feature])
            assert alone.change[0] == pytest.approx(together[which].change[i], abs=1e-4)
            assert alone.attribution[0] == pytest.approx(together[which].attribution[i], abs=1e-4)


def test_taking_nothing_away_changes_nothing(checkpoint: Path) -> None:
    sae = small_sae()
    sae.decoder.weight.zero_()
    rerun = ClassifierRerun(load_classifier(checkpoint, dtype="float32", device="cpu"), sae, LAYER)
    for effects in rerun.ablate(answers(2), FEATURES):
        assert effects.active.any()
        np.testing.assert_allclose(effects.change, 0, atol=1e-5)
        np.testing.assert_allclose(effects.attribution, 0, atol=1e-9)


class MeanPool(torch.nn.Module):
    """An upper part that is linear in the states: their running mean."""

    def forward(self, inputs_embeds: Tensor, pack: object, **_: object) -> object:
        class Out:
            pass

        out, states = Out(), inputs_embeds[0]
        means = []
        for segment in pack.pack.segments:  # type: ignore[attr-defined]
            rows = torch.cat([states[segment.prefix_start : segment.prefix_stop], states[segment.start : segment.stop]])
            means.append(rows.mean(dim=0).expand(segment.stop - segment.start, -1))
        out.last_hidden_state = torch.cat(means)[None]  # type: ignore[attr-defined]
        return out


def test_above_a_linear_upper_part_attribution_is_ablation(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rerun = ClassifierRerun(load_classifier(checkpoint, dtype="float32", device="cpu"), small_sae(), LAYER)
    monkeypatch.setattr(rerun, "upper", MeanPool())
    monkeypatch.setattr(rerun, "_check_division", lambda *_: None)
    for effects in rerun.ablate(answers(3), FEATURES):
        assert np.abs(effects.change).max() > 1e-3
        np.testing.assert_allclose(effects.attribution, effects.change, atol=1e-5)


def test_attribution_is_the_slope_of_the_ablation(checkpoint: Path) -> None:
    """With decoder columns made tiny the upper blocks are as good as linear, whatever they are."""
    sae = small_sae()
    sae.decoder.weight.mul_(3e-3)
    rerun = ClassifierRerun(load_classifier(checkpoint, dtype="float32", device="cpu"), sae, LAYER)
    change, attribution = (
        np.concatenate([getattr(effects, name) for effects in rerun.ablate(answers(4, n=4), FEATURES)])
        for name in ("change", "attribution")
    )
    assert np.corrcoef(change, attribution)[0, 1] > 0.98
    assert np.abs(change - attribution).max() < 0.15 * np.abs(change).max()


@pytest.mark.parametrize("layer", [1, 4])
def test_the_first_and_the_last_layer_can_be_the_cut(tmp_path: Path, layer: int) -> None:
    folder = save_classifier("gemma3", tmp_path)
    rerun = ClassifierRerun(load_classifier(folder, dtype="float32", device="cpu"), small_sae(), layer)
    (one,) = answers(5, n=1)
    (effects,) = rerun.ablate([one], FEATURES)
    assert effects.reward == pytest.approx(whole_reward(whole_model(folder), one.ids), abs=2e-4)


def test_a_model_that_hides_something_between_its_blocks_is_refused(tmp_path: Path) -> None:
    folder = save_classifier("llama", tmp_path)
    rerun = ClassifierRerun(load_classifier(folder, dtype="float32", device="cpu"), small_sae(), LAYER)
    rerun.upper.layers = rerun.upper.layers[1:]
    with pytest.raises(ModelError, match="cannot be divided at layer 2"):
        rerun.ablate(answers(6), FEATURES)


def test_a_layer_beyond_the_model_is_said(tmp_path: Path) -> None:
    folder = save_classifier("llama", tmp_path)
    with pytest.raises(ModelError, match="has 4 layers"):
        ClassifierRerun(load_classifier(folder, dtype="float32", device="cpu"), small_sae(), 9)


# --- the head on features ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(save_model("qwen3", tmp_path_factory.mktemp("head")), LAYER, dtype="float32", device="cpu")


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_head_rerun_encodes_the_edited_state_again(backbone: Backbone, pooling: str) -> None:
    sae, two = small_sae(), answers(7)
    weights = np.random.default_rng(0).normal(size=LATENTS)

    def reward(states: Tensor) -> float:
        found = sae.encode(states[-1:] if pooling == "last" else states)
        z = torch.zeros(len(found.values), LATENTS).scatter_(1, found.indices, found.values)
        return float(z.double().mean(dim=0) @ torch.from_numpy(weights))

    moved = 0
    for answer, effects in zip(two, HeadRerun(backbone, sae, weights, pooling).ablate(two, FEATURES), strict=True):
        states = backbone.states([answer.ids])[0].clone()[answer.answer_start :]
        assert effects.reward == pytest.approx(reward(states), abs=1e-6)
        z = activations_of_features(sae.encode(states[-1:] if pooling == "last" else states), FEATURES)
        np.testing.assert_allclose(effects.attribution, z.double().mean(dim=0) * weights[FEATURES], atol=1e-6)
        for i, feature in enumerate(FEATURES):
            expected = reward(states) - reward(without(sae, feature, 0)(states)) if effects.active[i] else 0.0
            assert effects.change[i] == pytest.approx(expected, abs=1e-5)
            moved += abs(expected - effects.attribution[i]) > 1e-3
    assert moved, "another latent must come in somewhere, or this is only the head check"


def test_activations_of_features_are_those_of_the_dense_matrix() -> None:
    sae = small_sae()
    states = torch.randn(13, 32, generator=torch.Generator().manual_seed(0))
    found = sae.encode(states)
    dense = torch.zeros(13, LATENTS).scatter_(1, found.indices, found.values)
    torch.testing.assert_close(activations_of_features(found, FEATURES), dense[:, FEATURES])
    assert normalise(states).std.shape == (13, 1)
