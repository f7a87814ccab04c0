"""Pairs held back from training, on which its checkpoints are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.rewards.accuracy import pair_outcome
from core.rewards.comparisons import TOKENS_AT_ONCE, padded


@dataclass(frozen=True)
class HeldBack:
    """Answers of pairs that do not train.

    Attributes:
        ids: token ids of each answer's conversation.
        start: index of each answer's first token.
        pair: int64 [n_answers], 0..n_pairs-1.
        chosen: bool [n_answers].
    """

    ids: Sequence[Sequence[int]]
    start: Sequence[int]
    pair: np.ndarray
    chosen: np.ndarray

    @property
    def n_pairs(self) -> int:
        return int(self.pair.max()) + 1

    def accuracy(self, rewards: np.ndarray) -> float:
        """Share of the pairs whose lowest chosen reward is above the highest rejected one; a tie is wrong."""
        return float(pair_outcome(rewards, self.pair, self.chosen)[0].mean())


def measured_rewards(trainer: Any, held: HeldBack) -> np.ndarray:
    """Rewards of the answers by the model as it stands, shared out over the processes: float64 [n_answers]."""
    accelerator, model = trainer.accelerator, trainer.model_wrapped
    rewards = np.full(len(held.ids), np.nan)
    pad, with_start = trainer.data_collator.pad, trainer.data_collator.with_start
    was_training = model.training
    model.eval()
    for batch in _batches(held, accelerator.num_processes):
        own = batch[accelerator.process_index :: accelerator.num_processes]
        inputs = padded([held.ids[i] for i in own], [held.start[i] for i in own] if with_start else None, pad)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            logits = model(**{key: value.to(accelerator.device) for key, value in inputs.items()}).logits
        index = torch.tensor(own, device=accelerator.device)
        found, where = accelerator.gather((logits[:, 0].float(), index))
        rewards[where.cpu().numpy()] = found.double().cpu().numpy()
    model.train(was_training)
    return rewards


def _batches(held: HeldBack, processes: int) -> Iterator[list[int]]:
    """Answers of like length together, every batch a multiple of the number of processes (the last answers twice if need be)."""
    order = np.argsort([-len(ids) for ids in held.ids], kind="stable").tolist()
    order += order[-1:] * (-len(order) % processes)
    while order:
        size = max(1, TOKENS_AT_ONCE // (2 * len(held.ids[order[0]]))) * processes
        yield order[:size]
        order = order[size:]
