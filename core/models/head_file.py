"""head.safetensors: the head's weights with what one needs to know to use them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from core.config import Pooling
from core.errors import ModelError


@dataclass(frozen=True)
class Head:
    """A linear head on pooled features.

    Attributes:
        weights: float64 [M], each exactly representable in float32 (that is how it is stored).
        pooling: 'last' or 'mean'.
        metadata: l2, loss, gradient norm, ... of the fit.
    """

    weights: np.ndarray
    pooling: Pooling
    metadata: dict[str, Any]


def save_head(path: Path, head: Head) -> None:
    """Writes `score.weight` [1, M] float32 with the facts as metadata."""
    weights = {"score.weight": head.weights.astype(np.float32)[None]}
    path.write_bytes(save(weights, {"rewardscope": json.dumps(head.metadata)}))


def load_head(path: Path) -> Head:
    """Reads a head.

    Raises:
        ModelError: missing, damaged, or not a head.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            weights = file.get_tensor("score.weight")
            facts = json.loads((file.metadata() or {})["rewardscope"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{path} is not a reward head ({error}); build the run again.") from None
    if weights.ndim != 2 or weights.shape[0] != 1:
        raise ModelError(f"{path} holds score.weight of shape {list(weights.shape)}; [1, M] is expected.")
    pooling = facts.get("pooling")
    if pooling not in get_args(Pooling):
        raise ModelError(f"{path} was made for the pooling {pooling!r}; known are {', '.join(get_args(Pooling))}.")
    return Head(weights[0].astype(np.float64), pooling, facts)
