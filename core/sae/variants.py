"""SAEs made by others: ReLU, JumpReLU, gated, TopK with ReLU, by magnitude or in groups, with other input scalings.

    h     = (x - mean) / scale          `scaling`: none, standard (SARM), layer_norm, constant_norm
    u     = W_enc (h - pre_bias)
    pre   = u + latent_bias
    z     = relu        max(pre, 0)                                                      (SAELens: standard)
            jumprelu    max(pre, 0) where pre > threshold, BatchTopK at inference too    (SAELens: jumprelu, batchtopk)
            gated       max(exp(log_magnitude) u + latent_bias, 0) where u + gate_bias > 0   (SAELens: gated)
            topk        the k largest signed values of pre                               (sparsify: signed)
            topk_relu   the same, then max(., 0)                                         (SAELens: topk, sparsify)
            abstopk     the k largest by magnitude, signed                               (SAELens: abstopk)
            groupmax    the largest of each of k blocks of neighbouring latents, then max(., 0)       (sparsify)
    h_hat = W_dec z + decoder_bias
    x_hat = h_hat scale + mean

Where the number of active latents varies, k is how many are stored for a vector, the largest; unused places hold the
value 0 (at the lowest latents that are inactive), and 0 means inactive everywhere. A vector with more active latents
than k loses the smallest: `active_counts` tells.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from core.errors import ModelError
from core.sae.sparse import weighted_row_sum
from core.sae.topk import CHUNK, Normalised, TopKActivations, TopKSAE, finite, normalise, top_k

Activation = Literal["topk", "topk_relu", "abstopk", "groupmax", "relu", "jumprelu", "gated"]
Scaling = Literal["standard", "none", "layer_norm", "constant_norm"]

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
VARYING: tuple[Activation, ...] = ("relu", "jumprelu", "gated")
"""Activations whose number of active latents is not bounded by k."""
STORED_LATENTS = 256
"""Places for active latents per token where their number varies and nobody said how many to keep."""
LAYER_NORM_EPS = 1e-5
EXTRA_KEYS: dict[str, tuple[str, ...]] = {"jumprelu": ("threshold",), "gated": ("gate_bias", "log_magnitude")}
"""Tensors [M] of one activation, beside the four published keys and `decoder_bias` [d]."""


class VariantSAE(TopKSAE):
    """An SAE of another kind behind the same methods as TopKSAE; it is read from a file, never trained here.

    Args:
        d, latents: sizes.
        k: active latents (the TopK kinds), or the most that are stored for a vector.
        activation, scaling: see the module's formulas.

    Raises:
        ModelError: sizes that make no autoencoder.
    """

    def __init__(self, d: int, latents: int, k: int, *, activation: Activation, scaling: Scaling) -> None:
        super().__init__(d, latents, k, initialise=False)
        if activation == "groupmax" and latents % k:
            raise ModelError(f"A GroupMax SAE has k blocks of equal size; {latents} latents do not divide by k={k}.")
        self.varies = activation in VARYING
        self.activation: Activation = activation
        self.scaling: Scaling = scaling
        self.decoder_bias = nn.Parameter(torch.zeros(d))
        for name in EXTRA_KEYS.get(activation, ()):
            self.register_parameter(name, nn.Parameter(torch.zeros(latents)))

    def normalise(self, x: Tensor) -> Normalised:
        """h [..., d], mean and scale [..., 1], float32 or better.

        Raises:
            ModelError: a vector holds NaN or infinity.
        """
        if self.scaling == "standard":
            return normalise(x)
        x = finite(x.to(torch.promote_types(x.dtype, torch.float32)))
        zero = x.new_zeros((*x.shape[:-1], 1))
        if self.scaling == "none":
            return Normalised(x, zero, zero + 1)
        if self.scaling == "constant_norm":
            scale = x.norm(dim=-1, keepdim=True) / math.sqrt(self.d_model)
            return Normalised(x / scale.clamp_min(torch.finfo(x.dtype).tiny), zero, scale)
        _, mean, std = normalise(x)
        return Normalised((x - mean) / (std + LAYER_NORM_EPS), mean, std)

    def pre_activations(self, x: Tensor) -> Tensor:
        """What the activation is applied to (of a gated SAE the magnitudes): [..., M] for hidden states x [..., d]."""
        return self._pre(self.normalise(x).h)

    def encode(self, x: Tensor) -> TopKActivations:
        """The active latents of each hidden state, values descending; unused places hold 0.

        Args:
            x: [..., d], any floating dtype, finite.

        Returns:
            values and indices [..., k], float32 or better.

        Raises:
            ModelError: x holds NaN or infinity.
        """
        h = self.normalise(x).h
        parts = [self._kept(part) for part in self._chunks(h)]
        values, indices = (torch.cat(column).view(*h.shape[:-1], self.k) for column in zip(*parts, strict=True))
        return TopKActivations(values, indices)

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        """h_hat = W_dec z + decoder_bias for active latents [..., k]: [..., d], still scaled."""
        flat, at = values.reshape(-1, values.shape[-1]), indices.reshape(-1, values.shape[-1])
        sums = weighted_row_sum(self.decoder_rows.to(values.dtype), at, flat)
        return sums.view(*values.shape[:-1], self.d_model) + self.decoder_bias

    @torch.no_grad()
    def active_counts(self, x: Tensor) -> Tensor:
        """How many latents are active for each hidden state [..., d], stored or not: int64 [...]."""
        h = self.normalise(x).h
        if not self.varies:
            return (self.encode(x).values != 0).sum(-1)
        return torch.cat([(self._dense(part) != 0).sum(1) for part in self._chunks(h)]).view(h.shape[:-1])

    def facts(self) -> dict[str, str]:
        """What a file must say beside the weights to make this SAE again."""
        return {**super().facts(), "activation": self.activation, "scaling": self.scaling}

    def _chunks(self, h: Tensor) -> tuple[Tensor, ...]:
        return h.reshape(-1, self.d_model).split(max(1, CHUNK // self.latents))

    def _kept(self, h: Tensor) -> TopKActivations:
        """The stored latents of scaled vectors [n, d]."""
        if self.activation == "topk":
            return top_k(self._pre(h), self.k)
        if self.activation == "abstopk":
            pre = self._pre(h)
            indices = top_k(pre.abs(), self.k).indices
            return _sorted(pre.gather(1, indices), indices)
        if self.activation == "groupmax":
            blocks = self._pre(h).relu().unflatten(1, (self.k, -1))
            values, at = blocks.max(2)
            first = torch.arange(0, self.latents, self.latents // self.k, device=h.device)
            return _sorted(values, at + first)
        return top_k(self._dense(h), self.k)

    def _dense(self, h: Tensor) -> Tensor:
        """z [n, M] >= 0 of the kinds that keep what is positive."""
        if self.activation == "gated":
            u = self._projected(h)
            return self._magnitude(u).relu() * (u + self._extra("gate_bias", h) > 0)
        pre = self._pre(h)
        if self.activation == "jumprelu":
            return pre.relu() * (pre > self._extra("threshold", h))
        return pre.relu()

    def _pre(self, h: Tensor) -> Tensor:
        return self._magnitude(self._projected(h)) if self.activation == "gated" else super()._pre(h)

    def _projected(self, h: Tensor) -> Tensor:
        return nn.functional.linear(h - self.pre_bias.to(h.dtype), self.encoder.weight.to(h.dtype))

    def _magnitude(self, u: Tensor) -> Tensor:
        return u * self._extra("log_magnitude", u).exp() + self.latent_bias.to(u.dtype)

    def _extra(self, name: str, like: Tensor) -> Tensor:
        value: Any = getattr(self, name)
        return torch.as_tensor(value).to(like.dtype)


def stored_latents(latents: int, k: int | None) -> int:
    """Places per token of an SAE whose number of active latents varies: k if given, else at most STORED_LATENTS."""
    return min(STORED_LATENTS, latents - 1) if k is None else k


def _sorted(values: Tensor, indices: Tensor) -> TopKActivations:
    """Values descending, equal ones by the lower index."""
    indices, by_index = indices.sort(dim=1)
    values, order = values.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    return TopKActivations(values, indices.gather(1, order))
