"""SAEs whose number of active latents varies, behind the same methods: what is stored, padded, cut, measured, decoded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import ModelError
from core.sae.checkpoint import load_sae, save_sae
from core.sae.quality import sae_quality
from core.sae.topk import TopKSAE
from core.sae.variants import ACTIVATIONS, SCALINGS, VARYING, Activation, Scaling, VariantSAE, stored_latents

D, LATENTS = 12, 40


def random_variant(activation: Activation, scaling: Scaling, k: int = 8, seed: int = 0) -> VariantSAE:
    sae = VariantSAE(D, LATENTS, k, activation=activation, scaling=scaling)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return sae.requires_grad_(False)


def states(n: int = 50) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(7)) * 2 + 0.3


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_file_gives_the_same_sae(tmp_path: Path, activation: Activation, scaling: Scaling) -> None:
    sae, x = random_variant(activation, scaling), states()
    save_sae(tmp_path / "sae.safetensors", sae, {"layer": "3", "level": "token"})
    again, metadata = load_sae(tmp_path / "sae.safetensors")
    assert (metadata["activation"], metadata["scaling"], metadata["k"]) == (activation, scaling, "8")
    assert again.varies is (activation in VARYING)
    for ours, theirs in zip(sae.encode(x), again.encode(x), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(sae.rebuild(x, sae.encode(x)), again.reconstruct(x))


@given(st.sampled_from(VARYING), st.sampled_from(SCALINGS), st.integers(1, LATENTS - 1), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_the_largest_are_stored_and_unused_places_hold_zero(
    activation: Activation, scaling: Scaling, k: int, seed: int
) -> None:
    """Against dense activations written out from the formulas in float64."""
    sae, x = random_variant(activation, scaling, k, seed), states(20)
    weights = {name: parameter.double() for name, parameter in sae.named_parameters()}
    u = (sae.normalise(x.double()).h - weights["pre_bias"]) @ weights["encoder.weight"].T
    pre = u + weights["latent_bias"]
    if activation == "relu":
        dense = pre.clamp_min(0)
    elif activation == "jumprelu":
        dense = torch.where((pre > weights["threshold"]) & (pre > 0), pre, 0.0)
    else:
        magnitude = u * weights["log_magnitude"].exp() + weights["latent_bias"]
        dense = torch.where(u + weights["gate_bias"] > 0, magnitude.clamp_min(0), 0.0)
    active = sae.encode(x)
    assert all(len(set(row)) == k for row in active.indices.tolist())
    kept = torch.zeros(len(x), LATENTS).scatter_(1, active.indices, active.values)
    wanted, at = dense.topk(k)
    torch.testing.assert_close(active.values, wanted.float(), atol=1e-5, rtol=1e-5)
    count = (dense > 0).sum(1)
    assert torch.equal(sae.active_counts(x), count)
    whole = count <= k
    torch.testing.assert_close(kept[whole], dense[whole].float(), atol=1e-5, rtol=1e-5)
    assert ((active.values != 0).sum(1) == count.clamp_max(k)).all()
    h_hat = torch.zeros(20, LATENTS).double().scatter_(1, at, wanted) @ weights["decoder.weight"].T
    torch.testing.assert_close(sae.decode(*active).double(), h_hat + weights["decoder_bias"], atol=1e-4, rtol=1e-5)


def test_what_is_cut_is_counted() -> None:
    x = states(400)
    wide, narrow = random_variant("relu", "none", LATENTS - 1), random_variant("relu", "none", 8)
    expected = float((wide.active_counts(x) > 8).float().mean())
    assert 0 < expected < 1.01
    assert sae_quality(narrow, [x]).cut_share == pytest.approx(expected)
    whole = sae_quality(wide, [x])
    assert whole.cut_share == pytest.approx(float((wide.active_counts(x) > LATENTS - 1).float().mean()))
    assert whole.l0 == pytest.approx(float(wide.active_counts(x).clamp_max(LATENTS - 1).float().mean()))
    assert whole.negative_share == 0
    ours = TopKSAE(D, LATENTS, 8, seed=1).requires_grad_(False)
    assert sae_quality(ours, [x]).cut_share is None
    assert torch.equal(ours.active_counts(x), torch.full((400,), 8))


def test_quality_is_measured_in_the_states_own_space() -> None:
    """An SAE without scaling: both shares of unexplained variance are the same, and those of a plain computation."""
    x = states(300)
    sae = random_variant("relu", "none", LATENTS - 1)
    quality = sae_quality(sae, [x[:100], x[100:]])
    error = (x - sae.reconstruct(x)).double().square().sum()
    assert quality.fvu == pytest.approx(float(error / (x - x.mean(0)).double().square().sum()), rel=1e-5)
    assert quality.fvu_normalised == pytest.approx(quality.fvu, rel=1e-6)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_scaling_is_undone(scaling: Scaling) -> None:
    x = states().double()
    h, mean, std = random_variant("relu", scaling).normalise(x)
    torch.testing.assert_close(h * std + mean, x, atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="Hidden state 1 .* NaN"):
        random_variant("relu", scaling).encode(torch.tensor([[1.0] * D, [float("nan")] * D]))


def test_a_vector_of_zeros_has_no_scale_and_does_no_harm() -> None:
    sae = random_variant("relu", "constant_norm")
    assert torch.isfinite(sae.encode(torch.zeros(1, D)).values).all()
    torch.testing.assert_close(sae.reconstruct(torch.zeros(1, D)), torch.zeros(1, D))


def test_shapes_and_kinds_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "sae.safetensors"
    save_sae(path, random_variant("jumprelu", "none"), {"layer": "3", "level": "token"})
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: tensor for name, tensor in tensors.items() if name != "threshold"}, path, metadata)
    with pytest.raises(ModelError, match="has no threshold"):
        load_sae(path)
    save_file({**tensors, "threshold": torch.zeros(3)}, path, metadata)
    with pytest.raises(ModelError, match=r"threshold is \[3\].*asks for \[40\]"):
        load_sae(path)
    save_file(tensors, path, {"rewardscope": metadata["rewardscope"].replace("jumprelu", "swish")})
    with pytest.raises(ModelError, match="kind swish"):
        load_sae(path)
    with pytest.raises(ModelError, match="do not divide by k=7"):
        VariantSAE(D, LATENTS, 7, activation="groupmax", scaling="none")


def test_places_per_token() -> None:
    assert [stored_latents(40, None), stored_latents(70_000, None), stored_latents(70_000, 12)] == [39, 256, 12]
