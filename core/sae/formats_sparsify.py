"""sparsify folders (EleutherAI): cfg.json and sae.safetensors.

    encoder.weight [M, d], encoder.bias [M], W_dec [M, d], b_dec [d]
    z = the k largest of max(W_enc (x - b_dec) + b, 0),   x_hat = W_dec^T z + b_dec

Releases of 2024 had `signed`: the k largest of the signed pre-activations, without the max. The folder's name is the
hookpoint: `layers.N` is the output of block N, hidden_states[N + 1].
"""

from __future__ import annotations

import re
from pathlib import Path

from core.errors import ModelError
from core.sae.formats import PublishedSae, agreed, made, need, positive, read_all, read_json
from core.sae.formats_saelens import layer_of
from core.sae.variants import Activation

WEIGHTS = "sae.safetensors"
KEYS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
_HOOKPOINT = re.compile(r"(?:[a-z_]+\.)?(?:layers|h|blocks)\.\d+.*|embed_.*|wte")
"""A folder called otherwise is a copy whose name tells nothing."""


def read_sparsify(folder: Path, *, layer: int | None = None, k: int | None = None) -> PublishedSae:
    """Reads a sparsify folder (one hookpoint).

    Args:
        layer: where the folder's name is no hookpoint, or to check it; hidden_states[layer].

    Raises:
        ModelError: a transcoder, a skip connection, an unknown activation, missing keys or wrong shapes.
    """
    config = read_json(config_file(folder))
    if config.get("transcode") or config.get("skip_connection"):
        raise ModelError(
            f"{folder} is a transcoder{' with a skip connection' if config.get('skip_connection') else ''}: it predicts "
            "another module's output and does not rebuild the states it reads, so it is no SAE for this program."
        )
    tensors = read_all(folder / WEIGHTS)
    if "W_skip" in tensors:
        raise ModelError(f"{folder} has a skip connection (W_skip): it is a transcoder, not an SAE.")
    need(tensors, KEYS, folder / WEIGHTS, "a sparsify SAE")
    kind = _activation(config.get("activation", "topk"), bool(config.get("signed", False)), folder)
    weight = tensors["encoder.weight"]
    d = positive(config.get("d_in"), "d_in", folder)
    latents = config.get("num_latents") or d * positive(config.get("expansion_factor", 32), "expansion_factor", folder)
    if weight.shape != (latents, d):
        raise ModelError(
            f"{folder}: encoder.weight is {list(weight.shape)}, but the configuration asks for {[latents, d]}."
        )
    hook = folder.name if _HOOKPOINT.fullmatch(folder.name) else ""
    at = layer_of(hook, layer, folder)
    named = {
        "pre_bias": tensors["b_dec"],
        "latent_bias": tensors["encoder.bias"],
        "encoder.weight": weight,
        "decoder.weight": tensors["W_dec"].T,
        "decoder_bias": tensors["b_dec"],
    }
    facts = {
        "layer": at,
        "k": agreed("k", positive(config.get("k"), "k", folder), k, folder),
        "level": "token",
        "activation": kind,
        "scaling": "none",
        "format": "sparsify",
        "source": folder.name,
        "hook": hook or None,
    }
    return made(named, facts, folder)


def config_file(folder: Path) -> Path:
    """cfg.json, or config.json in folders that call it so."""
    return folder / "cfg.json" if (folder / "cfg.json").is_file() else folder / "config.json"


def _activation(name: str, signed: bool, folder: Path) -> Activation:
    if name == "topk":
        return "topk" if signed else "topk_relu"
    if name == "groupmax" and not signed:
        return "groupmax"
    raise ModelError(f"{folder} uses the activation {name!r}{' (signed)' * signed}; read here are topk and groupmax.")
