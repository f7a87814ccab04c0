"""Differences by pair and by prompt against plain loops over a dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.salience.bootstrap import prompt_differences
from core.salience.differences import PairColumns, PairLayout, PromptColumns, SlicePrompts
from core.salience.slices import Slice
from tests.core.salience.synthetic import arrays_of, frames_of


def dense_prompts(dense, prompts, sides, member):  # type: ignore[no-untyped-def]
    """u, comparison [n_prompts of the slice, M], h+ and h- [M], active pairs [M], straight from the definitions."""
    names = sorted({p for p, inside in zip(prompts, member, strict=True) if inside})
    m = dense.shape[1]
    u, comparison, count = np.zeros((len(names), m)), np.zeros((len(names), m)), np.zeros(len(names))
    plus, minus, active = np.zeros(m), np.zeros(m), np.zeros(m, int)
    start = 0
    for prompt, (c, r), inside in zip(prompts, sides, member, strict=True):
        chosen, rejected = dense[start : start + c], dense[start + c : start + c + r]
        start += c + r
        if inside:
            g = names.index(prompt)
            count[g] += 1
            u[g] += chosen.mean(axis=0) - rejected.mean(axis=0)
            comparison[g] += np.sign(chosen[:, None] - rejected[None]).mean(axis=(0, 1))
            plus += np.maximum(chosen, 0).sum(axis=0)
            minus += np.maximum(rejected, 0).sum(axis=0)
            active += (np.concatenate([chosen, rejected]) != 0).any(axis=0)
    return u / count[:, None], comparison / count[:, None], plus, minus, active


def scattered(columns: PromptColumns, values: np.ndarray, n: int, m: int) -> np.ndarray:
    table = np.zeros((n, m))
    for i, f in enumerate(columns.features):
        at = slice(columns.pointer[i], columns.pointer[i + 1])
        table[columns.prompt[at], f] = values[at]
    return table


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_they_are_what_the_definitions_say(seed: int, workers: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 14)), 9
    prompts = [f"prompt {g}" for g in rng.integers(0, max(1, n // 2), n)]
    sides = [(int(rng.integers(1, 3)), int(rng.integers(1, 4))) for _ in range(n)]
    dense = rng.normal(1, 2, (sum(map(sum, sides)), m)).round(1) * (rng.random((sum(map(sum, sides)), m)) < 0.4)
    dense = dense.astype(np.float32).astype(float)
    member = rng.random(n) < 0.7
    member[0] = True
    pairs, responses = frames_of(prompts, sides)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.salience.kernels.threads", lambda: workers)
        patch.setattr("core.salience.differences.threads", lambda: workers)
        layout = PairLayout.of(pairs, responses)
        columns = PairColumns.of(arrays_of(dense), layout, "mean")
        part = SlicePrompts.of(Slice("x", member), layout)
        found = PromptColumns.of(columns, part, 0)

    u, comparison, plus, minus, active = dense_prompts(dense, prompts, sides, member)
    assert (part.n_pairs, part.n_prompts) == (member.sum(), len(u))
    np.testing.assert_allclose(scattered(found, found.difference, *u.shape), u, atol=1e-6)
    np.testing.assert_allclose(scattered(found, found.comparison, *u.shape), comparison, atol=1e-6)
    np.testing.assert_allclose(found.chosen, plus, atol=1e-5)
    np.testing.assert_allclose(found.rejected, minus, atol=1e-5)
    np.testing.assert_array_equal(found.n_active.sum(axis=1), active)
    assert all(np.all(np.diff(found.prompt[a:b]) > 0) for a, b in zip(found.pointer, found.pointer[1:], strict=False))


def test_the_bootstrap_reads_the_same_prompt_values() -> None:
    rng = np.random.default_rng(1)
    prompts = [f"p{g}" for g in (0, 1, 0, 2, 1, 3)]
    sides = [(1, 1), (1, 2), (2, 1), (1, 1), (1, 1), (1, 1)]
    dense = (rng.normal(1, 2, (14, 6)) * (rng.random((14, 6)) < 0.5)).astype(np.float32).astype(float)
    pairs, responses = frames_of(prompts, sides, domain=["a", "a", "b", "a", "a", "a"])
    u, *_ = dense_prompts(dense, prompts, sides, np.array([True, True, False, True, True, True]))
    found = prompt_differences(arrays_of(dense), pairs, responses, [4, 0, 4], "domain=a", "max")
    np.testing.assert_allclose(found, u[:, [4, 0, 4]], atol=1e-6)


def test_rarely_active_features_can_be_left_out() -> None:
    dense = np.array([[1.0, 0], [0, 0], [2, 3], [0, 0], [0, 0], [4, 0]])
    pairs, responses = frames_of(["a", "b", "c"])
    layout = PairLayout.of(pairs, responses)
    part = SlicePrompts.of(Slice("all", np.ones(3, bool)), layout)
    found = PromptColumns.of(PairColumns.of(arrays_of(dense), layout, "mean"), part, 2)
    assert found.features.tolist() == [0]
    assert found.difference.tolist() == [1.0, 2.0, -4.0]
    assert found.chosen.tolist() == [3.0, 3.0]  # sums are of every feature, kept or not


def test_length_covariates_and_halves() -> None:
    pairs, responses = frames_of(
        ["a", "a", "b"],
        [(1, 1), (2, 1), (1, 1)],
        n_tokens=[20, 10, 10, 30, 40, 7, 7],
        n_boundary=[3, 1, 2, 4, 1, 5, 5],
    )
    layout = PairLayout.of(pairs, responses)
    part = SlicePrompts.of(Slice("all", np.ones(3, bool)), layout)
    np.testing.assert_allclose(part.length("mean"), [(np.log(2) + np.log(0.5)) / 2, 0.0])
    np.testing.assert_allclose(part.length("boundary_sum"), [(2 + 2) / 2, 0.0])
    names = [f"prompt {i}" for i in range(400)]
    halves = PairLayout.of(*frames_of(names)).second_half
    assert 160 < halves.sum() < 240
    again = PairLayout.of(*frames_of(names[::-1])).second_half
    np.testing.assert_array_equal(halves, again)  # it belongs to the prompt, not to its place
