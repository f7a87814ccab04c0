"""What a preview says of held-out pairs: exact refits, paired changes, intervals over prompts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import resources

import duckdb
import numpy as np
import polars as pl
import pytest

from core.config import ImpactConfig
from core.errors import DataError
from core.evaluate.run_quality import PairTable, accuracy_rows
from core.impact.plans import make_plan
from core.impact.preview import IMPACT_SCHEMA, preview
from core.impact.stage import impact_tables
from core.progress import Silent
from core.store.sets import FeatureSet
from tests.core.impact.problem import small_inputs

INPUTS = small_inputs(0, pairs=240)
SET = FeatureSet("some", (0, 3), (5,), "s" * 64)


def table_of() -> PairTable:
    return PairTable(INPUTS.response_pair, INPUTS.chosen, INPUTS.prompt, INPUTS.train, INPUTS.domain)


def test_the_unchanged_head_has_the_runs_own_figures() -> None:
    """Accuracy, margin and intervals of plan 'none' are those the run's evaluation gives the run's head."""
    assert INPUTS.head is not None
    rewards = INPUTS.features.astype(np.float64) @ INPUTS.head
    expected = {
        (row["subset"], row["metric"]): row
        for row in accuracy_rows(rewards, table_of(), INPUTS.settings)
        if row["benchmark"] == "held-out"
    }
    found = preview(INPUTS, [])
    assert found["domain"].to_list() == ["all", "chat", "safety"]
    for row in found.to_dicts():
        for metric, name, low, high in (
            ("accuracy", "accuracy", "accuracy_low", "accuracy_high"),
            ("mean_margin", "mean_margin", "margin_low", "margin_high"),
        ):
            truth = expected[row["domain"], metric]
            assert row[name] == pytest.approx(truth["value"], rel=1e-9)
            assert row[low] == pytest.approx(truth["ci_low"], rel=1e-9)
            assert row[high] == pytest.approx(truth["ci_high"], rel=1e-9)
            assert row["n"] == truth["n"]
        assert (row["accuracy_change"], row["change_low"], row["change_high"]) == (0.0, 0.0, 0.0)
        assert (row["plan"], row["strategy"], row["ratio"], row["kind"]) == ("none", "none", 0.0, "preview")


@pytest.mark.parametrize("dense", [False, True])
def test_a_plan_that_changes_nothing_changes_nothing(dense: bool) -> None:
    inputs = small_inputs(1, dense=dense, l2=None if dense else 0.05)
    plan = make_plan(inputs, strategy="random", direction="poison", action="flip", ratio=0.0)
    found = preview(inputs, [plan]).filter(plan=plan.id)
    assert (found.select("accuracy_change", "change_low", "change_high").to_numpy() == 0).all()


def test_flipping_everything_turns_the_head_around() -> None:
    plan = make_plan(INPUTS, strategy="random", direction="poison", action="flip", ratio=1.0)
    found = preview(INPUTS, [plan]).filter(domain="all")
    before, after = found.row(0, named=True), found.row(1, named=True)
    from core.impact.preview import refit_plans

    weights = refit_plans(INPUTS, [plan])[:, 0]
    np.testing.assert_allclose(weights, -INPUTS.unchanged.weights, atol=1e-4 * np.abs(weights).max())
    assert after["accuracy"] < 0.5 < before["accuracy"]


def test_changes_are_paired_and_intervals_are_over_prompts() -> None:
    """Against a bootstrap written out: the same prompts drawn for the plan and for the unchanged head."""
    plan = make_plan(INPUTS, strategy="margin", direction="poison", action="flip", ratio=0.3)
    found = preview(INPUTS, [plan]).filter(plan=plan.id, domain="chat").row(0, named=True)
    from core.impact.preview import refit_plans
    from core.rewards.accuracy import pair_outcome

    features = INPUTS.features.astype(np.float64)
    right = []
    for weights in (INPUTS.unchanged.weights, refit_plans(INPUTS, [plan])[:, 0]):
        correct, _ = pair_outcome(features @ weights, INPUTS.response_pair, INPUTS.chosen)
        right.append(correct[~INPUTS.train & (INPUTS.domain == "chat")].astype(float))
    prompts = INPUTS.prompt[~INPUTS.train & (INPUTS.domain == "chat")]
    names = np.unique(prompts)
    rng = np.random.default_rng(1)
    changes = []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(prompts == one) for one in rng.choice(names, len(names))])
        changes.append(right[1][rows].mean() - right[0][rows].mean())
    low, high = np.quantile(changes, [0.025, 0.975])
    assert found["accuracy_change"] == pytest.approx(right[1].mean() - right[0].mean())
    assert found["n_prompts"] == len(names)
    assert found["change_low"] == pytest.approx(low, abs=0.03)
    assert found["change_high"] == pytest.approx(high, abs=0.03)


def test_one_prompt_has_no_interval() -> None:
    domain = INPUTS.domain.copy()
    domain[np.flatnonzero(~INPUTS.train)[0]] = "rare"
    rare = preview(replace(INPUTS, domain=domain), []).filter(domain="rare").row(0, named=True)
    assert rare["n_prompts"] == 1
    assert rare["accuracy"] in (0.0, 1.0)
    assert rare["accuracy_low"] is None
    assert rare["change_high"] is None


def test_a_plan_of_other_pairs_is_refused() -> None:
    plan = make_plan(INPUTS, strategy="random", direction="poison", action="flip", ratio=0.1)
    with pytest.raises(DataError, match="made for other pairs"):
        preview(small_inputs(9), [replace(plan, data_sha256="0" * 64)])


def test_the_stage_has_the_tables_columns_and_every_baseline() -> None:
    config = ImpactConfig(poison=(0.05,), denoise=(0.1,), seeds=2, seed=7)
    frame = impact_tables(INPUTS, SET, config, Silent())["impact"]
    with duckdb.connect() as db:
        db.execute(resources.files("core.store").joinpath("schema.sql").read_text(encoding="utf-8"))
        columns = [row[0] for row in db.execute("SELECT column_name FROM (DESCRIBE impact)").fetchall()]
        assert columns == frame.columns == list(IMPACT_SCHEMA)
        db.register("incoming", frame.to_arrow())
        db.execute("INSERT INTO impact BY NAME SELECT * FROM incoming")
    points = frame.filter(pl.col("domain") == "all").select("direction", "action", "strategy", "seed")
    curves = [("poison", "flip"), ("denoise", "drop"), ("denoise", "flip")]
    expected = {(*curve, strategy, 0) for curve in curves for strategy in ("set", "margin", "loss", "length")}
    expected |= {(*curve, "random", seed) for curve in curves for seed in (7, 8)}
    assert set(points.filter(pl.col("strategy") != "none").iter_rows()) == expected
    assert len(points) == len(expected) + 1
    without = impact_tables(INPUTS, None, config, Silent())["impact"]
    assert "set" not in without["strategy"]


def test_previews_need_no_torch() -> None:
    """The dashboard's process must never import it."""
    code = (
        "import sys, core.impact.stage, core.impact.edit, core.impact.curve, core.impact.plans; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
