"""Chosen-rejected comparisons as token ids, and how they become padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

TOKENS_AT_ONCE = 16_384
"""Largest padded batch in one forward pass; larger batches are accumulated, which changes no gradient but rounding."""


@dataclass(frozen=True)
class TokenComparisons:
    """Chosen-rejected comparisons as token ids.

    Attributes:
        chosen, rejected: token ids of each comparison's conversations, the end-of-turn token last.
        chosen_start, rejected_start: index of each answer's first token.
        pair: int64 [n], index of the pair each comparison comes from; a pair of several answers has several.
    """

    chosen: Sequence[Sequence[int]]
    rejected: Sequence[Sequence[int]]
    chosen_start: Sequence[int]
    rejected_start: Sequence[int]
    pair: np.ndarray

    def __len__(self) -> int:
        return len(self.pair)

    def edited(self, flip: np.ndarray, drop: np.ndarray) -> TokenComparisons:
        """The comparisons with some pairs' answers changing sides and others left out.

        Args:
            flip, drop: pair indices.
        """
        turned = np.isin(self.pair, flip)
        keep = np.flatnonzero(~np.isin(self.pair, drop)).tolist()
        ids, starts = (self.chosen, self.rejected), (self.chosen_start, self.rejected_start)
        return TokenComparisons(
            [ids[int(turned[i])][i] for i in keep],
            [ids[int(not turned[i])][i] for i in keep],
            [starts[int(turned[i])][i] for i in keep],
            [starts[int(not turned[i])][i] for i in keep],
            self.pair[keep],
        )


def padded(ids: Sequence[Sequence[int]], starts: Sequence[int] | None, pad: int) -> dict[str, torch.Tensor]:
    """A batch padded on the right: input_ids and attention_mask int64 [B, T], and answer_start [B] where starts are given."""
    width = max(map(len, ids))
    tokens = torch.full((len(ids), width), pad, dtype=torch.long)
    mask = torch.zeros(len(ids), width, dtype=torch.long)
    for row, sequence in enumerate(ids):
        tokens[row, : len(sequence)] = torch.as_tensor(sequence)
        mask[row, : len(sequence)] = 1
    batch = {"input_ids": tokens, "attention_mask": mask}
    return batch if starts is None else {**batch, "answer_start": torch.tensor(starts)}


@dataclass(frozen=True)
class Collator:
    """Pads on the right; chosen first, then rejected, as TRL's loss expects."""

    pad: int
    with_start: bool  # the model pools over answers and must know where they start

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        start = [row["chosen_start"] for row in rows] + [row["rejected_start"] for row in rows]
        return padded(ids, start if self.with_start else None, self.pad)


def dataset(comparisons: TokenComparisons) -> Any:
    """The comparisons as `datasets` has them, with the length by which batches are grouped."""
    from datasets import Dataset

    lengths = [max(len(a), len(b)) for a, b in zip(comparisons.chosen, comparisons.rejected, strict=True)]
    return Dataset.from_dict(
        {
            "chosen_ids": [list(ids) for ids in comparisons.chosen],
            "rejected_ids": [list(ids) for ids in comparisons.rejected],
            "chosen_start": list(comparisons.chosen_start),
            "rejected_start": list(comparisons.rejected_start),
            "length": lengths,
        }
    )


def at_once(batch: int, longest: int) -> int:
    """Pairs in one forward pass: the largest divisor of the batch whose padded tokens stay within bounds."""
    return max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or 2 * n * longest <= TOKENS_AT_ONCE))
