"""What is particular to a run whose reward model is a SARM model: settings, SAE and head are those of its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from core.config import RunConfig, SaeConfig
from core.errors import ConfigError
from core.models.backbone import Backbone
from core.models.head_file import save_head
from core.models.sarm_file import is_sarm, read_sae_and_head, read_sarm_config
from core.progress import Progress
from core.sae.checkpoint import save_sae
from core.sae.fit import fit_sae
from core.sae.topk import TopKSAE


def checked(config: RunConfig, path: Path) -> RunConfig:
    """The configuration with what a given SARM folder decides filled in; any other configuration as it is.

    Args:
        path: folder of `model.name`.

    Raises:
        ConfigError: a setting contradicts the folder, or the folder is no SARM folder where one is needed, or is one where
            none is.
        ModelError: the folder's config.json is damaged.
    """
    kind, trains = config.reward_model.kind, config.reward_model.sarm is not None
    if kind != "sarm" or trains:
        if is_sarm(path):
            wanted = "leave reward_model.sarm out" if kind == "sarm" else "set reward_model: {kind: sarm}"
            raise ConfigError(f"model.name {path} is a SARM folder; {wanted}, or give the causal model it came from.")
        return config
    if not is_sarm(path):
        raise ConfigError(
            f"model.name {path} is not a SARM folder; give one (`rewardscope train` or `rewardscope import` makes it), or "
            "set reward_model.sarm to train one of a causal model."
        )
    own = read_sarm_config(path)
    for section, key, value in (
        ("model", "layer", own.layer),
        ("sae", "latents", own.latents),
        ("sae", "k", own.k),
        ("sae", "checkpoint", None),
        ("head", "pooling", own.pooling),
    ):
        part = getattr(config, section)
        if key in part.model_fields_set and getattr(part, key) != value:
            raise ConfigError(
                f"{section}.{key} is {getattr(part, key)}, but the SARM model in {path} has "
                f"{'its own SAE' if value is None else value}; leave {section}.{key} out."
            )
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"layer": own.layer}),
            "sae": config.sae.model_copy(update={"latents": own.latents, "k": own.k}),
            "head": config.head.model_copy(update={"pooling": own.pooling}),
        }
    )


def take_sae(
    path: Path,
    config: SaeConfig,
    backbone: Backbone,
    conversations: Sequence[Sequence[int]],
    folder: Path,
    progress: Progress,
    *,
    tokens_per_batch: int,
) -> None:
    """Writes a SARM folder's SAE as `sae.safetensors`, not a bit changed, and measures it on the folder's own states.

    Args:
        path: the SARM folder.
        conversations: as for `fit_sae`; a share of them is what the SAE is measured on.
        folder: of the stage; `quality.json` is written there too.
    """
    own = read_sarm_config(path)
    sae, _ = read_sae_and_head(path, own)
    given = folder / "given.safetensors"
    save_sae(given, sae, {"level": "token", **own.sae_facts, "layer": str(own.layer)}, exact_dtype(sae))
    measured = config.model_copy(update={"checkpoint": str(given)})
    fit_sae(measured, backbone, conversations, folder, progress, tokens_per_batch=tokens_per_batch)
    given.unlink()


def take_head(path: Path, out: Path) -> None:
    """Writes a SARM folder's head, with the facts of its training, as `head.safetensors`."""
    save_head(out, read_sae_and_head(path, read_sarm_config(path))[1])


def exact_dtype(sae: TopKSAE) -> torch.dtype:
    """The smallest type that holds every weight exactly."""
    for dtype in (torch.float16, torch.bfloat16):
        if all(torch.equal(weight.to(dtype).to(weight.dtype), weight) for weight in sae.parameters()):
            return dtype
    return torch.float32
