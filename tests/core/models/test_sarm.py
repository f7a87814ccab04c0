"""SARM as a transformers model: rewards are those of a run's own head, gradients flow through the kept values alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from core.models.backbone import load_backbone
from core.models.sarm import SarmForSequenceClassification, sarm_of
from core.sae.topk import TopKSAE
from tests.core.models.architectures import save_model
from tests.core.models.test_backbone import sequences

LAYER, LATENTS, K = 3, 48, 5
GROUPS = [sequences(0), sequences(1, n=1), sequences(2, n=3, shared=30)]
FLAT = [ids for group in GROUPS for ids in group]
STARTS = [max(1, len(ids) - 4) for ids in FLAT]


def model_of(folder: Path, pooling: str) -> SarmForSequenceClassification:
    sae = TopKSAE(32, LATENTS, K, seed=1)
    torch.manual_seed(0)
    torch.nn.init.normal_(sae.latent_bias)
    made = sarm_of(save_model("llama", folder / "base"), sae, LAYER, pooling)
    torch.nn.init.normal_(made.score.weight)
    return made


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(rows):
        ids[row, : len(sequence)], mask[row, : len(sequence)] = torch.tensor(sequence), 1
    return ids, mask


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_rewards_are_the_head_on_pooled_features(tmp_path: Path, pooling: str) -> None:
    made = model_of(tmp_path, pooling).eval()
    backbone = load_backbone(tmp_path / "base", LAYER, dtype="float32", device="cpu")
    weights = made.score.weight[0].detach().double().numpy()
    expected = []
    for ids, start in zip(FLAT, STARTS, strict=True):
        active = made.sae.encode(backbone.states([ids])[0])
        dense = torch.zeros(len(ids), LATENTS).scatter_(1, active.indices, active.values).numpy()
        rows = dense[-1:] if pooling == "last" else dense[start:]
        expected.append(float(rows.mean(axis=0, dtype=np.float64) @ weights))
    ids_, mask = padded(FLAT)
    with torch.no_grad():
        logits = made(ids_, mask, answer_start=torch.tensor(STARTS)).logits[:, 0].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)
    made.save_pretrained(tmp_path / "saved")
    again = SarmForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        same = again(ids_, mask, answer_start=torch.tensor(STARTS)).logits[:, 0].numpy()
    np.testing.assert_array_equal(same, logits)
    starts = iter(STARTS)
    groups = [[(ids, next(starts)) for ids in group] for group in GROUPS]
    found = dict(again.rewards(groups, again.packed(None, torch.device("cpu"), torch.float32), 40))
    np.testing.assert_allclose([found[i] for i in range(len(FLAT))], expected, atol=1e-4, rtol=1e-4)


def test_the_gradient_is_that_of_the_kept_values(tmp_path: Path) -> None:
    """Against finite differences of the reward in one decoder weight, small enough to keep the active sets."""
    made = model_of(tmp_path, "mean").double()
    ids, mask = padded(FLAT[:3])
    starts = torch.tensor(STARTS[:3])
    made.sae.requires_grad_(False)
    weight = made.model.layers[LAYER - 1].mlp.down_proj.weight

    def reward() -> torch.Tensor:
        states = made.model(ids, attention_mask=mask).last_hidden_state
        active = made.sae.encode(states[mask.bool()])
        return (active.values * made.score.weight[0][active.indices]).sum()

    reward().backward()
    exact = weight.grad[2, 3].item()
    step = 1e-6
    with torch.no_grad():
        weight[2, 3] += step
        up = reward()
        weight[2, 3] -= 2 * step
        down = reward()
    assert exact == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-4)
    made.zero_grad()
    made.float()(ids, mask, answer_start=starts).logits.sum().backward()
    assert made.sae.encoder.weight.grad is None
    assert float(weight.grad.abs().sum()) > 0
