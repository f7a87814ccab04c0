"""The whole table: what is planted is found, noise is not, and missing stays missing."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from core.config import SalienceConfig
from core.progress import Silent
from core.rewards.accuracy import cluster_bootstrap
from core.salience.bootstrap import bootstrap_intervals, prompt_differences
from core.salience.table import salience_tables
from core.store.salience_queries import SALIENCE_SCHEMA
from tests.core.salience.synthetic import arrays_of, frames_of, real_shaped

LATENTS = 60
UP, DOWN, BOTH_WAYS, BY_LENGTH, SILENT, RARE = range(6)


@pytest.fixture(scope="module")
def store():  # type: ignore[no-untyped-def]
    """150 prompts: a feature for the chosen side, one against it, one that turns over, one that follows length."""
    rng = np.random.default_rng(0)
    dense, prompts = real_shaped(rng, 150, LATENTS)
    n = len(prompts)
    groups = ["harmful" if int(p.split()[1]) % 2 else "ordinary" for p in prompts]
    harmful = np.array([g == "harmful" for g in groups])
    dense[:, :6] = rng.gamma(2.0, 1.0, (2 * n, 6))
    dense[0::2, UP] += 1.5
    dense[1::2, DOWN] += 1.5
    dense[0::2, BOTH_WAYS] += 2.0 * harmful
    dense[1::2, BOTH_WAYS] += 2.0 * ~harmful
    tokens = rng.integers(20, 60, 2 * n)
    tokens[0::2] += 30
    dense[:, BY_LENGTH] = tokens / 10 + rng.normal(0, 0.3, 2 * n)
    dense[:, SILENT] = 0.0
    dense[:, RARE] = 0.0
    dense[::60, RARE] = 1.0
    pairs, responses = frames_of(
        prompts, n_tokens=tokens.tolist(), n_boundary=(tokens // 10).tolist(), labels=[{"request": g} for g in groups]
    )
    return arrays_of(dense), pairs, responses


@pytest.fixture(scope="module")
def table(store) -> pl.DataFrame:  # type: ignore[no-untyped-def]
    return salience_tables(*store, SalienceConfig(draws=200, poolings=("mean", "boundary_sum")), Silent())["salience"]


def row(table: pl.DataFrame, feature: int, slice: str = "all", pooling: str = "mean") -> dict:
    return table.filter(feature_id=feature, slice=slice, pooling=pooling).row(0, named=True)


def test_it_has_the_columns_and_order_of_the_schema(table: pl.DataFrame) -> None:
    assert dict(table.schema) == {
        name: kind() if isinstance(kind, type) else kind for name, kind in SALIENCE_SCHEMA.items()
    }
    assert table.equals(table.sort("slice", "pooling", "feature_id"))
    assert table["slice"].unique().sort().to_list() == [
        "all", "domain=chat", "request=harmful", "request=ordinary", "split=train",
    ]  # fmt: skip


def test_planted_effects_are_found_with_their_sign(table: pl.DataFrame) -> None:
    for feature, sign in ((UP, 1), (DOWN, -1)):
        found = row(table, feature)
        assert np.sign([found["effect"], found["effect_size"], found["s"], found["auc"] - 0.5]).tolist() == [sign] * 4
        assert found["q"] < 1e-6
        assert found["p_family"] == pytest.approx(1 / 201, rel=1e-4)
        assert found["q_adjusted"] < 0.05
        assert found["replication"] == "replicated"
        assert found["ci_low"] < found["effect"] < found["ci_high"]
        assert found["effect"] == pytest.approx(1.5 * sign, abs=0.4)


def test_a_feature_that_turns_over_cancels_in_the_whole_and_shows_by_slice(table: pl.DataFrame) -> None:
    whole, up, down = (row(table, BOTH_WAYS, s) for s in ("all", "request=harmful", "request=ordinary"))
    assert abs(whole["effect_size"]) < 0.4
    assert up["q"] < 1e-4
    assert down["q"] < 1e-4
    assert up["effect"] > 1 > -1 > down["effect"]


def test_a_feature_of_length_is_told_from_one_of_content(table: pl.DataFrame) -> None:
    for pooling in ("mean", "boundary_sum"):
        found = row(table, BY_LENGTH, pooling=pooling)
        assert found["q"] < 1e-6
        assert abs(found["effect_length_adjusted"]) < 0.5 * abs(found["effect"])


def test_what_is_rarely_active_is_not_tested(table: pl.DataFrame) -> None:
    rare = row(table, RARE)
    assert 5 <= rare["n_active"] < 30
    assert [rare[name] for name in ("p", "q", "p_family", "p_adjusted", "q_adjusted", "replication")] == [None] * 6
    assert rare["effect"] is not None
    tested = table.filter(pl.col("p").is_not_null())
    assert tested["n_active"].min() >= 30
    assert tested.select(pl.col("q", "p_family").null_count()).row(0) == (0, 0)


def test_features_that_are_never_active_have_no_row_and_those_of_a_slice_at_least_five_pairs(
    table: pl.DataFrame,
) -> None:
    assert SILENT not in table["feature_id"]
    assert table.filter(pl.col("slice") != "all")["n_active"].min() >= 5
    whole = table.filter(slice="all", pooling="mean")
    assert whole["n_pairs"].n_unique() == 1
    assert whole["n_prompts"].unique().to_list() == [150]


def test_most_of_the_noise_stays_below_the_level(table: pl.DataFrame) -> None:
    noise = table.filter((pl.col("feature_id") > RARE) & (pl.col("slice") == "all") & pl.col("p").is_not_null())
    assert (noise["q"] < 0.05).sum() <= 2


def test_a_second_time_gives_the_same(store, table: pl.DataFrame) -> None:  # type: ignore[no-untyped-def]
    config = SalienceConfig(draws=200, poolings=("mean", "boundary_sum"))
    assert salience_tables(*store, config, Silent())["salience"].equals(table)


def test_shuffled_pairs_give_the_same_figures(store, table: pl.DataFrame) -> None:  # type: ignore[no-untyped-def]
    """The order in which pairs stand says nothing."""
    arrays, pairs, responses = store
    order = np.random.default_rng(3).permutation(len(pairs))
    answers = (order[:, None] * 2 + [0, 1]).reshape(-1)
    dense = arrays.pooled("mean").toarray()[answers]
    config = SalienceConfig(draws=200, poolings=("mean",))
    again = salience_tables(arrays_of(dense), pairs[order], responses[answers], config, Silent())["salience"]
    one = table.filter(slice="all", pooling="mean").drop("p", "q", "p_family")
    two = again.filter(slice="all").drop("p", "q", "p_family")
    for name in one.columns:
        if one[name].dtype == pl.Float64:
            np.testing.assert_allclose(one[name].to_numpy(), two[name].to_numpy(), rtol=2e-5, atol=1e-9)
        else:
            assert one[name].equals(two[name])


def test_an_empty_store_gives_an_empty_table(store) -> None:  # type: ignore[no-untyped-def]
    _, pairs, responses = store
    nothing = arrays_of(np.zeros((len(responses), 5)))
    found = salience_tables(nothing, pairs, responses, SalienceConfig(draws=100), Silent())["salience"]
    assert found.is_empty()
    assert found.columns == list(SALIENCE_SCHEMA)


def test_bootstrap_intervals_are_those_of_whole_prompts(store, table: pl.DataFrame) -> None:  # type: ignore[no-untyped-def]
    features = [DOWN, 20, UP]
    found = bootstrap_intervals(*store, features, "request=harmful", "mean", draws=4000, seed=1)
    assert found["feature_id"].to_list() == features
    values = prompt_differences(*store, features, "request=harmful", "mean")
    for i, feature in enumerate(features):
        known = cluster_bootstrap(values[:, i], np.arange(len(values)), draws=4000, seed=9)
        width = known.high - known.low
        assert found["ci_low"][i] == pytest.approx(known.low, abs=0.1 * width)
        assert found["ci_high"][i] == pytest.approx(known.high, abs=0.1 * width)
        assert row(table, feature, "request=harmful")["effect"] == pytest.approx(values[:, i].mean(), rel=1e-4)
    assert bootstrap_intervals(*store, [UP], "all", "mean", 200, 0).equals(
        bootstrap_intervals(*store, [UP], "all", "mean", 200, 0)
    )


def test_one_prompt_has_no_bootstrap_interval(store) -> None:  # type: ignore[no-untyped-def]
    pairs, responses = frames_of(["a", "a"])
    found = bootstrap_intervals(arrays_of(np.ones((4, 3))), pairs, responses, [1], "all", "mean")
    assert found.row(0) == (1, None, None)
    assert json.loads(pairs["labels"][0]) == {}
