"""Writes what a steering makes of a run: a steered head, or a whole steered SARM model. The run itself is never touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ConfigError, ModelError
from core.models.head_file import Head, load_head, save_head
from core.store.manifest import Manifest, read_manifest
from core.store.steerings import Steering, changes_to_json


def steered_head(run: Path, steering: Steering) -> Head:
    """A run's head with the steering's weights; its metadata says what was done.

    Weights are rounded to float32, as heads are stored. An additive change has no place in a head without a bias; it would
    change no ranking.

    Raises:
        DataError: the steering changes a feature that the head does not have.
        ModelError: the run has no readable head.
    """
    head = load_head(run / "head.safetensors")
    weights = steering.weights(head.weights).astype(np.float32).astype(np.float64)
    return Head(weights, head.pooling, {**head.metadata, "steered": steering_facts(steering, read_manifest(run))})


def steering_facts(steering: Steering, manifest: Manifest) -> dict[str, Any]:
    """What a steered file says of itself."""
    return {
        "run": manifest.name,
        "run_id": manifest.run_id,
        "head_sha256": manifest.head["sha256"],
        "sae_sha256": manifest.sae["sha256"],
        "name": steering.name,
        "changes": changes_to_json(steering),
        "how": steering.how,
        "note": steering.note,
    }


def write_head(path: Path, run: Path, steering: Steering) -> None:
    """Writes the steered head where `evaluate --head` finds it.

    Raises:
        ConfigError: the path lies in the run.
    """
    outside(path, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_head(path, steered_head(run, steering))


def write_model(folder: Path, run: Path, steering: Steering) -> None:
    """Writes a SARM folder of the run's decoder blocks, SAE and steered head, which `evaluate --model` can score.

    Raises:
        ConfigError: the folder exists or lies in the run, or the run's reward model does not read the features.
        ModelError: the model cannot be found, or its SAE is no TopK SAE.
        RunError: the files found are not those the run was made with.
    """
    import torch

    from core.models.backbone import load_tokenizer
    from core.models.resolve import quiet_transformers
    from core.models.sarm import SarmForSequenceClassification, sarm_of
    from core.models.sarm_file import is_sarm, save_sarm
    from core.rewards.score import run_model
    from core.sae.checkpoint import load_sae
    from core.sae.topk import TopKSAE

    outside(folder, run)
    if folder.exists():
        raise ConfigError(f"{folder} exists already; name a new folder for the steered model.")
    manifest, path = run_model(run)
    if (manifest.config.get("reward_model") or {}).get("kind", "head") == "classifier":
        raise ConfigError(
            "This run's reward model does not read the features, so there is no steered model to write; write the steered head "
            "instead."
        )
    dtype = "bfloat16" if manifest.model["dtype"] == "bfloat16" else "float32"
    head = steered_head(run, steering)
    sae, sae_facts = load_sae(run / "sae.safetensors")
    if is_sarm(path):
        with quiet_transformers():
            model = SarmForSequenceClassification.from_pretrained(path, dtype=getattr(torch, dtype))
    elif type(sae) is not TopKSAE:
        raise ModelError(
            f"A SARM model needs a TopK SAE and this run's is another ({type(sae).__name__}); write the head."
        )
    else:
        model = sarm_of(
            path, sae, int(manifest.model["layer"]), head.pooling, dtype=getattr(torch, dtype), sae_facts=sae_facts
        )
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(head.weights.astype(np.float32))[None])
    folder.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "kind": "sarm",
        "base": manifest.model["name"],
        "max_length": manifest.config["model"]["max_length"],
        "steered": steering_facts(steering, manifest),
    }
    save_sarm(folder, model, load_tokenizer(path), dtype=dtype, facts=facts)


def outside(path: Path, run: Path) -> None:
    """Raises ConfigError for a path in the run's folder: runs are evidence, nothing steered is written into them."""
    if path.resolve().is_relative_to(run.resolve()):
        raise ConfigError(f"{path} lies in the run {run}; steered files are written elsewhere, a run is never changed.")
