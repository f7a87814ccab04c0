"""The training loss of a TopK SAE and its gradient, written by hand so that its cost follows k and not M.

For standardised vectors h_n with active set S_n, u_n = h_n - pre_bias and e_n = h_hat_n - h_n:

    L        = mean_n |e_n|^2 / |h_n|^2                         normalised MSE, SARM's loss
    g_n      = dL/dh_hat_n = 2 e_n / (N |h_n|^2)
    dz_ni    = <g_n, W_dec[:, i]>                               for i in S_n, else 0
    dW_dec_i = sum_n z_ni g_n            dW_enc_i = sum_n dz_ni u_n         dlatent_bias_i = sum_n dz_ni
    dpre_bias = sum_n g_n - W_enc^T dlatent_bias

AuxK (Gao et al. 2024, "Scaling and evaluating sparse autoencoders") adds c mean_n |e'_n - r_n|^2 / |h_n|^2, where
r_n = h_n - h_hat_n is taken as a constant and e'_n = W_dec z'_n is its reconstruction from the strongest dead latents;
c = 1/32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from core.sae.sparse import by_latent, latent_sums, row_dots, weighted_row_sum
from core.sae.topk import TopKSAE

AUXK_COEFFICIENT = 1 / 32


class Gradients(NamedTuple):
    """The loss (scalar, without the AuxK term) and the gradient of loss + AuxK in each weight.

    `decoder` is [M, d], one row a latent, as TopKSAE.decoder_rows.
    """

    loss: Tensor
    encoder: Tensor
    decoder: Tensor
    latent_bias: Tensor
    pre_bias: Tensor


@torch.no_grad()
def loss_and_gradients(
    sae: TopKSAE,
    h: Tensor,
    active: Tensor,
    revived: Tensor | None = None,
    over_ranks: Callable[[Tensor], Tensor] = lambda own: own,
) -> Gradients:
    """Loss and gradients for given active sets.

    Several processes may hold a part of the batch each: everything but `over_ranks` is a sum over vectors, so the sum
    of what they return is the loss and the gradient of the whole batch.

    Args:
        h: [n, d] standardised vectors in the dtype of the weights. A vector of zeros (a constant hidden state) has no
            direction and is left out of the mean.
        active: [n, k] int64, the latents that reconstruct each vector.
        revived: [n, a] int64, the dead latents that reconstruct what is left (AuxK); None without.
        over_ranks: adds up a number of vectors over the processes.
    """
    u = h - sae.pre_bias
    size = h.square().sum(1, keepdim=True)
    share = torch.where(size > 0, 1 / size, 0)
    share /= over_ranks((size > 0).sum()).clamp_min(1)

    values = row_dots(u, sae.encoder.weight, active) + sae.latent_bias[active]
    error = weighted_row_sum(sae.decoder_rows, active, values) + sae.pre_bias - h
    loss = (error.square() * share).sum()
    slope = 2 * share * error
    encoder, decoder, latent_bias = _through(sae, u, active, values, slope)
    # AuxK holds the residual fixed and adds no pre_bias of its own, so pre_bias feels it only through the encoder.
    if revived is not None:
        values = row_dots(u, sae.encoder.weight, revived) + sae.latent_bias[revived]
        left = weighted_row_sum(sae.decoder_rows, revived, values) + error
        aux = _through(sae, u, revived, values, 2 * AUXK_COEFFICIENT * share * left)
        encoder, decoder, latent_bias = (a.add_(b) for a, b in zip((encoder, decoder, latent_bias), aux, strict=True))
    pre_bias = slope.sum(0) - sae.encoder.weight.T @ latent_bias
    return Gradients(loss, encoder, decoder, latent_bias, pre_bias)


def _through(sae: TopKSAE, u: Tensor, active: Tensor, values: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in W_enc, W_dec (as rows) and latent_bias, where `slope` [n, d] is that in the decoder's output."""
    d_values = row_dots(slope, sae.decoder_rows, active)
    entries = by_latent(active, sae.latents)
    d_bias = torch.zeros_like(sae.latent_bias)
    d_bias.index_put_((active.reshape(-1),), d_values.reshape(-1), accumulate=True)
    return latent_sums(entries, d_values, u), latent_sums(entries, values, slope), d_bias
