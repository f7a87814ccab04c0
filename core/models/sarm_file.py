"""SARM folders: what `save_pretrained` writes, read for packed forward passes.

config.json (model_type "rewardscope_sarm"), *.safetensors with `model.*`, `sae.*` and `score.weight`, tokenizer files, and
`rewardscope.json` with the facts of its training. The SAE and the head are float32 whatever the decoder is stored in.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.config import Pooling
from core.errors import ModelError, disk_full_is_said
from core.models.backbone import Backbone, load_backbone
from core.models.head_file import Head
from core.models.resolve import quiet_transformers
from core.models.sarm_config import SarmConfig
from core.models.sarm_rewards import Group, packed_rewards
from core.sae.checkpoint import KEYS
from core.sae.topk import TopKSAE
from core.store.stages import write_json

if TYPE_CHECKING:
    from core.models.sarm import SarmForSequenceClassification

FACTS = "rewardscope.json"
SAE_KEYS = tuple(f"sae.{key}" for key in KEYS)
SCORE = "score.weight"
POOLINGS = ("last", "mean")


@dataclass(frozen=True)
class LoadedSarm:
    """A SARM model, ready for packed forward passes.

    Attributes:
        backbone: its decoder blocks and tokenizer.
        sae: float32, on the backbone's device, without gradients.
        head: `score.weight`, its pooling, and the facts of its training as metadata.
        config: what its config.json says.
    """

    backbone: Backbone
    sae: TopKSAE
    head: Head
    config: SarmConfig

    def rewards(self, groups: Iterable[Group], tokens_per_batch: int = 2048) -> np.ndarray:
        """Rewards of answers in the order given over all groups: float64 [n].

        Args:
            groups: (token ids, index of the answer's first token) of the answers to each prompt.
        """
        weights = torch.from_numpy(self.head.weights)

        def of_tokens(states: Tensor) -> Tensor:
            active = self.sae.encode(states)
            values, indices = active.values.cpu().double(), active.indices.cpu()  # not every accelerator has float64
            return (values * weights[indices]).sum(1)

        found = packed_rewards(self.backbone, of_tokens, self.head.pooling, groups, tokens_per_batch)
        return np.array([reward for _, reward in found], dtype=np.float64)


def load_sarm(path: Path, *, dtype: str = "bfloat16", device: str = "auto") -> LoadedSarm:
    """Loads a SARM folder for packed forward passes.

    Args:
        dtype: of the decoder's matrix products; the SAE is float32, the head float64.

    Raises:
        ModelError: not a SARM folder, or its weights are missing, damaged or of other shapes than its config.json says.
    """
    config = read_sarm_config(path)
    sae, head = read_sae_and_head(path, config)
    backbone = load_backbone(path, None, dtype=dtype, device=device)
    if backbone.d_model != sae.d_model:
        raise ModelError(f"{path}: the SAE reads states of width {sae.d_model}, the decoder's have {backbone.d_model}.")
    return LoadedSarm(backbone, sae.to(backbone.device), head, config)


def is_sarm(path: Path) -> bool:
    """Whether a folder says that it holds a SARM model."""
    try:
        facts = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and facts.get("model_type") == SarmConfig.model_type


def read_sarm_config(path: Path) -> SarmConfig:
    """The configuration in a SARM folder.

    Raises:
        ModelError: there is none, or it lacks what a SARM model needs.
    """
    if not is_sarm(path):
        raise ModelError(
            f"{path} is not a SARM folder (its config.json has no model_type {SarmConfig.model_type!r}); make one with "
            "`rewardscope train`, or of a published checkpoint with `rewardscope import`."
        )
    try:
        config = SarmConfig.from_pretrained(path)
        config.decoder_config()
        layer = config.layer
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path / 'config.json'} does not describe a decoder ({error}); copy the folder again."
        ) from None
    if config.pooling not in POOLINGS or layer < 1:
        raise ModelError(f"{path / 'config.json'}: pooling {config.pooling!r} and layer {layer} make no SARM model.")
    return config


def read_sae_and_head(path: Path, config: SarmConfig) -> tuple[TopKSAE, Head]:
    """The SAE (float32, on the CPU, without gradients) and the head in a SARM folder.

    Raises:
        ModelError: a tensor is missing, of another shape than config.json says, or not finite.
    """
    tensors = _tensors(path, (*SAE_KEYS, SCORE))
    m = config.latents
    d = int(tensors["sae.pre_bias"].numel())
    shapes = {
        "sae.pre_bias": (d,),
        "sae.latent_bias": (m,),
        "sae.encoder.weight": (m, d),
        "sae.decoder.weight": (d, m),
        SCORE: (1, m),
    }
    for key, shape in shapes.items():
        if tuple(tensors[key].shape) != shape:
            raise ModelError(
                f"{path}: {key} is {list(tensors[key].shape)}, but {list(shape)} is needed; copy it again."
            )
        if not torch.isfinite(tensors[key]).all():
            raise ModelError(f"{path}: {key} holds NaN or infinity; the training it came from diverged.")
    sae = TopKSAE(d, m, config.k, initialise=False)
    sae.load_state_dict({key.removeprefix("sae."): tensors[key].float() for key in SAE_KEYS})
    facts = {"pooling": config.pooling, "l2": None, "gradient_norm": None, "trained": _training(path)}
    weights = tensors[SCORE][0].float().numpy().astype(np.float64)
    return sae.requires_grad_(False), Head(weights, cast("Pooling", config.pooling), facts)


def save_sarm(
    path: Path,
    model: SarmForSequenceClassification,
    tokenizer: Any,
    *,
    dtype: str = "bfloat16",
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes a SARM folder aside and moves it into place: it appears whole or not at all.

    Args:
        model: its decoder is brought to `dtype` (in place, on the CPU); the SAE and the head are stored in float32.
        facts: written to `rewardscope.json`.

    Raises:
        DiskFullError: no room; what was there before is untouched.
    """
    aside = path.with_name(path.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    stored = {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
    with disk_full_is_said(path.parent):
        try:
            whole: Any = model
            whole.to("cpu")
            model.model.to(stored)
            model.sae.float()
            model.score.float()
            model.config.dtype = stored
            with quiet_transformers():
                model.save_pretrained(aside)
                tokenizer.save_pretrained(aside)
            if facts is not None:
                write_json(aside / FACTS, dict(facts))
            shutil.rmtree(path, ignore_errors=True)
            aside.rename(path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _tensors(path: Path, keys: Iterable[str]) -> dict[str, Tensor]:
    """Some tensors of a folder's safetensors files.

    Raises:
        ModelError: one is not there, or a file is damaged.
    """
    wanted = set(keys)
    found: dict[str, Tensor] = {}
    try:
        for file in sorted(path.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                found |= {key: tensors.get_tensor(key) for key in wanted & set(tensors.keys())}
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"The weights in {path} cannot be read ({error}); copy the folder again.") from None
    if missing := sorted(wanted - set(found)):
        raise ModelError(f"{path} is no whole SARM model: it has no {', '.join(missing)}; copy the folder again.")
    return found


def _training(path: Path) -> dict[str, Any]:
    """What `rewardscope.json` says of the training; nothing where there is none."""
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
