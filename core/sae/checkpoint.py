"""SAE files: safetensors with the four published keys and string metadata. Nothing here unpickles.

An SAE of another kind (core/sae/variants) has more keys, and says its activation and scaling in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.errors import ModelError, disk_full_is_said
from core.sae.topk import TopKSAE
from core.sae.variants import ACTIVATIONS, EXTRA_KEYS, SCALINGS, VariantSAE

METADATA = "rewardscope"
KEYS = ("pre_bias", "latent_bias", "encoder.weight", "decoder.weight")


def save_sae(path: Path, sae: TopKSAE, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32) -> None:
    """Writes an SAE; the file appears whole or not at all.

    Args:
        path: `….safetensors`, replaced if it exists.
        sae: its weights must already be representable in `dtype` (`TopKSAE.round_weights`), so that the file is the
            SAE that was used and not nearly so.
        metadata: at least `layer` and `level` (token, sequence or random); `k`, `latents`, `d` and `dtype` are added, and
            `activation` and `scaling` where they are not SARM's.

    Raises:
        DiskFullError: no room.
        ValueError: `layer` or `level` is missing, or the weights do not fit `dtype` exactly.
    """
    if missing := {"layer", "level"} - set(metadata):
        raise ValueError(f"metadata lacks {', '.join(sorted(missing))}")
    state = {name: weight.detach().cpu() for name, weight in sae.state_dict().items()}
    stored = {name: weight.to(dtype).contiguous() for name, weight in state.items()}
    if any(not torch.equal(stored[name].to(weight.dtype), weight) for name, weight in state.items()):
        raise ValueError(f"the weights are not representable in {dtype}; call round_weights first")
    write_tensors(path, stored, {**metadata, **sae.facts(), "dtype": str(dtype).removeprefix("torch.")})


def load_sae(
    path: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[TopKSAE, dict[str, str]]:
    """Reads an SAE file; the weights come without gradients, in `dtype` whatever the file holds.

    Returns:
        the SAE on `device`, and the file's metadata.

    Raises:
        ModelError: the file is missing or damaged, lacks a key, or its shapes, k or values make no SAE.
    """
    tensors, metadata = read_tensors(path)
    return sae_of(tensors, metadata, path).to(device=device, dtype=dtype).requires_grad_(False), metadata


def stored_dtype(metadata: Mapping[str, str]) -> torch.dtype:
    """The type in which a file holds its weights (float32 when it does not say)."""
    known = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    return known.get(metadata.get("dtype", ""), torch.float32)


def sae_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], where: Path) -> TopKSAE:
    """The SAE that tensors and metadata describe, in float32.

    Args:
        where: named in the messages.

    Raises:
        ModelError: a key is missing, or shapes, k or values make no SAE.
    """
    activation, scaling = metadata.get("activation", "topk"), metadata.get("scaling", "standard")
    if activation not in ACTIVATIONS or scaling not in SCALINGS:
        raise ModelError(f"{where} holds an SAE of the kind {activation}, {scaling}, which this version does not know.")
    ours = activation == "topk" and scaling == "standard" and "decoder_bias" not in tensors
    keys = KEYS if ours else (*KEYS, "decoder_bias", *EXTRA_KEYS.get(activation, ()))
    if missing := [key for key in keys if key not in tensors]:
        raise ModelError(f"{where} is not an SAE file: it has no {', '.join(missing)}; give a file this program wrote.")
    if tensors["encoder.weight"].ndim != 2:
        raise ModelError(f"{where}: encoder.weight must be [M, d], not {list(tensors['encoder.weight'].shape)}.")
    latents, d = tensors["encoder.weight"].shape
    wanted = {"pre_bias": (d,), "encoder.weight": (latents, d), "decoder.weight": (d, latents), "decoder_bias": (d,)}
    for key in keys:
        check_tensor(tensors[key], wanted.get(key, (latents,)), f"{where}: {key}", f"encoder.weight {[latents, d]}")
    try:
        k = int(metadata["k"])
    except (KeyError, ValueError):
        raise ModelError(f"{where} does not say k, the number of active latents, in its metadata.") from None
    if ours:
        sae = TopKSAE(d, latents, k, initialise=False)
    else:
        kind, scale = ACTIVATIONS[ACTIVATIONS.index(activation)], SCALINGS[SCALINGS.index(scaling)]
        sae = VariantSAE(d, latents, k, activation=kind, scaling=scale)
    sae.load_state_dict({key: tensors[key] for key in keys})
    return sae


def check_tensor(tensor: Tensor, shape: Sequence[int], name: str, asked_by: str) -> None:
    """Insists on a tensor's shape and on finite values.

    Args:
        name: of the tensor, with its file, for the message; asked_by: what decides the shape.

    Raises:
        ModelError: it has another shape, or holds NaN or infinity.
    """
    if tuple(tensor.shape) != tuple(shape):
        raise ModelError(
            f"{name} is {list(tensor.shape)}, but {asked_by} asks for {list(shape)}; the file mixes two models."
        )
    if not torch.isfinite(tensor).all():
        raise ModelError(f"{name} holds NaN or infinity; the training it came from diverged.")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file aside and moves it into place, so that a reader never sees half of it.

    Raises:
        DiskFullError: no room; the file that was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with disk_full_is_said(path.parent):
        try:
            aside.touch()
            mode = aside.stat().st_mode  # what files get here; safetensors would leave it readable by its owner only
            # One entry, because safetensors writes several in no fixed order: the same SAE gives the same bytes.
            save_file(tensors, aside, metadata={METADATA: json.dumps(metadata, sort_keys=True)})
            aside.chmod(mode)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors (on the CPU) and the metadata of a safetensors file.

    Raises:
        ModelError: the file is missing or is not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError:
        raise ModelError(f"There is no SAE file {path}; check sae.checkpoint, or build the run to train one.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({error}); copy it again or train anew.") from None
