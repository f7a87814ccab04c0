"""Tiny checkpoints in exactly the layouts that are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.core.models.architectures import save_model

LAYER, LATENTS, K, D = 2, 48, 5, 32
REMOTE_CODE = "raise RuntimeError('remote code was executed')\n"


def sarm_checkpoint(
    folder: Path,
    *,
    architecture: str = "llama",
    changes: dict[str, Tensor | None] | None = None,
    param: dict[str, Any] | None = None,
    older: bool = False,
    pad: str = "[PAD]",
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """A SARM checkpoint as published: blocks 0..l-1 and the unused norm, `sae.*`, `score.weight`, in two shards.

    Args:
        changes: tensors to replace or (None) to leave out.
        param: changes of `sarm_param`; a value of None leaves the key out.
        older: without `sarm_param`.
        pad: the tokenizer's padding token ("</s>" is the end of the turn).
    """
    base = save_model(architecture, folder / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    kept = {name: tensor for name, tensor in model.model.state_dict().items() if not name.startswith("layers.")}
    kept |= {
        name: tensor
        for name, tensor in model.model.state_dict().items()
        if name.startswith("layers.") and int(name.split(".")[1]) < LAYER
    }
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 0.3) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    state: dict[str, Tensor | None] = {f"model.{name}": tensor for name, tensor in kept.items()}
    state |= {
        "sae.pre_bias": random(D),
        "sae.latent_bias": random(LATENTS),
        "sae.encoder.weight": random(LATENTS, D),
        "sae.decoder.weight": random(D, LATENTS),
        "score.weight": random(1, LATENTS),
        **(changes or {}),
    }
    whole = {name: tensor.to(dtype).contiguous() for name, tensor in state.items() if tensor is not None}
    out = folder / "SARM-tiny"
    shards(out, whole)
    config = json.loads((base / "config.json").read_text())
    # As published: still the depth of the base model, and a class that only exists as remote code.
    config |= {
        "architectures": ["LlamaSARM"],
        "auto_map": {"AutoModelForSequenceClassification": "modeling_sarm_llama.LlamaSARM"},
        "num_hidden_layers": 4,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    if not older:
        said = {
            "sae_source_layer": LAYER,
            "sae_latent_size": LATENTS,
            "sae_k": K,
            "sae_use_sequence_level": True,
            "sarm_use_activation": True,
            **(param or {}),
        }
        config["sarm_param"] = {key: value for key, value in said.items() if value is not None}
    (out / "config.json").write_text(json.dumps(config))
    (out / "modeling_sarm_llama.py").write_text(REMOTE_CODE)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(out)
    return out


def shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Two safetensors files and their index, as save_pretrained writes large models."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: file for file, held in parts.items() for name in held},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
