"""How well an SAE represents hidden states. All sums in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from core.errors import ModelError
from core.sae.topk import TopKSAE

DENSITY_EDGES = tuple(float(edge) for edge in np.linspace(-6.0, 0.0, 25))
"""Bin edges of the density histogram, in log10 of the share of vectors on which a latent is active."""


@dataclass(frozen=True)
class SaeQuality:
    """Figures over n vectors.

    Attributes:
        n: vectors measured.
        fvu: share of variance unexplained in the backbone's own space, sum |x - x_hat|^2 / sum |x - mean x|^2.
        fvu_normalised: the same on standardised vectors, sum |h - h_hat|^2 / sum |h - mean h|^2.
        normalised_mse: the training loss, mean of |h - h_hat|^2 / |h|^2.
        l0: mean number of latents with a value other than 0 per vector.
        negative_share: share of those values that are below 0 (TopK keeps signed values).
        dead_fraction: share of latents active on none of the n vectors.
        density: [M] share of vectors on which each latent is active, float64.
        density_counts: living latents per bin of DENSITY_EDGES (rarer than the first edge counts in the first bin).
        cut_share: share of vectors with more active latents than the k that are stored; None where k are always active.
        fvu_normalised_interval: 95 % interval of fvu_normalised, from runs of 256 vectors in the order given (those of one
            text stand together, so single vectors are not independent); None with fewer than two runs.
    """

    n: int
    fvu: float
    fvu_normalised: float
    normalised_mse: float
    l0: float
    negative_share: float
    dead_fraction: float
    density: np.ndarray
    density_counts: tuple[int, ...]
    cut_share: float | None = None
    fvu_normalised_interval: tuple[float, float] | None = None


_RUN = 256


class _Runs:
    """Squared errors and spreads of runs of vectors: the interval of a ratio of sums over clusters (linearised)."""

    def __init__(self) -> None:
        self._errors: list[float] = []
        self._moments: list[tuple[int, Tensor, float]] = []

    def add(self, errors: Tensor, h: Tensor) -> None:
        """Adds a batch: |h - h_hat|^2 [n] and h [n, d], float64."""
        for error, rows in zip(errors.split(_RUN), h.split(_RUN), strict=True):
            self._errors.append(float(error.sum()))
            self._moments.append((len(rows), rows.sum(0), float(rows.square().sum())))

    def interval(self, mean: Tensor) -> tuple[float, float] | None:
        """Of sum of errors / sum |h - mean|^2, given the mean over all vectors [d]."""
        runs = len(self._errors)
        if runs < 2:
            return None
        error = np.array(self._errors)
        spread = np.array(
            [squares - 2 * float(total @ mean) + n * float(mean @ mean) for n, total, squares in self._moments]
        )
        ratio = error.sum() / spread.sum()
        deviation = np.sqrt(runs / (runs - 1) * np.square(error - ratio * spread).sum()) / spread.sum()
        half = float(stats.t.ppf(0.975, runs - 1) * deviation)
        return float(ratio) - half, float(ratio) + half


class _Spread:
    """sum |x - mean x|^2 over a stream, merged batch by batch without cancellation (Chan et al.)."""

    def __init__(self) -> None:
        self.n, self.mean, self.total = 0, torch.tensor(0.0), 0.0

    def add(self, x: Tensor) -> None:
        n, mean = len(x), x.mean(0)
        shift = mean - self.mean
        self.total += float((x - mean).square().sum() + shift.square().sum() * (self.n * n / (self.n + n)))
        self.mean = self.mean + shift * (n / (self.n + n))
        self.n += n


@torch.no_grad()
def sae_quality(sae: TopKSAE, batches: Iterable[Tensor]) -> SaeQuality:
    """Measures an SAE on hidden states it should represent, best ones it was not trained on.

    Args:
        sae: on any device.
        batches: [n_i, d] hidden states, any floating dtype.

    Raises:
        ModelError: there is not one vector, all are the same, or one is not finite.
    """
    device = sae.pre_bias.device
    own, standard, runs = _Spread(), _Spread(), _Runs()
    own_error = standard_error = relative_error = 0.0
    measured = nonzero = negative = cut = 0
    active = np.zeros(sae.latents, dtype=np.int64)
    for batch in batches:
        if not len(batch):
            continue
        x = batch.to(device)
        h, mean, std = sae.normalise(x)
        values, indices = sae.encode(x)
        h_hat = sae.decode(values, indices)
        x_error = (x.to(h.dtype) - (h_hat * std + mean)).cpu().double()
        h_error, h = (h - h_hat).cpu().double(), h.cpu().double()
        squares, sizes = h_error.square().sum(1), h.square().sum(1)
        own_error += float(x_error.square().sum())
        standard_error += float(squares.sum())
        relative_error += float((squares / sizes)[sizes > 0].sum())
        measured += int((sizes > 0).sum())
        own.add(x.cpu().double())
        standard.add(h)
        runs.add(squares, h)
        used = values != 0
        nonzero += int(used.sum())
        negative += int((values < 0).sum())
        cut += int((sae.active_counts(x) > sae.k).sum()) if sae.varies else 0
        active += np.bincount(indices[used].cpu().numpy(), minlength=sae.latents)
    if own.total == 0:
        raise ModelError("There are no two different vectors to measure the SAE on; give it more text.")
    n = own.n
    density = active / n
    alive = np.clip(np.log10(density[density > 0]), DENSITY_EDGES[0], 0.0)
    counts = np.histogram(alive, bins=np.asarray(DENSITY_EDGES))[0]
    return SaeQuality(
        n=n,
        fvu=own_error / own.total,
        fvu_normalised=standard_error / standard.total,
        normalised_mse=relative_error / measured,
        l0=nonzero / n,
        negative_share=negative / max(nonzero, 1),
        dead_fraction=float((active == 0).mean()),
        density=density,
        density_counts=tuple(int(count) for count in counts),
        cut_share=cut / n if sae.varies else None,
        fvu_normalised_interval=runs.interval(standard.mean),
    )
