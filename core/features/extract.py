"""Extraction: packed forward passes over preference pairs, SAE features of every answer token, written in shards.

All answers to one prompt (over all pairs that share it) are one group: what they have in common is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from core.data.boundaries import boundary_mask
from core.data.chat import EncodedAnswer
from core.data.schema import PreferencePairs
from core.models.backbone import Backbone
from core.models.packing import pack_groups
from core.progress import Progress
from core.sae.topk import TopKSAE
from core.store.shards import AnswerActivations, finished_shards, shard_path, write_shard


@dataclass(frozen=True)
class Answer:
    """An answer ready for the backbone."""

    response_id: int
    text: str
    encoded: EncodedAnswer


def group_answers(pairs: PreferencePairs, encoded: Sequence[EncodedAnswer]) -> list[list[Answer]]:
    """All answers that share a prompt, in one group each; groups in order of first appearance.

    Args:
        encoded: one entry for each row of `pairs.responses`, in order.
    """
    prompt_of = dict(zip(pairs.pairs["pair_id"].to_list(), pairs.pairs["prompt_id"].to_list(), strict=True))
    groups: dict[str, list[Answer]] = {}
    rows = pairs.responses.select("response_id", "pair_id", "text").iter_rows()
    for (response_id, pair_id, text), answer in zip(rows, encoded, strict=True):
        groups.setdefault(prompt_of[pair_id], []).append(Answer(response_id, text, answer))
    return list(groups.values())


def extract(
    groups: Sequence[Sequence[Answer]],
    backbone: Backbone,
    sae: TopKSAE,
    folder: Path,
    *,
    tokens_per_batch: int,
    answers_per_shard: int,
    progress: Progress,
    on_shard: Callable[[int], None] | None = None,
) -> list[Path]:
    """Writes the activations of every answer in shards; shards already there are kept.

    Args:
        groups: from `group_answers`; a group is never divided between shards.
        tokens_per_batch: tokens in one packed forward pass.
        answers_per_shard: a shard is closed once it holds this many answers.
        on_shard: called with the number of each shard just written.

    Returns:
        The shard files, in order.

    Raises:
        DiskFullError: finished shards stay, the next call goes on after them.
    """
    plan = list(_shards(groups, answers_per_shard))
    done = finished_shards(folder)
    total = sum(len(a.encoded.ids) - a.encoded.answer_start for group in groups for a in group)
    with progress.task("activations", total, "answer tokens") as task:
        for number, shard in enumerate(plan):
            size = sum(len(a.encoded.ids) - a.encoded.answer_start for group in shard for a in group)
            if number not in done:
                answers = sorted(activations_of(shard, backbone, sae, tokens_per_batch), key=lambda a: a.response_id)
                write_shard(folder, number, answers)
                if on_shard is not None:
                    on_shard(number)
            task.advance(size)
    return [shard_path(folder, number) for number in range(len(plan))]


def activations_of(
    groups: Sequence[Sequence[Answer]], backbone: Backbone, sae: TopKSAE, tokens_per_batch: int
) -> Iterator[AnswerActivations]:
    """Runs the backbone and the SAE over groups of answers, yielding each answer's token activations."""
    flat = [answer for group in groups for answer in group]
    sequences = [[answer.encoded.ids for answer in group] for group in groups]
    for pack in pack_groups(sequences, tokens_per_batch):
        answers = [flat[index] for index in pack.sequence_index]
        rows = [rows[answer.encoded.answer_start :] for rows, answer in zip(pack.rows, answers, strict=True)]
        wanted = np.unique(np.concatenate(rows))  # tokens that several answers share are encoded once
        states = backbone.forward(pack)[torch.from_numpy(wanted).to(backbone.device)]
        active = sae.encode(states)
        # The SAE's answer in the backbone's own space, to measure what it loses.
        rebuilt = sae.rebuild(states, active)
        both = torch.stack([states, rebuilt]).cpu().numpy()
        values, indices = storable(active.values.cpu().numpy()), active.indices.cpu().numpy()
        for answer, own in zip(answers, rows, strict=True):
            at = np.searchsorted(wanted, own)
            char = np.asarray(answer.encoded.char, dtype=np.int32).reshape(-1, 2)
            raw, from_sae = both[0, at], both[1, at]
            yield AnswerActivations(
                response_id=answer.response_id,
                token_ids=np.asarray(answer.encoded.ids[answer.encoded.answer_start :], dtype=np.int32),
                char=char,
                boundary=boundary_mask(answer.text, char),
                features=indices[at].astype(np.uint16 if sae.latents <= 1 << 16 else np.uint32),
                values=values[at],
                truncated=answer.encoded.truncated,
                states=np.stack([raw[-1], raw.mean(axis=0), from_sae[-1], from_sae.mean(axis=0)]),
            )


def storable(values: np.ndarray) -> np.ndarray:
    """Rounds float32 activations to 18 significant bits (relative error at most 4e-6), so that shards compress.

    Everything downstream uses the rounded values, so a stored run is exactly what it says.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + np.uint32(0x20)) & np.uint32(0xFFFFFFC0)).view(np.float32)


def _shards(groups: Sequence[Sequence[Answer]], answers_per_shard: int) -> Iterator[list[Sequence[Answer]]]:
    shard: list[Sequence[Answer]] = []
    held = 0
    for group in groups:
        shard.append(group)
        held += len(group)
        if held >= answers_per_shard:
            yield shard
            shard, held = [], 0
    if shard:
        yield shard
