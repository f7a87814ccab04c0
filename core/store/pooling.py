"""From shards to arrays: puts the answers in order and pools their token activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.errors import RunError
from core.store.arrays import RunArrays
from core.store.shards import AnswerActivations, read_shard


def pool_answer(answer: AnswerActivations) -> tuple[np.ndarray, np.ndarray]:
    """Pools one answer's token activations.

    Returns:
        features: the features active on any token, ascending, int64 [n].
        pooled: float32 [4, n], rows last, mean, max, boundary_sum (design: A run; SAFER's sums clamp at zero).
    """
    tokens = len(answer.values)
    row, place = np.nonzero(answer.values)  # an exact 0 is an unused place of an SAE that has fewer active latents
    features, where = np.unique(answer.features[row, place], return_inverse=True)
    values = answer.values[row, place].astype(np.float64)
    n = len(features)
    last = np.zeros(n)
    final = row == tokens - 1
    last[where[final]] = values[final]
    total = np.bincount(where, weights=values, minlength=n)
    largest = np.full(n, -np.inf)
    np.maximum.at(largest, where, values)
    # A feature that is inactive on some token has a zero there.
    largest = np.where(np.bincount(where, minlength=n) < tokens, np.maximum(largest, 0.0), largest)
    at_boundary = np.where(answer.boundary[row], np.maximum(values, 0.0), 0.0)
    boundary_sum = np.bincount(where, weights=at_boundary, minlength=n)
    return features.astype(np.int64), np.stack([last, total / tokens, largest, boundary_sum]).astype(np.float32)


def arrays_from_shards(shards: list[Path], n_responses: int, latents: int) -> RunArrays:
    """Reads every shard and lays its answers out in response order.

    Raises:
        RunError: an answer is missing from the shards, or stands in two of them.
    """
    answers: list[AnswerActivations | None] = [None] * n_responses
    for path in shards:
        for answer in read_shard(path):
            if answer.response_id >= n_responses or answers[answer.response_id] is not None:
                raise RunError(f"{path} holds answer {answer.response_id}, which does not belong there; build again.")
            answers[answer.response_id] = answer
    whole = [answer for answer in answers if answer is not None]
    if len(whole) != n_responses:
        raise RunError(f"{n_responses - len(whole)} of {n_responses} answers are in no shard; build again.")
    pooled = [pool_answer(answer) for answer in whole]
    columns = np.concatenate([values for _, values in pooled], axis=1)
    states = [answer.states for answer in whole if answer.states is not None]
    width = max([1, *(int(np.nonzero(answer.values)[1].max(initial=0)) + 1 for answer in whole)])  # places ever used
    return RunArrays(
        token_start=_starts([len(answer.token_ids) for answer in whole]),
        token_ids=np.concatenate([answer.token_ids for answer in whole]).astype(np.int32),
        token_char=np.concatenate([answer.char for answer in whole]).astype(np.int32),
        token_boundary=np.concatenate([answer.boundary for answer in whole]),
        token_features=np.concatenate([answer.features[:, :width] for answer in whole]),
        token_values=np.concatenate([answer.values[:, :width] for answer in whole]),
        truncated=np.array([answer.truncated for answer in whole]),
        pooled_ptr=_starts([len(features) for features, _ in pooled]),
        pooled_features=np.concatenate([features for features, _ in pooled]).astype(np.uint32),
        last=columns[0],
        mean=columns[1],
        max=columns[2],
        boundary_sum=columns[3],
        states=np.stack(states) if len(states) == n_responses else None,
        latents=latents,
    )


def _starts(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
