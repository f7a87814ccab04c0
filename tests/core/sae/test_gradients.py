"""The hand-written gradient against autograd on the plain dense formulation, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.sae.gradients import AUXK_COEFFICIENT, Gradients, loss_and_gradients
from core.sae.topk import TopKSAE, normalise
from tests.core.sae.test_topk import random_sae


def plain(sae: TopKSAE, h: Tensor, active: Tensor, revived: Tensor | None) -> Gradients:
    """Dense code, autograd, the formulas of the papers."""
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in sae.state_dict().items()}

    def code(indices: Tensor) -> Tensor:
        pre = (h - weights["pre_bias"]) @ weights["encoder.weight"].T + weights["latent_bias"]
        return pre * torch.zeros_like(pre).scatter(1, indices, 1.0)

    h_hat = code(active) @ weights["decoder.weight"].T + weights["pre_bias"]
    loss = ((h_hat - h).square().mean(1) / h.square().mean(1)).mean()
    total = loss
    if revived is not None:
        left = (h - h_hat).detach()
        rebuilt = code(revived) @ weights["decoder.weight"].T
        total = loss + AUXK_COEFFICIENT * ((rebuilt - left).square().mean(1) / h.square().mean(1)).mean()
    total.backward()
    grad = {name: weight.grad for name, weight in weights.items()}
    return Gradients(
        loss.detach(), grad["encoder.weight"], grad["decoder.weight"].T, grad["latent_bias"], grad["pre_bias"]
    )


@pytest.mark.parametrize("auxk", [0, 7])
def test_gradients_equal_autograd(auxk: int) -> None:
    sae = random_sae().double()
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 4 - 1
    h = normalise(x).h
    pre = sae.pre_activations(x)
    active = sae.encode(x).indices
    revived = pre[:, 50:].topk(auxk, dim=1).indices + 50 if auxk else None
    ours, reference = loss_and_gradients(sae, h, active, revived), plain(sae, h, active, revived)
    for name, gradient in reference._asdict().items():
        torch.testing.assert_close(getattr(ours, name), gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_a_constant_hidden_state_is_left_out() -> None:
    sae = random_sae().double()
    h = normalise(torch.randn(5, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).h
    active = torch.arange(5).repeat(6, 1)
    with_zero = torch.cat([h, torch.zeros(1, 24, dtype=torch.float64)])
    ours, without = loss_and_gradients(sae, with_zero, active), loss_and_gradients(sae, h, active[:5])
    for name in Gradients._fields:
        torch.testing.assert_close(getattr(ours, name), getattr(without, name))


@pytest.mark.parametrize("cut", [0, 13, 40])
def test_parts_of_a_batch_add_up(cut: int) -> None:
    """What several processes compute of a batch, one of them perhaps nothing, sums to its loss and gradient."""
    sae = random_sae().double()
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    h, pre = normalise(x).h, sae.pre_activations(x)
    active, revived = sae.encode(x).indices, pre[:, 50:].topk(3, dim=1).indices + 50
    whole = loss_and_gradients(sae, h, active, revived)
    parts = [
        loss_and_gradients(sae, h[rows], active[rows], revived[rows], lambda _: torch.tensor(40))
        for rows in (slice(0, cut), slice(cut, 40))
    ]
    for name in Gradients._fields:
        torch.testing.assert_close(getattr(parts[0], name) + getattr(parts[1], name), getattr(whole, name))
