"""Harvested and streamed training vectors: the right states, in an order that can be taken up anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.errors import ConfigError
from core.models.backbone import Backbone, load_backbone
from core.progress import Silent
from core.sae.passages import Passage, conversation_passages
from core.sae.ranks import ALONE, Ranks
from core.sae.streams import KnownPassages
from core.sae.vectors import (
    ShuffledVectors,
    StreamedVectors,
    VectorFile,
    blocks,
    harvest_vectors,
    vectors_of,
)
from tests.core.models.architectures import save_model


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(save_model("llama", tmp_path_factory.mktemp("llama")), 2, dtype="float32", device="cpu")


def some_passages(n: int = 30, seed: int = 0) -> list[Passage]:
    """Conversations in pairs that share a prompt, so that passages hold one or more sequences."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        prompt = rng.integers(4, 97, rng.integers(5, 15)).tolist()
        found += [prompt + rng.integers(4, 97, rng.integers(2, 12)).tolist() for _ in range(2)]
    return list(conversation_passages(found, "token"))


def harvest(backbone: Backbone, folder: Path, passages: list[Passage] | None = None, **options: object) -> VectorFile:
    settings = {"key": "k", "limit": None, "shard_vectors": 100, **options}
    return harvest_vectors(
        backbone, passages if passages is not None else some_passages(), folder, progress=Silent(), **settings
    )


def all_rows(file: VectorFile) -> Tensor:
    return torch.cat(list(file.in_order(64)))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_vectors_are_the_kept_states_of_each_sequence_alone(backbone: Backbone) -> None:
    passages = some_passages()
    alone = [
        backbone.states([sequence])[0][list(keep)]
        for passage in passages
        for sequence, keep in zip(passage.sequences, passage.keep, strict=True)
    ]
    vectors = vectors_of(backbone, passages, tokens_per_batch=64)
    assert vectors.dtype == torch.bfloat16
    # float32 states agree to 1e-4; rounding to bf16 may then fall to either side.
    torch.testing.assert_close(vectors.float(), torch.cat(alone), rtol=2**-8, atol=1e-3)


def test_blocks_hold_whole_passages() -> None:
    passages = some_passages()
    found = list(blocks(passages, 100))
    assert [passage for block in found for passage in block] == passages
    sizes = [sum(passage.n_vectors for passage in block) for block in found]
    assert min(sizes[:-1]) >= 100
    assert sizes[-1] > 0
    assert list(blocks([Passage([[1]], [[]])], 5)) == []


def test_harvest_stores_all_vectors_in_order(backbone: Backbone, tmp_path: Path) -> None:
    file = harvest(backbone, tmp_path / "v")
    expected = torch.cat([vectors_of(backbone, block, 2048) for block in blocks(some_passages(), 100)])
    assert torch.equal(all_rows(file), expected)
    assert file.n == len(expected)
    picked = np.array([file.n - 1, 0, 101, 5, 101])
    assert torch.equal(file.rows(picked), expected[picked])
    limited = harvest(backbone, tmp_path / "w", limit=250)
    assert limited.n == 250
    assert torch.equal(all_rows(limited), expected[:250])


def test_a_limit_spares_the_backbone(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Backbone.states_of_groups

    def counting(
        self: Backbone, groups: Iterable[Sequence[Sequence[int]]], budget: int
    ) -> Iterator[tuple[int, Tensor]]:
        kept = list(groups)
        seen.append(len(kept))
        return real(self, kept, budget)

    monkeypatch.setattr(Backbone, "states_of_groups", counting)
    passages = some_passages()
    harvest(backbone, tmp_path, passages, limit=130)
    needed = next(n for n in range(len(passages)) if sum(p.n_vectors for p in passages[:n]) >= 130)
    assert sum(seen) == needed < len(passages)


class Killed(Exception):
    """Stands for the end of the process."""


def dying(passages: list[Passage], at: int) -> Iterator[Passage]:
    yield from passages[:at]
    raise Killed


@pytest.mark.parametrize("at", [0, 6, 10, 15])
def test_a_killed_harvest_goes_on_to_the_same_bytes(backbone: Backbone, tmp_path: Path, at: int) -> None:
    passages = some_passages()
    harvest(backbone, tmp_path / "whole", passages, limit=400)
    with pytest.raises(Killed):
        harvest_vectors(
            backbone,
            dying(passages, at),
            tmp_path / "cut",
            key="k",
            limit=400,
            progress=Silent(),
            shard_vectors=100,
        )
    (tmp_path / "cut" / "vectors-00003.part").write_bytes(b"half a shard")
    harvest(backbone, tmp_path / "cut", passages, limit=400)
    cut = files_of(tmp_path / "cut")
    cut.pop("vectors-00003.part", None)
    assert cut == files_of(tmp_path / "whole")


def test_finished_shards_are_not_computed_again(backbone: Backbone, tmp_path: Path) -> None:
    first = all_rows(harvest(backbone, tmp_path))
    again = harvest_vectors(backbone, dying([], 0), tmp_path, key="k", limit=None, progress=Silent(), shard_vectors=100)
    assert torch.equal(all_rows(again), first)


def test_another_key_or_a_damaged_list_starts_anew(backbone: Backbone, tmp_path: Path) -> None:
    harvest(backbone, tmp_path)
    other = harvest(backbone, tmp_path, some_passages(8, seed=1), key="other")
    assert other.n == sum(passage.n_vectors for passage in some_passages(8, seed=1))
    (tmp_path / "vectors.json").write_text("{")
    assert harvest(backbone, tmp_path).n == sum(passage.n_vectors for passage in some_passages())


def test_no_passage_gives_an_empty_file(backbone: Backbone, tmp_path: Path) -> None:
    file = harvest(backbone, tmp_path, [])
    assert file.n == 0
    assert list(file.in_order()) == []
    assert ShuffledVectors(file, 64, seed=0).steps(3) == 0


def rows_of(batches: Iterator[Tensor], steps: int) -> Tensor:
    return torch.stack(list(islice(batches, steps)))


def test_shuffling_uses_every_vector_once_an_epoch(backbone: Backbone, tmp_path: Path) -> None:
    file = harvest(backbone, tmp_path)
    source = ShuffledVectors(file, 64, seed=0)
    steps = source.steps(3)
    assert steps * 64 >= 3 * file.n > (steps - 1) * 64
    seen = rows_of(source.batches(0), steps).flatten(0, 1)[: 3 * file.n].view(3, file.n, -1)
    everything = all_rows(file).float().sum(1).sort().values
    for epoch in seen:
        assert torch.equal(epoch.float().sum(1).sort().values, everything)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], all_rows(file))


@pytest.mark.parametrize("batch", [7, 64, 5000])
def test_shuffled_vectors_can_be_taken_up_at_any_step(backbone: Backbone, tmp_path: Path, batch: int) -> None:
    file = harvest(backbone, tmp_path)
    whole = rows_of(ShuffledVectors(file, batch, seed=3).batches(0), 40)
    for first in (1, 11, 39):
        assert torch.equal(rows_of(ShuffledVectors(file, batch, seed=3).batches(first), 40 - first), whole[first:])
    assert not torch.equal(rows_of(ShuffledVectors(file, batch, seed=4).batches(0), 40), whole)


def streamed(backbone: Backbone, batch: int = 32, seed: int = 0, ranks: Ranks = ALONE) -> StreamedVectors:
    def known(position: Any) -> KnownPassages:
        return KnownPassages(some_passages(), position)

    options = {"block_vectors": 200, "part_vectors": 40, "ranks": ranks}
    return StreamedVectors(backbone, known, batch, seed, key="k", **options)


def test_streamed_vectors_can_be_taken_up_at_any_step(backbone: Backbone) -> None:
    steps = 50  # more than two epochs
    whole = rows_of(streamed(backbone).batches(0), steps)
    for first in (1, 6, 25, 49):
        assert torch.equal(rows_of(streamed(backbone).batches(first), steps - first), whole[first:])
    assert not torch.equal(rows_of(streamed(backbone, seed=1).batches(0), steps), whole)


def test_streamed_vectors_go_on_from_their_position(backbone: Backbone) -> None:
    whole = rows_of(streamed(backbone).batches(0), 50)
    for step in (1, 7, 26, 49):
        source = streamed(backbone)
        rows_of(source.batches(0), step)
        position = json.loads(json.dumps(source.position))
        assert position["step"] < step
        assert torch.equal(rows_of(streamed(backbone).batches(step, position), 50 - step), whole[step:])


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_same_batches(backbone: Backbone, tmp_path: Path, size: int) -> None:
    """Together they hold each batch of a single process, bit for bit, and none holds a vector of another."""
    file = harvest(backbone, tmp_path)
    for make in (lambda r: streamed(backbone, ranks=r), lambda r: ShuffledVectors(file, 32, 0, r)):
        whole = list(islice(make(ALONE).batches(0), 30))
        shares = [list(islice(make(Ranks(rank, size)).batches(0), 30)) for rank in range(size)]
        for batch, *own in zip(whole, *shares, strict=True):
            together = torch.cat(own)
            assert together.shape == batch.shape
            assert torch.equal(sorted_rows(together), sorted_rows(batch))


def sorted_rows(rows: Tensor) -> Tensor:
    return rows[np.lexsort(rows.float().numpy().T)]


def test_streaming_shuffles_inside_blocks_only(backbone: Backbone) -> None:
    first = next(blocks(some_passages(), 200))
    vectors = vectors_of(backbone, first, 2048)
    steps = len(vectors) // 32
    taken = rows_of(streamed(backbone).batches(0), steps).flatten(0, 1).float().sum(1)
    assert set(taken.tolist()) <= set(vectors.float().sum(1).tolist())
    assert taken.tolist() != vectors[: len(taken)].float().sum(1).tolist()


def test_too_little_text_for_one_batch_is_said(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="fewer than sae.batch = 10000"):
        next(streamed(backbone, batch=10_000).batches(0))
