"""Scores a prompt and answers with a run's own model, SAE and head: the reward and what it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.data.chat import encode_pair
from core.data.schema import Message
from core.errors import DataError, RunError
from core.features.extract import Answer, activations_of
from core.models.backbone import Backbone, load_backbone
from core.models.resolve import file_sha256, resolve_model, weights_sha256
from core.rewards.head_file import Head, load_head
from core.sae.checkpoint import load_sae
from core.sae.topk import TopKSAE
from core.store.manifest import Manifest, read_manifest
from core.store.pooling import pool_answer
from core.store.shards import AnswerActivations


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer's reward and its decomposition.

    Attributes:
        text: the answer.
        reward: sum of `contributions`.
        features: int64 [n] active features, ascending.
        pooled: float64 [n] pooled activation of each.
        contributions: float64 [n], w_i z_i.
        tokens: the token-level activations behind it.
    """

    text: str
    reward: float
    features: np.ndarray
    pooled: np.ndarray
    contributions: np.ndarray
    tokens: AnswerActivations


@dataclass(frozen=True)
class Scorer:
    """A run's backbone, SAE and head, loaded once."""

    manifest: Manifest
    backbone: Backbone
    sae: TopKSAE
    head: Head

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[ScoredAnswer]:
        """Scores several answers to one conversation (the conversation is computed once).

        Raises:
            DataError: an answer is empty.
        """
        for number, answer in enumerate(answers, start=1):
            if not answer.strip():
                raise DataError(f"Answer {number} is empty; there is nothing to score.")
        limit = self.manifest.config["model"]["max_length"] or self.backbone.context_length
        encoded = encode_pair(self.backbone.tokenizer, messages, answers, max_length=limit)
        group = [Answer(i, text, one) for i, (text, one) in enumerate(zip(answers, encoded, strict=True))]
        budget = int(self.manifest.config["model"]["tokens_per_batch"])
        return [
            self._scored(answers[found.response_id], found)
            for found in activations_of([group], self.backbone, self.sae, budget)
        ]

    def _scored(self, text: str, tokens: AnswerActivations) -> ScoredAnswer:
        features, rows = pool_answer(tokens)
        pooled = rows[{"last": 0, "mean": 1}[self.head.pooling]].astype(np.float64)
        contributions = pooled * self.head.weights[features]
        return ScoredAnswer(text, float(contributions.sum()), features, pooled, contributions, tokens)


def run_model(run: Path) -> tuple[Manifest, Path]:
    """The manifest of a run, and the folder of the model it was made with: a published one, or a reward model that was
    trained for the run and lies in it.

    Raises:
        RunError: the SAE, head or model weights are not those the run was made with.
        ModelError: the model cannot be found.
    """
    manifest = read_manifest(run)
    for name, facts in (("sae.safetensors", manifest.sae), ("head.safetensors", manifest.head)):
        if not (run / name).exists() or file_sha256(run / name) != facts["sha256"]:
            raise RunError(f"{run / name} is missing or not the one this run was made with; build the run again.")
    model = manifest.model
    if trained := model.get("checkpoint"):
        path, where = run / trained, "path"
    else:
        resolved = resolve_model(
            model["name"], manifest.config["model"]["revision"], manifest.config["model"]["weights"]
        )
        path, where = resolved.path, resolved.source
    if weights_sha256(path) != model["weights_sha256"]:
        raise RunError(
            f"The weights of {model['name']} found here ({where}) are not those the run was made with "
            f"({model['source']}); rewards would differ. Build the run again with these weights."
        )
    return manifest, path


def load_scorer(run: Path, device: str = "auto") -> Scorer:
    """Loads what a run was made with, and insists that it is the same.

    Raises:
        RunError: the SAE, head or model weights are not those the run was made with.
        ModelError: the model cannot be found.
    """
    manifest, path = run_model(run)
    backbone = load_backbone(path, manifest.model["layer"], dtype=manifest.model["dtype"], device=device)
    sae, _ = load_sae(run / "sae.safetensors", device=backbone.device)
    return Scorer(manifest, backbone, sae, load_head(run / "head.safetensors"))
