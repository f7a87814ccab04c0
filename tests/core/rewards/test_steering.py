"""Steered rewards against a plain recomputation, and the files steerings are kept in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError
from core.rewards.decomposition import reward_scale
from core.rewards.feature_columns import FeatureColumns
from core.rewards.steering import Change, SteeredRewards, Steering, read_steering, steering_note, steering_to_json
from core.store.reader import RunReader
from tests.synthetic_run import write_synthetic_run

N, M = 60, 25


def matrix(seed: int = 0) -> sp.csr_matrix:
    """[N, M] float32; column 0 is in every answer, column 1 in none, negative activations happen."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(1.0, 1.5, (N, M)) * (rng.random((N, M)) < 0.3)
    dense[:, 0], dense[:, 1] = 1.0 + rng.random(N), 0.0
    return sp.csr_matrix(dense.astype(np.float32))


def head(seed: int = 1) -> np.ndarray:
    weights = np.random.default_rng(seed).normal(0, 0.5, M)
    weights[7] = 0.0
    return weights


MOVES = st.lists(
    st.dictionaries(
        st.integers(0, M - 1), st.one_of(st.sampled_from([0.0, 1.0, -2.0, 3.0]), st.floats(-100, 100)), max_size=6
    ),
    min_size=1,
    max_size=12,
)


@given(MOVES, st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_any_moves_end_where_a_recomputation_from_scratch_does(moves: list[dict[int, float]], seed: int) -> None:
    pooled, weights = matrix(seed), head(seed + 1)
    exact = pooled.toarray().astype(np.float64)
    steered = SteeredRewards(pooled, weights, exact @ weights)
    for multipliers in moves:
        changed = weights.copy()
        for feature, by in multipliers.items():
            changed[feature] *= by
        expected = exact @ changed
        np.testing.assert_allclose(steered.rewards(multipliers), expected, rtol=0, atol=1e-9 * reward_scale(expected))


def test_a_long_drag_of_one_slider_leaves_nothing_behind() -> None:
    pooled, weights = matrix(), head()
    steered = SteeredRewards(pooled, weights, pooled.astype(np.float64) @ weights)
    rng = np.random.default_rng(0)
    others = {3: 2.5, 4: -1.0, 9: 0.0}
    for by in rng.uniform(-1e3, 1e3, 3000):
        steered.rewards({**others, 5: by})
    np.testing.assert_array_equal(steered.rewards({**others, 5: 2.0}), steered.another().rewards({**others, 5: 2.0}))
    np.testing.assert_array_equal(steered.rewards({}), steered.base)
    np.testing.assert_array_equal(steered.rewards({3: 1.0, 5: 1.0}), steered.base)


def test_what_is_handed_out_can_be_written_to() -> None:
    steered = SteeredRewards(matrix(), head(), np.zeros(N))
    first = steered.rewards({0: 2.0})
    kept = first.copy()
    first[:] = 99.0
    np.testing.assert_array_equal(steered.rewards({0: 2.0}), kept)
    base = steered.rewards({})
    base[:] = 7.0
    np.testing.assert_array_equal(steered.rewards({}), np.zeros(N))


def test_columns_are_the_same_however_the_matrix_is_kept(tmp_path: Path) -> None:
    with RunReader.open(write_synthetic_run(tmp_path / "run", features=80, pairs=30)) as reader:
        whole = reader.arrays.pooled("mean")
        weights = np.random.default_rng(0).normal(0, 1, 80)
        moves = {int(feature): 2.0 for feature in np.unique(whole.indices)[:20]}
        kinds = (whole, whole.tocsc(), FeatureColumns.of_arrays(reader.arrays, "mean"))
        found = [SteeredRewards(one, weights, np.zeros(whole.shape[0])).rewards(moves) for one in kinds]
        dense = whole.toarray().astype(np.float64)
        expected = dense @ np.where(np.isin(np.arange(80), list(moves)), weights, 0.0)
        for rewards in found:
            np.testing.assert_allclose(rewards, expected, atol=1e-12)
        rows = np.array([3, 0, 41])
        columns = FeatureColumns.of_arrays(reader.arrays, "mean")
        np.testing.assert_array_equal(columns.dense([5, 2], rows), dense[np.ix_(rows, [5, 2])])
        np.testing.assert_allclose(columns.sums(rows), np.maximum(dense[rows], 0).sum(axis=0), rtol=1e-12)


def test_a_run_is_steered_from_its_stored_rewards(tmp_path: Path) -> None:
    with RunReader.open(write_synthetic_run(tmp_path / "run", features=80, pairs=30)) as reader:
        steered = SteeredRewards.of(reader)
        weights = reader.table("feature").sort("feature_id")["weight"].to_numpy()
        np.testing.assert_array_equal(steered.rewards({}), reader.rewards())
        feature = int(np.argmax(np.abs(weights)))
        z = reader.arrays.pooled("mean").toarray()[:, feature].astype(np.float64)
        off = steered.rewards({feature: 0.0})
        np.testing.assert_allclose(off, reader.rewards() - weights[feature] * z, atol=1e-12)
        assert steering_note(reader) == ""
        reader.manifest.config["reward_model"] = {"kind": "classifier"}
        assert "does not read the features" in steering_note(reader)


def test_scale_set_and_add() -> None:
    weights = head()
    one = Steering({3: Change("scale", 2.0), 4: Change("set", 0.25), 5: Change("add", 3.0)})
    expected = weights.copy()
    expected[3], expected[4] = 2 * weights[3], 0.25
    np.testing.assert_array_equal(one.weights(weights), expected)
    assert one.multipliers(weights) == {3: 2.0, 4: 0.25 / weights[4]}
    assert one.offset(weights) == 3.0 * weights[5]
    assert Steering({7: Change("set", 0.0)}).multipliers(weights) == {7: 1.0}
    with pytest.raises(DataError, match=r"Feature 7 has the head weight 0.*no slider"):
        Steering({7: Change("set", 0.5)}).multipliers(weights)
    pooled = matrix()
    exact = pooled.toarray().astype(np.float64)
    steered = SteeredRewards(pooled, weights, exact @ weights).steered(one)
    np.testing.assert_allclose(steered, exact @ expected + 3.0 * weights[5], atol=1e-12)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_adding_to_an_activation_moves_every_answer_alike(pooling: str) -> None:
    """SARM's "+": v is added to z_i of every token, active or not; then the answer is pooled and the head is applied."""
    rng = np.random.default_rng(4)
    weights, feature, value = rng.normal(0, 1, M), 6, -2.5
    shifts = []
    for length in (1, 2, 5, 17):
        tokens = rng.normal(0, 1, (length, M)) * (rng.random((length, M)) < 0.2)
        added = tokens.copy()
        added[:, feature] += value
        before, after = (one[-1] if pooling == "last" else one.mean(axis=0) for one in (tokens, added))
        shifts.append(float((after - before) @ weights))
    one = Steering({feature: Change("add", value)})
    np.testing.assert_allclose(shifts, one.offset(weights), atol=1e-12)
    assert "cannot change any ranking" in one.note
    assert one.deltas(weights) == {}
    assert Steering.of_multipliers({1: 2.0}).note == ""


def test_sarm_files_load(tmp_path: Path) -> None:
    path = tmp_path / "steering.json"
    path.write_text('{"54431": ["*", 2], "12": ["+", -1.5]}', encoding="utf-8")
    one = read_steering(path, sae="abc", latents=65_536)
    assert dict(one.changes) == {12: Change("add", -1.5), 54431: Change("scale", 2.0)}
    assert (one.name, one.sae, one.how["layout"]) == ("steering", "abc", "SARM")
    assert "feature 12" in one.note
    with pytest.raises(DataError, match=r"changes feature 54431, the run has only 9,216"):
        read_steering(path, sae="abc", latents=9216)


def test_a_file_says_the_same_when_read_back(tmp_path: Path) -> None:
    one = Steering({3: Change("scale", 1 / 3), 8: Change("set", -0.1)}, "mild «x»", "a" * 64, {"method": "hand"})
    path = tmp_path / "own.json"
    path.write_text(steering_to_json(one), encoding="utf-8")
    again = read_steering(path, sae="a" * 64, latents=20)
    assert (again.changes, again.name, again.sae, again.how["from"]) == (one.changes, one.name, one.sae, one.how)
    with pytest.raises(DataError, match=r"made for the SAE aaaaaaaaaaaa, this run has bbbbbbbbbbbb"):
        read_steering(path, sae="b" * 64, latents=20)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "is not a steering"),
        ("{}", "changes no feature"),
        ('{"-1": ["*", 2]}', "not a feature id"),
        ('{"1": ["/", 2]}', "needs"),
        ('{"1": ["*"]}', "needs"),
        ('{"1": 2}', "needs"),
        ('{"1": [["*"], 2]}', "needs"),
        ('{"1": ["*", "2"]}', "finite number"),
        ('{"1": ["*", true]}', "finite number"),
        ('{"1": ["*", NaN]}', "finite number"),
        ('{"1": ["*", 1e999]}', "finite number"),
        ('{"1": ["*", 2], "1": ["*", 3]}', "twice"),
        ('{"1": ["*", 2], "01": ["*", 3]}', "twice"),
        ('{"format": "rewardscope-steering-1"}', "is not a steering"),
        ("{", "is not a steering"),
    ],
)
def test_what_is_no_steering_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_steering(path, sae="", latents=10)
    with pytest.raises(DataError, match="cannot be read"):
        read_steering(tmp_path / "nothing.json", sae="", latents=10)


def test_changes_are_checked() -> None:
    with pytest.raises(DataError, match="not a feature"):
        Steering({-1: Change("scale", 2.0)})
    with pytest.raises(DataError, match="use scale, set or add"):
        Change("times", 2.0)  # type: ignore[arg-type]
    assert json.loads(steering_to_json(Steering({np.int64(4): Change("scale", np.float32(2.0))})))["changes"] == {  # type: ignore[dict-item]
        "4": ["*", 2.0]
    }
