"""Scores a prompt and answers with a run's own model, SAE and head: the reward and what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from core.data.boundaries import boundary_mask
from core.data.chat import Conversation, EncodedAnswer, encode_pairs
from core.data.schema import Message, prompt_key
from core.errors import DataError, RunError
from core.features.extract import Answer, activations_of
from core.models.backbone import Backbone, load_backbone
from core.models.head_file import Head, load_head
from core.models.resolve import file_sha256, resolve_model, weights_sha256
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


@dataclass(frozen=True, kw_only=True)
class FeatureScorer:
    """A backbone, an SAE on its states and a linear head on pooled features, loaded once.

    Attributes:
        max_length: longest sequence in tokens, prompt and answer.
        tokens_per_batch: tokens in one packed forward pass; rewards do not depend on it beyond float32 rounding.
    """

    backbone: Backbone
    sae: TopKSAE
    head: Head
    max_length: int
    tokens_per_batch: int = 2048

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[ScoredAnswer]:
        """Scores several answers to one conversation (the conversation is computed once).

        Raises:
            DataError: an answer is empty.
        """
        for number, answer in enumerate(answers, start=1):
            if not answer.strip():
                raise DataError(f"Answer {number} is empty; there is nothing to score.")
        return self.score_groups([(messages, answers)])[0]

    def score_groups(self, conversations: Sequence[Conversation]) -> list[list[ScoredAnswer]]:
        """Scores the answers to many conversations, packed. An answer that occurs twice is computed once.

        Args:
            conversations: messages ending with a user turn, and answers; an empty answer is scored as one.
        """
        unique = unique_answers(self.backbone.tokenizer, conversations, self.max_length)
        found = dict(self.score_unique(unique.groups))
        flat = iter(zip(unique.where.tolist(), unique.encoded, strict=True))
        scored = []
        for _, answers in conversations:
            rows = [next(flat) for _ in answers]
            scored.append([_as_given(found[row], text, one) for text, (row, one) in zip(answers, rows, strict=True)])
        return scored

    def score_unique(self, groups: Sequence[Sequence[Answer]]) -> Iterator[tuple[int, ScoredAnswer]]:
        """Yields (response_id, scored answer) for groups of answers that share a prompt, as they are computed."""
        text = {answer.response_id: answer.text for group in groups for answer in group}
        for found in activations_of(groups, self.backbone, self.sae, self.tokens_per_batch):
            yield found.response_id, self._scored(text[found.response_id], found)

    def with_weights(self, weights: np.ndarray) -> Self:
        """The same model with another head, float64 [M]; what is loaded is shared.

        Raises:
            DataError: not one weight for each feature.
        """
        if np.shape(weights) != np.shape(self.head.weights):
            raise DataError(
                f"The head has {np.shape(weights)} weights, the SAE {len(self.head.weights):,} features; it was made for another."
            )
        return replace(self, head=replace(self.head, weights=np.asarray(weights, np.float64)))

    def _scored(self, text: str, tokens: AnswerActivations) -> ScoredAnswer:
        features, rows = pool_answer(tokens)
        pooled = rows[{"last": 0, "mean": 1}[self.head.pooling]].astype(np.float64)
        contributions = pooled * self.head.weights[features]
        return ScoredAnswer(text, float(contributions.sum()), features, pooled, contributions, tokens)


@dataclass(frozen=True, kw_only=True)
class Scorer(FeatureScorer):
    """A run's backbone, SAE and head.

    Attributes:
        manifest: the run's, as it was when loaded.
    """

    manifest: Manifest


@dataclass(frozen=True)
class UniqueAnswers:
    """Answers as they are computed: each token sequence once.

    Attributes:
        groups: those that share a prompt together; response_id counts the unique ones, 0..
        where: int64 [n], the unique answer of each answer given.
        encoded: every answer given, tokenised.
    """

    groups: list[list[Answer]]
    where: np.ndarray
    encoded: list[EncodedAnswer]


def unique_answers(tokenizer: Any, conversations: Sequence[Conversation], max_length: int) -> UniqueAnswers:
    """Tokenises conversations; what is the same to the model becomes one answer, so that it has exactly one reward."""
    encoded = encode_pairs(tokenizer, conversations, max_length=max_length)
    number: dict[tuple[int, ...], int] = {}
    groups: dict[str, list[Answer]] = {}
    where = []
    for (messages, answers), tokens in zip(conversations, encoded, strict=True):
        group = groups.setdefault(prompt_key(messages), [])
        for text, one in zip(answers, tokens, strict=True):
            key = (one.answer_start, *one.ids)
            if key not in number:
                number[key] = len(number)
                group.append(Answer(number[key], text, one))
            where.append(number[key])
    flat = [one for tokens in encoded for one in tokens]
    return UniqueAnswers([group for group in groups.values() if group], np.array(where, dtype=np.int64), flat)


def _as_given(scored: ScoredAnswer, text: str, encoded: EncodedAnswer) -> ScoredAnswer:
    """A scored answer in the words it was given in: the chat template trims blanks that its text has."""
    if scored.text == text:
        return scored
    char = np.asarray(encoded.char, dtype=np.int32).reshape(-1, 2)
    tokens = replace(scored.tokens, char=char, boundary=boundary_mask(text, char))
    return replace(scored, text=text, tokens=tokens)


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


def load_scorer(run: Path, device: str = "auto", tell: Callable[[str], None] | None = None) -> Scorer:
    """Loads what a run was made with, and insists that it is the same.

    Args:
        tell: called with each step in words as it begins.

    Raises:
        RunError: the SAE, head or model weights are not those the run was made with.
        ModelError: the model cannot be found.
    """
    say = tell or (lambda step: None)
    say("finding the weights")
    manifest, path = run_model(run)
    say("reading the model")
    backbone = load_backbone(path, manifest.model["layer"], dtype=manifest.model["dtype"], device=device)
    say("reading the SAE and the head")
    sae, _ = load_sae(run / "sae.safetensors", device=backbone.device)
    settings = manifest.config["model"]
    return Scorer(
        manifest=manifest,
        backbone=backbone,
        sae=sae,
        head=load_head(run / "head.safetensors"),
        max_length=settings["max_length"] or backbone.context_length,
        tokens_per_batch=int(settings["tokens_per_batch"]),
    )


def load_model_scorer(folder: Path, *, dtype: str = "float32", device: str = "auto") -> FeatureScorer:
    """A SARM folder (docs/checkpoints.md): decoder blocks, SAE and head in one checkpoint.

    Raises:
        ModelError: it is no such folder, or does not fit its configuration.
    """
    from core.models.sarm import load_sarm

    loaded = load_sarm(folder, dtype=dtype, device=device)
    length = (loaded.head.metadata.get("trained") or {}).get("max_length") or loaded.backbone.context_length
    return FeatureScorer(backbone=loaded.backbone, sae=loaded.sae, head=loaded.head, max_length=length)
