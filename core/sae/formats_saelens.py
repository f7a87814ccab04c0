"""SAELens folders: cfg.json and sae_weights.safetensors, of version 6 and of the versions before it.

    W_enc [d, M], b_enc [M], W_dec [M, d], b_dec [d]; threshold [M] (jumprelu); b_gate, b_mag, r_mag [M] (gated)

`apply_b_dec_to_input` makes b_dec the pre-bias as well; `rescale_acts_by_decoder_norm` is folded into the weights, as
SAELens itself does on saving. A BatchTopK SAE is a JumpReLU SAE with one threshold once training is over, and SAELens
saves it as such; one saved by the trainer still has its `topk_threshold`, which is used the same way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import ModelError
from core.sae.formats import PublishedSae, agreed, made, need, positive, read_all, read_json
from core.sae.variants import Activation, Scaling, stored_latents

WEIGHTS = "sae_weights.safetensors"
BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")
KINDS: dict[str, Activation] = {
    "standard": "relu",
    "topk": "topk_relu",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    **dict.fromkeys(BATCH_TOPK, "jumprelu"),
}
SCALINGS: dict[str, Scaling] = {
    "none": "none",
    "expected_average_only_in": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
_MODULE = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)")


def read_saelens(
    folder: Path, *, layer: int | None = None, k: int | None = None, input_scale: float | None = None
) -> PublishedSae:
    """Reads a SAELens folder.

    Args:
        layer: where cfg.json names no residual stream, or to check it; hidden_states[layer].
        k: places stored per token where the number of active latents varies.
        input_scale: the factor of `expected_average_only_in`, when it was not folded into the weights before saving.

    Raises:
        ModelError: a kind of SAE that has no exact counterpart here; missing keys, wrong shapes.
    """
    config = _settings(read_json(folder / "cfg.json"))
    tensors, notes = read_all(folder / WEIGHTS), []
    kind = KINDS.get(str(config["architecture"]))
    if kind is None:
        raise ModelError(
            f"{folder} holds a SAELens SAE of the architecture {config['architecture']!r}; what is read here is "
            f"{', '.join(KINDS)} (a transcoder does not rebuild the states it reads)."
        )
    _check_settings(config, folder)
    extra = {"jumprelu": ["threshold"], "gated": ["b_gate", "b_mag", "r_mag"]}.get(kind, [])
    if config["architecture"] in BATCH_TOPK and "topk_threshold" in tensors:
        extra = ["topk_threshold"]
    need(
        tensors,
        ["W_enc", "W_dec", "b_dec", *([] if kind == "gated" else ["b_enc"]), *extra],
        folder / WEIGHTS,
        "a SAELens SAE",
    )
    d, latents = positive(config.get("d_in"), "d_in", folder), positive(config.get("d_sae"), "d_sae", folder)
    if tensors["W_enc"].shape != (d, latents):
        raise ModelError(
            f"{folder}: W_enc is {list(tensors['W_enc'].shape)}, but cfg.json says d_in={d}, d_sae={latents}, which asks "
            f"for {[d, latents]}."
        )
    if not _scaled_to_one(tensors):
        raise ModelError(
            f"{folder} has finetuning scaling factors, which SAELens dropped in version 6; save it anew there."
        )
    if kind in ("topk_relu", "abstopk"):
        k = agreed("k", positive(config.get("k"), "k", folder), k, folder)
    else:
        k = stored_latents(latents, k)
        notes.append(f"The number of active latents varies: the {k} largest of a token are stored (--k).")
    if config["normalize_activations"] == "expected_average_only_in":
        notes.append(
            "It was trained on scaled states (expected_average_only_in) and SAELens applies no factor to a saved SAE: "
            + (f"{input_scale:g} was folded into the weights." if input_scale else "its weights are taken as they are.")
        )
    named = _renamed(tensors, config, kind, input_scale)
    hook = str(config.get("hook_name") or "")
    facts = {
        "layer": layer_of(hook, layer, folder),
        "k": k,
        "level": "token",
        "activation": kind,
        "scaling": SCALINGS[config["normalize_activations"]],
        "format": "saelens",
        "source": folder.name,
        "hook": hook or None,
        "model": config.get("model_name"),
    }
    return made(named, facts, folder, notes)


def layer_of(hook: str, asked: int | None, where: Path) -> int:
    """The index of hidden_states that a hook of TransformerLens or a module of transformers gives.

    `blocks.N.hook_resid_post` and the output of module `layers.N` are hidden_states[N + 1], `blocks.N.hook_resid_pre`
    is hidden_states[N].

    Raises:
        ModelError: the place is no residual stream, is unknown, is the embedding, or is not the layer asked for.
    """
    if found := _HOOK.fullmatch(hook):
        said: int | None = int(found[1]) + (found[2] == "post")
    elif found := _MODULE.fullmatch(hook):
        said = int(found[1]) + 1
    elif hook:
        raise ModelError(
            f"{where} was trained at {hook}, which is not the residual stream between two blocks; only SAEs on "
            "hook_resid_pre, hook_resid_post or the output of a whole block fit here."
        )
    else:
        said = None
    layer = agreed("the layer", said, asked, where)
    if layer is None:
        raise ModelError(f"{where} does not say which layer it was trained at; give --layer N for hidden_states[N].")
    if layer < 1:
        raise ModelError(f"{where} was trained on the embeddings (hidden_states[0]); the earliest layer here is 1.")
    return layer


def _settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """One spelling for the configurations of all versions."""
    older = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
    config = {older.get(key, key): value for key, value in raw.items()}
    metadata = config.get("metadata") if isinstance(config.get("metadata"), dict) else {}
    for key in ("hook_name", "model_name", "hook_head_index"):
        config.setdefault(key, (metadata or {}).get(key))
    config.setdefault("architecture", "standard")
    config.setdefault("apply_b_dec_to_input", True)
    arguments = config.get("activation_fn_kwargs") or {}
    if config.get("activation_fn") == "topk" and arguments.get("k") is not None:
        config["architecture"], config["k"] = "topk", arguments["k"]
    scaling = config.get("normalize_activations")
    if isinstance(scaling, bool):
        scaling = "expected_average_only_in" if scaling else "none"
    config["normalize_activations"] = scaling or "none"
    return config


def _check_settings(config: Mapping[str, Any], folder: Path) -> None:
    """Refuses what would change the features and has no counterpart here."""
    if config["normalize_activations"] not in SCALINGS:
        raise ModelError(
            f"{folder} scales its input by {config['normalize_activations']!r}; read here are {', '.join(SCALINGS)} "
            "(fold a whitening into the weights with SAELens first)."
        )
    if str(config.get("reshape_activations") or "none") != "none" or config.get("hook_head_index") is not None:
        raise ModelError(f"{folder} was trained on attention heads (hook_z), not on the residual stream.")
    if config["architecture"] == "standard" and config.get("activation_fn", "relu") not in ("relu", None):
        raise ModelError(f"{folder} uses the activation {config['activation_fn']!r}; read here are relu and topk.")


def _renamed(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], kind: Activation, input_scale: float | None
) -> dict[str, Tensor]:
    """The tensors under this program's names, factors folded in float64."""
    encoder, decoder = tensors["W_enc"].T, tensors["W_dec"].T
    bias = tensors["b_mag" if kind == "gated" else "b_enc"]
    own_bias = tensors["b_dec"]
    if input_scale:
        encoder, decoder, own_bias = (
            encoder.double() * input_scale,
            decoder.double() / input_scale,
            own_bias / input_scale,
        )
    threshold = tensors.get("threshold")
    if threshold is None and "topk_threshold" in tensors:
        threshold = tensors["topk_threshold"].double().expand(len(bias))
        if input_scale and config.get("rescale_acts_by_decoder_norm"):
            threshold = threshold / input_scale  # it counts in units of pre times the decoder's norm
    if config.get("rescale_acts_by_decoder_norm"):
        norm = decoder.double().norm(dim=0)
        encoder, decoder, bias = encoder.double() * norm[:, None], decoder.double() / norm, bias.double() * norm
    named = {
        "pre_bias": own_bias if config["apply_b_dec_to_input"] else torch.zeros_like(own_bias),
        "latent_bias": bias,
        "encoder.weight": encoder,
        "decoder.weight": decoder,
        "decoder_bias": own_bias,
    }
    if kind == "jumprelu" and threshold is not None:
        named["threshold"] = threshold
    if kind == "gated":
        named |= {"gate_bias": tensors["b_gate"], "log_magnitude": tensors["r_mag"]}
    return named


def _scaled_to_one(tensors: Mapping[str, Tensor]) -> bool:
    factors = [tensors[key] for key in ("scaling_factor", "finetuning_scaling_factor") if key in tensors]
    return all(bool((factor == 1).all()) for factor in factors)
