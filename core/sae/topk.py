"""The TopK sparse autoencoder exactly as SARM and SAFER use it (one class in both public code bases).

    h     = (x - mean(x)) / (std(x) + 1e-6)              std unbiased, per vector
    pre   = W_enc (h - pre_bias) + latent_bias
    z     = the k largest signed values of pre           no ReLU; ties go to the lowest index
    h_hat = W_dec z + pre_bias
    x_hat = h_hat std(x) + mean(x)

Everything is computed in float32 or better, whatever the dtype of the input: bf16 rewards tie.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core.errors import ModelError
from core.sae.screening import Screen, screens, weights_version
from core.sae.sparse import grouped_top, weighted_row_sum

EPS = 1e-6
CHUNK = 1 << 23
"""Pre-activations held at once while encoding: 32 MiB in float32, small enough for the allocator to use again."""


class Normalised(NamedTuple):
    """A vector with its mean and scale taken out: x = h (std + eps) + mean."""

    h: Tensor
    mean: Tensor
    std: Tensor


class TopKActivations(NamedTuple):
    """The active latents of each vector: values [..., k] descending, indices [..., k] int64; equal values by index."""

    values: Tensor
    indices: Tensor


def normalise(x: Tensor) -> Normalised:
    """Per-vector standardisation over the last axis, unbiased, eps outside the root.

    Args:
        x: [..., d] hidden states of any floating dtype.

    Returns:
        h [..., d], mean and std [..., 1], in float32 (float64 for float64 input).

    Raises:
        ModelError: a vector holds NaN or infinity, or overflows float32.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = x.mean(dim=-1, keepdim=True)
    centred = x - mean
    std = (centred.square().sum(dim=-1, keepdim=True) / (x.shape[-1] - 1)).sqrt()  # ddof = 1
    finite(std)
    return Normalised(centred / (std + EPS), mean, std)


def finite(rows: Tensor) -> Tensor:
    """The same tensor [..., n].

    Raises:
        ModelError: one of its rows holds NaN or infinity.
    """
    if not torch.isfinite(rows).all():
        row = int((~torch.isfinite(rows.reshape(-1, rows.shape[-1])).all(1)).nonzero()[0])
        raise ModelError(
            f"Hidden state {row} of this batch holds NaN or infinity, so the backbone overflowed or its weights are "
            "damaged; run the backbone in float32 or check its files."
        )
    return rows


def top_k(pre: Tensor, k: int) -> TopKActivations:
    """The k largest signed values of each row, descending; equal values rank by the lower index, exactly.

    Args:
        pre: [n, M], finite, with k < M.
    """
    values, indices = grouped_top(pre, k + 1)
    # torch leaves the order of equal values open, also which of them make the cut: settle those rows exactly.
    tied = (values[:, 1:] == values[:, :-1]).any(1).nonzero().squeeze(1)
    values, indices = values[:, :k], indices[:, :k]
    if len(tied):
        rows, cut = pre[tied], values[tied, -1:]
        above, level = rows > cut, rows == cut
        room = k - above.sum(1, keepdim=True)
        chosen = above | (level & (level.cumsum(1) <= room))
        at = chosen.nonzero()[:, 1].view(-1, k)  # ascending, so a stable sort by value keeps the lower index first
        value, order = rows.gather(1, at).sort(dim=1, descending=True, stable=True)
        values, indices = values.clone(), indices.clone()
        values[tied], indices[tied] = value, at.gather(1, order)
    return TopKActivations(values, indices)


class TopKSAE(nn.Module):
    """A TopK sparse autoencoder with M latents over d-dimensional hidden states.

    Its state dict has exactly the keys of the published files: `pre_bias` [d], `latent_bias` [M],
    `encoder.weight` [M, d], `decoder.weight` [d, M]. The decoder lies in memory latent by latent (a transposed view of
    an [M, d] array), because decoding and its gradient read whole decoder columns.

    Args:
        d: width of the hidden states.
        latents: M.
        k: active latents per vector, 1 <= k < M.
        seed: of the encoder's initialisation (torch's nn.Linear default); the decoder starts as its transpose with
            columns of unit length, both biases at zero.
        initialise: False leaves all weights at zero, for a caller that loads them.

    Raises:
        ModelError: sizes that make no autoencoder.
    """

    normalise = staticmethod(normalise)
    varies = False
    """Whether the number of active latents varies from vector to vector; k are stored."""

    def __init__(self, d: int, latents: int, k: int, *, seed: int = 0, initialise: bool = True) -> None:
        super().__init__()
        if d < 2 or not 1 <= k < latents:
            raise ModelError(f"A TopK SAE needs d >= 2 and 1 <= k < latents, not d={d}, latents={latents}, k={k}.")
        self.d_model, self.latents, self.k = d, latents, k
        self.pre_bias = nn.Parameter(torch.zeros(d))
        self.latent_bias = nn.Parameter(torch.zeros(latents))
        self.encoder = nn.Linear(d, latents, bias=False, device="meta")
        self.decoder = nn.Linear(latents, d, bias=False, device="meta")
        weight = torch.zeros(latents, d)
        if initialise:
            generator = torch.Generator().manual_seed(seed)
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        self.encoder.weight = nn.Parameter(weight)
        self.decoder.weight = nn.Parameter(weight.clone().T)
        self.unit_norm_decoder()
        self._screen: Screen | None = None

    @property
    def decoder_rows(self) -> Tensor:
        """The decoder's columns as rows [M, d], contiguous; row i is what latent i writes."""
        return self.decoder.weight.T

    def pre_activations(self, x: Tensor) -> Tensor:
        """W_enc (h - pre_bias) + latent_bias for hidden states x [..., d]: [..., M], dense, before TopK."""
        return self._pre(normalise(x).h)

    def encode(self, x: Tensor) -> TopKActivations:
        """The k active latents of each hidden state.

        Args:
            x: [..., d], any floating dtype, finite.

        Returns:
            values and indices [..., k], float32 or better. Differentiable in x and the weights when gradients are on.

        Raises:
            ModelError: x holds NaN or infinity.
        """
        h = normalise(x).h
        flat = h.reshape(-1, self.d_model)
        if torch.is_grad_enabled() and (h.requires_grad or self.encoder.weight.requires_grad):
            pre = self._pre(flat)
            indices = top_k(pre.detach(), self.k).indices
            values = pre.gather(1, indices)
        else:
            values, indices = self._active(flat)
        shape = (*h.shape[:-1], self.k)
        return TopKActivations(values.view(shape), indices.view(shape))

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        """h_hat = W_dec z + pre_bias for active latents [..., k]: [..., d], still standardised."""
        flat, at = values.reshape(-1, values.shape[-1]), indices.reshape(-1, values.shape[-1])
        sums = weighted_row_sum(self.decoder_rows.to(values.dtype), at, flat)
        return sums.view(*values.shape[:-1], self.d_model) + self.pre_bias

    def rebuild(self, x: Tensor, active: TopKActivations) -> Tensor:
        """x_hat = h_hat std + mean: what active latents say of the hidden states x [..., d] they were read from."""
        _, mean, std = self.normalise(x)
        return self.decode(active.values, active.indices) * std + mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """x_hat: the hidden states [..., d] as the SAE sees them, float32 or better."""
        return self.rebuild(x, self.encode(x))

    def active_counts(self, x: Tensor) -> Tensor:
        """How many latents are active for each hidden state [..., d], stored or not: int64 [...]."""
        return torch.full(x.shape[:-1], self.k, dtype=torch.int64, device=x.device)

    def facts(self) -> dict[str, str]:
        """What a file must say beside the weights to make this SAE again."""
        return {"k": str(self.k), "latents": str(self.latents), "d": str(self.d_model)}

    @torch.no_grad()
    def unit_norm_decoder(self) -> None:
        """Scales every decoder column to unit length; a column of zeros stays zero."""
        rows = self.decoder_rows
        rows /= rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)

    @torch.no_grad()
    def round_weights(self, dtype: torch.dtype) -> None:
        """Rounds every weight to what `dtype` can hold (kept as float32), so that a file stored in `dtype` is exactly
        the SAE that was used. Decoder columns are then of unit length to that precision only.

        Raises:
            ModelError: a weight is too large for `dtype`.
        """
        for name, parameter in self.named_parameters():
            rounded = parameter.to(dtype).to(parameter.dtype)
            if not torch.isfinite(rounded).all():
                raise ModelError(f"{name} has values too large for {dtype}; store the SAE as bfloat16 or float32.")
            parameter.copy_(rounded)

    def _pre(self, h: Tensor) -> Tensor:
        weight, bias = self.encoder.weight.to(h.dtype), self.latent_bias.to(h.dtype)
        return nn.functional.linear(h - self.pre_bias.to(h.dtype), weight, bias)

    @torch.no_grad()
    def _active(self, h: Tensor) -> TopKActivations:
        """The k active latents of standardised vectors [n, d], screened where that is faster."""
        values, indices = h.new_empty(len(h), self.k), torch.empty(len(h), self.k, dtype=torch.int64, device=h.device)
        rows = torch.arange(len(h), device=h.device)
        chunk = max(1, CHUNK // self.latents)
        if screen := self._current_screen(h):
            uncertain = []
            for some in rows.split(chunk):
                candidates, pre, certain = screen.top(h[some] - self.pre_bias)
                values[some], at = top_k(pre, self.k)  # candidates ascend: the lower index wins a tie here too
                indices[some] = candidates.gather(1, at)
                uncertain.append(some[~certain])
            rows = torch.cat(uncertain)
        for some in rows.split(chunk):
            values[some], indices[some] = top_k(self._pre(h[some]), self.k)
        return TopKActivations(values, indices)

    def _current_screen(self, h: Tensor) -> Screen | None:
        """The screen for the weights as they are now; None where the dense computation is faster or alone exact."""
        weights = (self.encoder.weight, self.latent_bias)
        if not screens(h, self.latents, self.k) or any(w.dtype != h.dtype or w.is_inference() for w in weights):
            return None
        if self._screen is None or self._screen.version != weights_version(*weights):
            self._screen = Screen(*weights, self.k)
        return self._screen
