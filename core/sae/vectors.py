"""Training vectors: hidden states harvested once into memory-mapped shards, or computed anew as they are needed.

Both are `VectorSource`s (core/sae/train.py): endless, shuffled by seed, and replayable from any step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.config import fingerprint
from core.errors import ConfigError, disk_full_is_said
from core.models.backbone import Backbone
from core.progress import Progress
from core.sae.passages import Passage
from core.sae.ranks import ALONE, Ranks
from core.sae.streams import PassageStream
from core.store.stages import write_json

SHARD_VECTORS = 1 << 16
BLOCK_VECTORS = 1 << 18
PART_VECTORS = 1 << 12
"""A block is dealt to the ranks in parts of so many vectors, each computed by itself, whoever does it."""


def vectors_of(backbone: Backbone, passages: list[Passage], tokens_per_batch: int) -> Tensor:
    """The kept hidden states of some passages, in order: [n, d] bf16 on the CPU."""
    keep = [positions for passage in passages for positions in passage.keep]
    states = backbone.states_of_groups((passage.sequences for passage in passages), tokens_per_batch)
    parts = [rows[torch.as_tensor(keep[index], device=rows.device)].bfloat16().cpu() for index, rows in states]
    return torch.cat(parts) if parts else torch.empty(0, backbone.d_model, dtype=torch.bfloat16)


def n_vectors(passages: Iterable[Passage]) -> int:
    """How many vectors some passages give."""
    return sum(passage.n_vectors for passage in passages)


def blocks(passages: Iterable[Passage], size: int) -> Iterator[list[Passage]]:
    """Whole passages in lists that hold at least `size` vectors (the last one may hold fewer, but not none)."""
    block: list[Passage] = []
    held = 0
    for passage in passages:
        block.append(passage)
        held += passage.n_vectors
        if held >= size:
            yield block
            block, held = [], 0
    if held:
        yield block


class VectorFile:
    """Harvested vectors in a folder: shards of bf16 bits `vectors-00000.npy`, uint16 [n_i, d], named in `vectors.json`.

    Attributes:
        d: width.
        n: number of vectors.
        key: what they were harvested from.
    """

    def __init__(self, folder: Path) -> None:
        listing = json.loads((folder / "vectors.json").read_text(encoding="utf-8"))
        self.key: str = listing["key"]
        self.d: int = listing["d"]
        rows = [shard["rows"] for shard in listing["shards"]]
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._maps = [np.load(_shard_path(folder, number), mmap_mode="r") for number in range(len(rows))]
        self.n = int(self._starts[-1])

    def rows(self, indices: np.ndarray) -> Tensor:
        """The vectors at int64 positions [m], in that order: [m, d] bf16."""
        found = np.empty((len(indices), self.d), dtype=np.uint16)
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            found[here] = self._maps[shard][indices[here] - self._starts[shard]]
        return torch.from_numpy(found).view(torch.bfloat16)

    def in_order(self, batch: int = 4096) -> Iterator[Tensor]:
        """All vectors once, [<= batch, d] bf16."""
        for start in range(0, self.n, batch):
            yield self.rows(np.arange(start, min(start + batch, self.n)))


def harvest_vectors(
    backbone: Backbone,
    passages: Iterable[Passage],
    folder: Path,
    *,
    key: str,
    limit: int | None,
    progress: Progress,
    name: str = "sae vectors",
    tokens_per_batch: int = 2048,
    shard_vectors: int = SHARD_VECTORS,
    ranks: Ranks = ALONE,
) -> VectorFile:
    """Runs the backbone over passages and keeps the chosen hidden states on disk.

    A shard appears whole or not at all, and is computed from its own passages only: a harvest that was killed computes
    the shards that are missing and ends with the same bytes. Ranks compute the shards in turn, into one folder that all
    of them see. Vectors are stored in bf16, whatever the backbone computes in.

    Args:
        passages: the same ones in the same order on every call with the same `key`.
        folder: holds the shards; anything in it from another `key` is removed.
        limit: at most this many vectors.

    Raises:
        DiskFullError: finished shards stay.
    """
    if ranks.first:
        _prepare(folder, key, backbone.d_model)
    ranks.wait()
    listing = json.loads((folder / "vectors.json").read_text(encoding="utf-8"))
    with disk_full_is_said(folder), progress.task(name, limit, "vectors") as task:
        if not listing["complete"]:
            rows: list[int] = []
            for number, block in enumerate(_shards(passages, shard_vectors, limit)):
                rows.append(_cut(n_vectors(block), limit, sum(rows)))
                path = _shard_path(folder, number)
                if number % ranks.size == ranks.rank and not path.exists():
                    vectors = vectors_of(backbone, block, tokens_per_batch)[: rows[-1]]
                    _save_array(path, vectors.view(torch.uint16).numpy())
                task.advance(rows[-1])
            ranks.wait()
            if ranks.first:
                shards = [{"rows": n} for n in rows]
                write_json(folder / "vectors.json", {**listing, "complete": True, "shards": shards})
            ranks.wait()
        else:
            task.advance(sum(shard["rows"] for shard in listing["shards"]))
    return VectorFile(folder)


def _shards(passages: Iterable[Passage], size: int, limit: int | None) -> Iterator[list[Passage]]:
    """Blocks of at least `size` vectors, and no passage more than the limit needs."""
    running, before = iter(passages), 0
    while limit is None or before < limit:
        block = next(blocks(running, _cut(size, limit, before)), None)
        if block is None:
            return
        yield block
        before += n_vectors(block)


def _cut(rows: int, limit: int | None, before: int) -> int:
    return rows if limit is None else min(rows, limit - before)


class ShuffledVectors:
    """A VectorSource over harvested vectors: a fresh seeded permutation of all of them in each epoch.

    Of each batch a rank takes every size-th vector.
    """

    position = None

    def __init__(self, file: VectorFile, batch: int, seed: int, ranks: Ranks = ALONE) -> None:
        self.file, self.batch, self.seed, self.ranks = file, batch, seed, ranks
        self.d = file.d
        self.key = fingerprint("shuffled", file.key, file.n, batch, seed)

    def steps(self, epochs: int) -> int:
        """Optimiser steps in so many epochs: 0 only when there is no vector."""
        return -(-epochs * self.file.n // self.batch)

    def batches(self, first_step: int, position: Any = None) -> Iterator[Tensor]:
        """[batch, d] bf16 from `first_step` on; a batch may run over from one epoch into the next."""
        epoch, at = divmod(first_step * self.batch, self.file.n)
        order = self._order(epoch)
        while True:
            taken = order[at : at + self.batch]
            at += len(taken)
            while len(taken) < self.batch:
                epoch, order = epoch + 1, self._order(epoch + 1)
                at = min(self.batch - len(taken), len(order))
                taken = np.concatenate([taken, order[:at]])
            yield self.file.rows(taken[self.ranks.rank :: self.ranks.size])

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.file.n)


class StreamedVectors:
    """A VectorSource that stores nothing: vectors are computed block by block and shuffled inside each block.

    For texts too large to keep as vectors. Memory is one block, 2 d bytes a vector (300 MB at d = 576), divided by the
    number of ranks: each computes and holds its share of a block's passages, and of a batch it takes the vectors it
    holds. So the batches are the same for any number of ranks. Up to batch - 1 vectors at the end of a block are left
    out.

    Attributes:
        position: where the block of the last batch begins. Taken up again from there, nothing before it is read.

    Args:
        passages: opens the passages, at the start or at a position of theirs; they are gone through again and again.
        key: of backbone and passages.
    """

    def __init__(
        self,
        backbone: Backbone,
        passages: Callable[[Any], PassageStream],
        batch: int,
        seed: int,
        *,
        key: str,
        tokens_per_batch: int = 2048,
        block_vectors: int = BLOCK_VECTORS,
        part_vectors: int = PART_VECTORS,
        ranks: Ranks = ALONE,
    ) -> None:
        self.backbone, self.passages, self.batch, self.seed = backbone, passages, batch, seed
        self.tokens_per_batch, self.block_vectors, self.part_vectors = tokens_per_batch, block_vectors, part_vectors
        self.ranks = ranks
        self.position: Any = None
        self.d = backbone.d_model
        self.key = fingerprint("streamed", key, batch, seed, block_vectors, part_vectors)

    def batches(self, first_step: int, position: Any = None) -> Iterator[Tensor]:
        """This rank's share [n, d] bf16 of the batch of `first_step` and of every later one.

        Args:
            position: of an earlier reading, not after `first_step`; None starts at the first passage.

        Raises:
            ConfigError: the whole text is less than one batch.
        """
        at = position or {"epoch": 0, "block": 0, "step": 0, "passages": None}
        epoch, number, step = at["epoch"], at["block"], at["step"]
        running = self.passages(at["passages"])
        enough = number > 0
        while True:
            self.position = {"epoch": epoch, "block": number, "step": step, "passages": running.position}
            block = next(blocks(running, self.block_vectors), None)
            if block is None:
                if not enough:
                    raise ConfigError(f"The training text gives fewer than sae.batch = {self.batch} vectors; add text.")
                epoch, number, running = epoch + 1, 0, self.passages(None)
                continue
            steps = n_vectors(block) // self.batch
            if first_step < step + steps:
                vectors, place = self._share(block)
                order = np.random.default_rng([self.seed, epoch, number]).permutation(len(place))
                for start in range(max(first_step - step, 0) * self.batch, steps * self.batch, self.batch):
                    own = place[order[start : start + self.batch]]
                    yield vectors[torch.from_numpy(own[own >= 0])]
            step, number, enough = step + steps, number + 1, enough or steps > 0

    def _share(self, block: list[Passage]) -> tuple[Tensor, np.ndarray]:
        """The vectors of every size-th part, and for each vector of the block its row among them, or -1: int64."""
        parts = list(blocks(block, self.part_vectors))
        ends = list(accumulate(n_vectors(part) for part in parts))
        place = np.full(ends[-1], -1, dtype=np.int64)
        found, held = [torch.empty(0, self.d, dtype=torch.bfloat16)], 0
        for number in range(self.ranks.rank, len(parts), self.ranks.size):
            vectors = vectors_of(self.backbone, parts[number], self.tokens_per_batch)
            place[ends[number] - len(vectors) : ends[number]] = np.arange(held, held + len(vectors))
            held += len(vectors)
            found.append(vectors)
        return torch.cat(found), place


def _prepare(folder: Path, key: str, d: int) -> None:
    """Leaves the folder as it is if it belongs to the same key; else empties it and begins a listing."""
    try:
        listing = json.loads((folder / "vectors.json").read_text(encoding="utf-8"))
        if listing["key"] == key and listing["d"] == d:
            return
    except (OSError, ValueError, KeyError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "vectors.json", {"key": key, "d": d, "complete": False, "shards": []})


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"vectors-{number:05d}.npy"


def _save_array(path: Path, array: np.ndarray) -> None:
    aside = path.with_suffix(".part")
    with aside.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    aside.replace(path)
