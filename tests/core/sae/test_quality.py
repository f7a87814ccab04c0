"""Quality figures against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from core.errors import ModelError
from core.sae import quality as quality_module
from core.sae.quality import DENSITY_EDGES, SaeQuality, sae_quality
from core.sae.topk import TopKSAE
from tests.core.sae.test_topk import random_sae


def test_figures_equal_numpy() -> None:
    sae = random_sae(latents=96, k=5)
    sae.latent_bias[10:20] = -100  # never active
    x = torch.randn(500, 24, generator=torch.Generator().manual_seed(0)) * 3 + 2
    quality = sae_quality(sae, [x[:7], x[7:7], x[7:300], x[300:]])

    values, indices = (part.double().numpy() for part in sae.encode(x))
    x64 = x.double().numpy()
    h = (x64 - x64.mean(1, keepdims=True)) / (x64.std(1, ddof=1, keepdims=True) + 1e-6)
    code = np.zeros((500, 96))
    np.put_along_axis(code, indices.astype(int), values, axis=1)
    h_hat = code @ sae.decoder.weight.double().numpy().T + sae.pre_bias.double().numpy()
    x_hat = h_hat * x64.std(1, ddof=1, keepdims=True) + x64.mean(1, keepdims=True)
    density = (code != 0).mean(0)

    assert quality.n == 500
    assert quality.fvu == pytest.approx(((x64 - x_hat) ** 2).sum() / ((x64 - x64.mean(0)) ** 2).sum(), rel=1e-5)
    assert quality.fvu_normalised == pytest.approx(((h - h_hat) ** 2).sum() / ((h - h.mean(0)) ** 2).sum(), rel=1e-5)
    assert quality.normalised_mse == pytest.approx((((h - h_hat) ** 2).mean(1) / (h**2).mean(1)).mean(), rel=1e-5)
    assert quality.l0 == 5
    assert quality.negative_share == pytest.approx((code < 0).sum() / (code != 0).sum())
    assert quality.dead_fraction == pytest.approx((density == 0).mean())
    assert quality.dead_fraction >= 10 / 96
    np.testing.assert_allclose(quality.density, density)
    expected, _ = np.histogram(np.log10(density[density > 0]), bins=DENSITY_EDGES)
    assert quality.density_counts == tuple(expected)
    assert sum(quality.density_counts) == round((1 - quality.dead_fraction) * 96)


def test_negative_values_are_counted() -> None:
    sae = TopKSAE(24, 30, 4).requires_grad_(False)
    sae.latent_bias -= 100  # everything is below zero, and TopK keeps it
    quality = sae_quality(sae, [torch.randn(50, 24, generator=torch.Generator().manual_seed(1))])
    assert quality.negative_share == 1
    assert quality.l0 == 4


def test_a_perfect_sae_leaves_nothing_unexplained() -> None:
    sae = TopKSAE(4, 9, 8).requires_grad_(False)
    for weight in sae.parameters():
        weight.zero_()
    sae.encoder.weight[:4] = torch.eye(4) / 2
    sae.encoder.weight[4:8] = -torch.eye(4) / 2
    sae.latent_bias[8] = -100
    sae.decoder.weight[:, :4] = torch.eye(4)
    sae.decoder.weight[:, 4:8] = -torch.eye(4)
    quality = sae_quality(sae, [torch.randn(64, 4, generator=torch.Generator().manual_seed(2)) * 10])
    assert quality.fvu < 1e-10
    assert quality.normalised_mse < 1e-10


def test_nothing_to_measure_is_said() -> None:
    for batches in ([], [torch.ones(5, 24)]):
        with pytest.raises(ModelError, match="no two different vectors"):
            sae_quality(random_sae(), batches)


def test_the_interval_covers_the_ratio_over_independent_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of 16 alike vectors: about 95 in 100 intervals hold the value over many texts, where one that took vectors
    for independent would be four times too narrow."""
    monkeypatch.setattr(quality_module, "_RUN", 16)
    generator = torch.Generator().manual_seed(0)
    sae = random_sae(latents=96, k=5)
    texts = 5 + 3 * torch.randn(4000, 1, 24, generator=generator)

    def measured(of: Tensor) -> SaeQuality:
        vectors = (of + 0.05 * torch.randn(len(of), 16, 24, generator=generator)).flatten(0, 1)
        return sae_quality(sae, vectors.split(4096))

    truth = measured(texts[:1000]).fvu_normalised
    intervals = [measured(some).fvu_normalised_interval or (0, 0) for some in texts[1000:].split(30)]
    assert 0.87 <= np.mean([low <= truth <= high for low, high in intervals]) <= 1
    assert measured(texts[:1]).fvu_normalised_interval is None
