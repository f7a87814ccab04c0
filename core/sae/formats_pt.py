"""The SAE files of SARM and SAFER: a pickled state dict with four tensors, its sizes in the file name.

SARM: `{base}_{sequence|token}_Latent{M}_Layer{l}_K{k}_{data}.pt` (its bradley_terry.py reads M, l and k from there);
an adapted one says `{sequence|token}_Adapted`. SAFER: `stage1.pt` (token level) and `stage2.pt` (its sentence level),
without numbers; its paper and recipe use l = 12, k = 64, which must be given, because nothing in the file tells.

Keys: `pre_bias` [d], `latent_bias` [M], `encoder.weight` [M, d], `decoder.weight` [d, M], bf16 or fp32.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import torch
from torch import Tensor

from core.errors import ModelError
from core.sae.checkpoint import KEYS
from core.sae.formats import PublishedSae, agreed, made, need

SIZES = re.compile(r"_Latent(\d+)_Layer(\d+)_K(\d+)_")
LEVEL = re.compile(r"(?:^|_)(sequence|token)(?:_Adapted)?_Latent")
STAGES = {"stage1": "token", "stage2": "sequence"}


def read_pt(path: Path, *, layer: int | None = None, k: int | None = None) -> PublishedSae:
    """Reads one `.pt` file; code in it is never run.

    Args:
        layer, k: where the name does not say them (SAFER); hidden_states[layer].

    Raises:
        ModelError: damaged, pickled code, missing keys, wrong shapes, sizes not given or at odds with the name.
    """
    tensors = load_pickled(path)
    need(tensors, KEYS, path, "an SAE of SARM or SAFER")
    said_m, said_layer, said_k = sizes_in(path.name)
    layer, k = agreed("the layer", said_layer, layer, path), agreed("k", said_k, k, path)
    if layer is None or k is None:
        missing = " and ".join(name for name, value in (("--layer", layer), ("--k", k)) if value is None)
        raise ModelError(
            f"The name {path.name} does not say the SAE's sizes (as _Latent65536_Layer16_K192_ does), so give {missing}; "
            "SAFER's stage1.pt and stage2.pt were made for --layer 12 --k 64."
        )
    latents = tensors["latent_bias"].numel()
    if said_m is not None and said_m != latents:
        raise ModelError(
            f"The name {path.name} says {said_m} latents, the file holds {latents}; it was renamed or damaged."
        )
    level = LEVEL.search(path.name)
    return made(
        {key: tensors[key] for key in KEYS},
        {
            "layer": layer,
            "k": k,
            "level": level[1] if level else STAGES.get(path.stem, "token"),
            "format": "sarm-pt",
            "source": path.name,
        },
        path,
        [
            f"{path.name} also holds {', '.join(extra)}; not used."
            if (extra := sorted(set(tensors) - set(KEYS)))
            else ""
        ],
    )


def sizes_in(name: str) -> tuple[int | None, int | None, int | None]:
    """M, layer and k as SARM writes them into names; None where they are not there."""
    found = SIZES.search(name)
    return (int(found[1]), int(found[2]), int(found[3])) if found else (None, None, None)


def load_pickled(path: Path) -> dict[str, Tensor]:
    """A state dict saved by torch, with weights_only (nothing in it is executed) and mapped, not read, where it can be.

    Raises:
        ModelError: missing, damaged, holding anything but tensors.
    """
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    try:
        # Files from before torch 1.6 are no archives and cannot be mapped.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} holds pickled code or objects besides tensors; it is not opened, because that would run the code. "
            "Ask for a safetensors file or a plain state dict."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, BadZipFile, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path} is not a readable torch file ({first}); copy it again.") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelError(f"{path} does not hold a state dict of tensors; give the file as it was published.")
    if not all(isinstance(key, str) for key in loaded):
        raise ModelError(f"{path} does not hold named tensors; give the file as it was published.")
    return loaded
