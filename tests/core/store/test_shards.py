"""Shards come back as they went; pooling equals a plain dense computation; the decomposition check can fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.errors import RunError
from core.features.entries import peak_tokens
from core.rewards.decomposition import check_sums, model_rewards
from core.store.arrays import load_arrays, save_arrays
from core.store.pooling import arrays_from_shards, pool_answer
from core.store.shards import AnswerActivations, finished_shards, read_shard, shard_path, write_shard

M, K, D = 50, 4, 6


def answer(seed: int, response_id: int = 0) -> AnswerActivations:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    features = np.stack([rng.choice(M, K, replace=False) for _ in range(n)]).astype(np.uint16)
    values = -np.sort(-rng.normal(1.0, 1.0, (n, K)).astype(np.float32), axis=1)  # some are negative: TopK has no ReLU
    char = np.stack([np.arange(n), np.arange(1, n + 1)], axis=1).astype(np.int32)
    return AnswerActivations(
        response_id, rng.integers(0, 99, n).astype(np.int32), char, rng.random(n) < 0.3, features, values,
        bool(rng.random() < 0.5), rng.normal(size=(4, D)).astype(np.float32),
    )  # fmt: skip


def dense(one: AnswerActivations) -> np.ndarray:
    z = np.zeros((len(one.token_ids), M))
    np.put_along_axis(z, one.features.astype(int), one.values.astype(float), axis=1)
    return z


@pytest.mark.parametrize("seed", range(20))
def test_pooling_equals_the_dense_definition(seed: int) -> None:
    one = answer(seed)
    features, pooled = pool_answer(one)
    z = dense(one)
    expected = np.stack([z[-1], z.mean(axis=0), z.max(axis=0), np.maximum(z[one.boundary], 0).sum(axis=0)])
    got = np.zeros((4, M))
    got[:, features] = pooled
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def padded(seed: int, response_id: int = 0, most: int = 3) -> AnswerActivations:
    """As an SAE whose number of active features varies gives it: unused places hold 0 at features that are inactive."""
    one = answer(seed, response_id)
    values = np.abs(one.values)
    rng = np.random.default_rng(seed)
    for row in values:
        row[rng.integers(0, most + 1) :] = 0
        row[::-1].sort()
    return replace(one, values=values)


@pytest.mark.parametrize("seed", range(20))
def test_unused_places_are_no_features(seed: int) -> None:
    one = padded(seed)
    features, pooled = pool_answer(one)
    z = dense(one)
    np.testing.assert_array_equal(features, np.flatnonzero(z.any(axis=0)))
    expected = np.stack([z[-1], z.mean(axis=0), z.max(axis=0), z[one.boundary].sum(axis=0)])
    np.testing.assert_allclose(pooled, expected[:, features], rtol=1e-6, atol=1e-7)


def test_places_that_no_token_uses_are_not_laid_out(tmp_path: Path) -> None:
    """Also with an answer in which nothing at all is active; where features peak is still found."""
    answers = [padded(seed, response_id=seed, most=2 if seed != 3 else 0) for seed in range(8)]
    write_shard(tmp_path, 0, answers)
    arrays = arrays_from_shards([shard_path(tmp_path, 0)], 8, M)
    assert arrays.token_values.shape[1] == arrays.token_features.shape[1] == 2
    assert arrays.pooled("mean")[[3]].nnz == 0
    peaks = peak_tokens(arrays)
    for number, one in enumerate(answers):
        z = dense(one)
        where = slice(int(arrays.pooled_ptr[number]), int(arrays.pooled_ptr[number + 1]))
        np.testing.assert_array_equal(peaks[where], z[:, arrays.pooled_features[where]].argmax(axis=0))
        np.testing.assert_allclose(arrays.pooled("mean")[[number]].toarray()[0], z.mean(axis=0), atol=1e-6)


def test_a_shard_comes_back_as_it_went(tmp_path: Path) -> None:
    written = [answer(seed, response_id=seed) for seed in range(5)]
    write_shard(tmp_path, 3, written)
    assert finished_shards(tmp_path) == {3}
    assert not list(tmp_path.glob("*.tmp"))
    for before, after in zip(written, read_shard(shard_path(tmp_path, 3)), strict=True):
        assert before.response_id == after.response_id
        assert before.truncated == after.truncated
        for name in ("token_ids", "char", "boundary", "features", "values", "states"):
            a, b = getattr(before, name), getattr(after, name)
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_arrays_are_in_response_order_whatever_the_shards_hold(tmp_path: Path) -> None:
    answers = [answer(seed, response_id=seed) for seed in range(7)]
    write_shard(tmp_path, 0, [answers[4], answers[1], answers[6]])
    write_shard(tmp_path, 1, [answers[0], answers[2], answers[3], answers[5]])
    arrays = arrays_from_shards([shard_path(tmp_path, 0), shard_path(tmp_path, 1)], 7, M)
    save_arrays(tmp_path / "arrays", arrays)
    loaded = load_arrays(tmp_path / "arrays")
    for number, one in enumerate(answers):
        rows = loaded.tokens_of(number)
        np.testing.assert_array_equal(loaded.token_values[rows], one.values)
        np.testing.assert_allclose(loaded.pooled("mean")[[number]].toarray()[0], dense(one).mean(axis=0), atol=1e-6)
    assert loaded.states is not None
    assert loaded.states.shape == (7, 4, D)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_rewards_from_tokens_equal_sums_of_contributions(tmp_path: Path, pooling: str) -> None:
    answers = [answer(seed, response_id=seed) for seed in range(30)]
    write_shard(tmp_path, 0, answers)
    arrays = arrays_from_shards([shard_path(tmp_path, 0)], 30, M)
    weights = np.random.default_rng(0).normal(size=M)
    rewards = model_rewards(arrays, weights, pooling, block=7)
    exact = np.array([(dense(one)[-1] if pooling == "last" else dense(one).mean(axis=0)) @ weights for one in answers])
    np.testing.assert_allclose(rewards, exact, atol=1e-5)
    assert check_sums(rewards, arrays.pooled(pooling) @ weights).relative_error < 1e-5  # type: ignore[arg-type]


def test_a_wrong_sum_stops_the_build() -> None:
    rewards = np.array([0.0, 1.0, 2.0])
    with pytest.raises(RunError, match=r"answer 1 is off by 0.01"):
        check_sums(rewards, rewards + np.array([0, 0.01, 0]))
    with pytest.raises(RunError, match="do not sum"):
        check_sums(rewards, np.array([0.0, np.nan, 2.0]))


def test_missing_doubled_and_damaged_shards_are_said(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [answer(0, 0), answer(1, 1)])
    path = shard_path(tmp_path, 0)
    with pytest.raises(RunError, match="1 of 3 answers are in no shard"):
        arrays_from_shards([path], 3, M)
    with pytest.raises(RunError, match="does not belong there"):
        arrays_from_shards([path, path], 2, M)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="cannot be read"):
        read_shard(path)
