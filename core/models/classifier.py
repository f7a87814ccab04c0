"""Ordinary reward models: a decoder with one linear output on its final-layer, final-norm state at the last token.

    r(x, y) = w . norm(h_L)[last token of y]

which is what AutoModelForSequenceClassification with num_labels = 1 computes (SAFER section 3.2), here in packed forward
passes: all answers to a prompt share its computation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from core.data.chat import EncodedAnswer
from core.errors import ModelError
from core.models.backbone import Backbone, load_backbone
from core.models.packing import pack_groups
from core.progress import Progress
from core.sae.checkpoint import read_tensors, write_tensors

SCORE = "score.weight"
HEAD_FILE = "reward_head.safetensors"


class AnswerToScore(Protocol):
    """What is needed of an answer (core/features/extract.Answer has it)."""

    @property
    def response_id(self) -> int: ...

    @property
    def encoded(self) -> EncodedAnswer: ...


@dataclass(frozen=True)
class RewardHead:
    """The scalar head of an ordinary reward model.

    Attributes:
        weights: float64 [d], each exactly representable in float32 (that is how they are stored).
        metadata: where it comes from, strings.
    """

    weights: np.ndarray
    metadata: Mapping[str, str]

    def rewards(self, final: np.ndarray) -> np.ndarray:
        """Rewards of final states [n, d]: float64 [n]."""
        return np.asarray(final, dtype=np.float64) @ self.weights


@dataclass(frozen=True)
class Classifier:
    """An ordinary reward model, ready for packed forward passes.

    Attributes:
        backbone: every block and the final norm.
        head: the scalar head.
    """

    backbone: Backbone
    head: RewardHead

    def final_states(
        self, groups: Iterable[Sequence[Sequence[int]]], tokens_per_batch: int = 2048
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The state that the head reads, for every token sequence.

        Args:
            groups: token sequences, those that share a prompt together; each ends with its end-of-turn token.
            tokens_per_batch: tokens in one packed forward pass.

        Yields:
            (index of the sequence over all groups, float32 [d]) in order.

        Raises:
            ModelError: a state holds NaN or infinity.
        """
        for pack in pack_groups(groups, tokens_per_batch):
            last = torch.tensor([rows[-1] for rows in pack.rows], device=self.backbone.device)
            states = self.backbone.forward(pack)[last].float().cpu().numpy()
            if not np.isfinite(states).all():
                raise ModelError(
                    "A final state of the reward model holds NaN or infinity; run it in float32 or check its files."
                )
            yield from zip(pack.sequence_index, states, strict=True)

    def rewards(self, groups: Iterable[Sequence[Sequence[int]]], tokens_per_batch: int = 2048) -> np.ndarray:
        """Rewards of token sequences in the order given over all groups: float64 [n]."""
        found = [self.head.rewards(state) for _, state in self.final_states(groups, tokens_per_batch)]
        return np.array(found, dtype=np.float64)

    def answer_rewards(self, groups: Sequence[Sequence[EncodedAnswer]], tokens_per_batch: int = 2048) -> np.ndarray:
        """Rewards of answers in the order given over all groups (those of a group share a prompt): float64 [n]."""
        return self.rewards([[answer.ids for answer in group] for group in groups], tokens_per_batch)


def load_classifier(path: Path, *, dtype: str = "bfloat16", device: str = "auto") -> Classifier:
    """Loads a sequence-classification checkpoint with one output.

    Args:
        path: a folder with config.json, *.safetensors and tokenizer files, as save_pretrained writes it.
        dtype: of the backbone's matrix products; the head is always float64.

    Raises:
        ModelError: not a classifier with one output, or weights missing.
    """
    weights = _score_weights(path)
    backbone = load_backbone(path, None, dtype=dtype, device=device, final_norm=True)
    if len(weights) != backbone.d_model:
        raise ModelError(
            f"{path}: {SCORE} has {len(weights):,} columns, but the model's states {backbone.d_model:,}; "
            "the checkpoint mixes two models."
        )
    return Classifier(backbone, RewardHead(weights, {"model": str(path)}))


def final_states(
    groups: Sequence[Sequence[AnswerToScore]], classifier: Classifier, progress: Progress, tokens_per_batch: int = 2048
) -> np.ndarray:
    """The reward model's final-layer, final-norm state at the last token of every answer.

    Args:
        groups: from `group_answers`: all answers of a run, response ids 0..n-1.

    Returns:
        float32 [n_responses, d], by response id.
    """
    flat = [answer for group in groups for answer in group]
    final = np.full((len(flat), classifier.backbone.d_model), np.nan, dtype=np.float32)
    sequences = ([answer.encoded.ids for answer in group] for group in groups)
    with progress.task("rewards", len(flat), "answers") as task:
        for index, state in classifier.final_states(sequences, tokens_per_batch):
            final[flat[index].response_id] = state
            task.advance()
    return final


def save_reward_head(path: Path, head: RewardHead) -> None:
    """Writes `score.weight` [1, d] float32 with its metadata; the file appears whole or not at all."""
    tensor = torch.from_numpy(head.weights.astype(np.float32)[None].copy())
    write_tensors(path, {SCORE: tensor}, dict(head.metadata))


def load_reward_head(path: Path) -> RewardHead:
    """Reads what `save_reward_head` wrote.

    Raises:
        ModelError: missing, damaged, or not a scalar head.
    """
    if not path.is_file():
        raise ModelError(f"There is no reward head {path}; build the run again.")
    tensors, metadata = read_tensors(path)
    if SCORE not in tensors:
        raise ModelError(f"{path} is not a reward head: it has no {SCORE}; build the run again.")
    return RewardHead(_row(tensors[SCORE], path), metadata)


def _score_weights(path: Path) -> np.ndarray:
    """The scalar head of a checkpoint folder, float64 [d]."""
    config = _json(path / "config.json")
    kinds = config.get("architectures") or ["no architecture"]
    labels = config.get("num_labels") or len(config.get("id2label") or {}) or None
    try:
        found, others = _head_tensors(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"The weights in {path} cannot be read ({error}); copy the folder again.") from None
    if SCORE not in found:
        raise ModelError(
            f"{path} is no reward model: it holds {kinds[0]} and no {SCORE}"
            f"{f' (but {others[0]})' if others else ''}; give a sequence-classification checkpoint with one output, or "
            "set reward_model.train to make one of a causal model."
        )
    if "score.bias" in found:
        raise ModelError(f"{path}: its head has a bias, which no reward model of this program has; retrain it without.")
    tensor = found[SCORE]
    if tensor.ndim != 2 or tensor.shape[0] != 1 or labels not in (None, 1):
        outputs = tensor.shape[0] if tensor.ndim == 2 else labels
        raise ModelError(f"{path} is a classifier with {outputs} outputs; a reward model has one (num_labels: 1).")
    return _row(tensor, path)


def _head_tensors(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors `score.*` of a folder's safetensors files, and the names of other kinds of heads in them."""
    found: dict[str, torch.Tensor] = {}
    others: list[str] = []
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            found |= {name: tensors.get_tensor(name) for name in names if name.startswith("score.")}
            others += [name for name in names if name.startswith(("v_head.", "regression_layer.", "lm_head."))]
    return found, others


def _row(tensor: torch.Tensor, path: Path) -> np.ndarray:
    if tensor.ndim != 2 or tensor.shape[0] != 1 or not torch.isfinite(tensor).all():
        raise ModelError(f"{path}: {SCORE} of shape {list(tensor.shape)} is no finite [1, d] head.")
    return tensor[0].float().numpy().astype(np.float64)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); give a folder saved by save_pretrained.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a model configuration; give a folder saved by save_pretrained.")
    return value
