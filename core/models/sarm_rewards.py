"""Rewards of a SARM model in packed forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from core.models.backbone import Backbone
from core.models.packing import pack_groups

Group = Sequence[tuple[Sequence[int], int]]
"""(token ids, index of the answer's first token) of the answers to one prompt."""


def packed_rewards(
    backbone: Backbone,
    token_rewards: Callable[[torch.Tensor], torch.Tensor],
    pooling: str,
    groups: Iterable[Group],
    tokens_per_batch: int,
) -> Iterator[tuple[int, float]]:
    """Pools the rewards of the tokens of each answer.

    Args:
        token_rewards: hidden states [n, d] to rewards [n].
        pooling: 'last' or 'mean'.

    Yields:
        (index over all groups, reward) in order.
    """
    kept = [list(group) for group in groups]
    starts = [start for group in kept for _, start in group]
    for pack in pack_groups(([ids for ids, _ in group] for group in kept), tokens_per_batch):
        with torch.inference_mode():
            states = backbone.forward(pack)
            wanted = [
                rows[-1:] if pooling == "last" else rows[starts[index] :]
                for index, rows in zip(pack.sequence_index, pack.rows, strict=True)
            ]
            flat = torch.from_numpy(np.concatenate(wanted)).to(states.device)
            tokens = token_rewards(states[flat]).cpu().double().numpy()
        ends = np.cumsum([len(rows) for rows in wanted])
        for index, part in zip(pack.sequence_index, np.split(tokens, ends[:-1]), strict=True):
            yield index, float(part.mean())
