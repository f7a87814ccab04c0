"""A plan is a small file that says what it changes, and refuses to be used on anything else."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.errors import ConfigError, DataError, RunError
from core.impact.curve import curve_plans
from core.impact.plans import Plan, load_plan, make_plan, save_plan
from core.impact.strategies import rank_pairs
from core.store.sets import FeatureSet
from tests.core.impact.problem import small_inputs

SET = FeatureSet("some", (0, 3), (5,), "s" * 64, version=2)
INPUTS = small_inputs(0)


def made(**changes: object) -> Plan:
    wanted: dict[str, object] = {
        "strategy": "set",
        "direction": "poison",
        "action": "flip",
        "ratio": 0.1,
        "feature_set": SET,
        **changes,
    }
    return make_plan(INPUTS, **wanted)  # type: ignore[arg-type]


def test_a_plan_takes_the_first_of_the_ranking() -> None:
    n = int(INPUTS.train.sum())
    for ratio in (0.0, 0.005, 0.1, 0.29, 1.0):
        plan = made(ratio=ratio)
        count = math.floor(round(n * ratio, 9))
        ranked = rank_pairs(INPUTS, "set", feature_set=SET, direction="poison").pair_index[:count]
        assert list(plan.edits) == [INPUTS.pair_ids[i] for i in ranked]
        signs = plan.signs(INPUTS)
        assert (signs[ranked] == -1).all()
        assert (signs == 1).sum() == len(signs) - count
    assert (made(action="drop").signs(INPUTS) >= 0).all()


def test_the_id_depends_on_what_is_changed_and_not_on_names_or_time() -> None:
    plan = made()
    assert plan.id == made().id
    assert plan.id == make_plan(
        replace(INPUTS, run="other", run_id="x"),
        strategy="set",
        direction="poison",
        action="flip",
        ratio=0.1,
        feature_set=replace(SET, name="renamed", version=9),
    ).id  # fmt: skip
    others = [
        made(action="drop"),
        made(ratio=0.2),
        made(direction="denoise"),
        made(feature_set=FeatureSet("some", (0, 4), (5,), "s" * 64)),
        made(strategy="random"),
        made(strategy="random", seed=1),
    ]
    assert len({plan.id, *(one.id for one in others)}) == 7
    assert made(strategy="margin", seed=4).id == made(strategy="margin").id  # its seed does not matter


def test_a_saved_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    for plan in (made(), made(strategy="random", seed=3, action="drop"), made(ratio=0.0)):
        path = tmp_path / f"{plan.id}.json"
        save_plan(plan, path)
        back = load_plan(path, INPUTS)
        assert back == plan
        assert back.id == plan.id
        assert back.created == plan.created
        facts = json.loads(path.read_text())
        assert facts["data_sha256"] == INPUTS.data_sha256
        assert facts["pairs"] == [{"pair_id": name, "action": plan.action} for name in plan.edits]
    with pytest.raises(RunError, match="is there already"):
        save_plan(made(), tmp_path / f"{made().id}.json")


def edited(tmp_path: Path, **changes: object) -> Path:
    """A saved plan with some of its facts replaced; None removes one."""
    path = tmp_path / "plan.json"
    path.unlink(missing_ok=True)
    save_plan(made(), path)
    facts = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))
    return path


def test_a_plan_of_other_pairs_or_a_changed_one_is_refused(tmp_path: Path) -> None:
    held = INPUTS.pair_ids[int(np.flatnonzero(~INPUTS.train)[0])]
    free = INPUTS.pair_ids[int(np.flatnonzero(INPUTS.train)[0])]
    one = {"pair_id": free, "action": "flip"}
    for changes, says in (
        ({"data_sha256": "0" * 64}, "made for other pairs"),
        ({"ratio": 0.3}, "was changed after it was made"),
        ({"pairs": [one]}, "was changed after it was made"),
        ({"id": None, "pairs": [{"pair_id": held, "action": "flip"}]}, "is held out"),
        ({"id": None, "pairs": [one, one]}, "listed twice"),
        ({"id": None, "pairs": [{"pair_id": "nobody", "action": "flip"}]}, "no pair 'nobody'"),
        ({"id": None, "pairs": [{"pair_id": free, "action": "keep"}]}, "the action flip or drop"),
        ({"id": None, "pairs": "all"}, "needs the list pairs"),
        ({"id": None, "direction": "sideways"}, "poison or denoise"),
        ({"id": None, "strategy": "magic"}, "'magic' is not known"),
        ({"format": "other"}, "its format is not"),
    ):
        with pytest.raises(DataError, match=says):
            load_plan(edited(tmp_path, **changes), INPUTS)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cannot be read"):
        load_plan(tmp_path / "nowhere.json", INPUTS)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_plan(tmp_path / "broken.json", INPUTS)


def test_a_plan_by_hand_needs_little(tmp_path: Path) -> None:
    free = [INPUTS.pair_ids[i] for i in np.flatnonzero(INPUTS.train)[:2]]
    path = tmp_path / "hand.json"
    facts = {
        "format": "rewardscope-plan-1",
        "data_sha256": INPUTS.data_sha256,
        "direction": "denoise",
        "pairs": [{"pair_id": free[0], "action": "flip"}, {"pair_id": free[1], "action": "drop"}],
    }
    path.write_text(json.dumps(facts))
    plan = load_plan(path, INPUTS)
    assert (plan.strategy, plan.action, plan.n_train) == ("hand", "mixed", int(INPUTS.train.sum()))
    assert sorted(plan.signs(INPUTS))[:2] == [-1, 0]


def test_the_hash_sees_every_text_and_split() -> None:
    import polars as pl

    from core.impact.inputs import data_hash

    pairs = pl.DataFrame({"pair_id": ["a", "b"], "prompt_id": ["p", "q"], "split": ["train", "test"]})
    answers = pl.DataFrame({"pair_index": [0, 0], "side": ["chosen", "rejected"], "text": ["x", "yz"]})
    seen = {data_hash(pairs, answers)}
    for column in ("pair_id", "prompt_id", "split"):
        seen.add(data_hash(pairs.with_columns(pl.lit("other").alias(column)), answers))
    seen.add(data_hash(pairs, answers.with_columns(pl.Series("text", ["xy", "z"]))))
    seen.add(data_hash(pairs, answers.reverse()))
    assert len(seen) == 6


def test_wrong_choices_are_said() -> None:
    with pytest.raises(ConfigError, match="'keep' is not known"):
        made(action="keep")
    for ratio in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="not a share"):
            made(ratio=ratio)
    margin = np.where(np.arange(len(INPUTS.margin)) % 2 == 0, np.nan, INPUTS.margin)
    with pytest.raises(DataError, match="lower the ratio"):
        make_plan(replace(INPUTS, margin=margin), strategy="margin", direction="poison", action="flip", ratio=0.9)


def test_a_curve_has_every_ratio_and_random_every_seed() -> None:
    plans = curve_plans(INPUTS, SET, "poison", "flip", (0.01, 0.05), ("set", "random", "loss"), 3)
    assert [(plan.strategy, plan.seed, plan.ratio) for plan in plans] == [
        (strategy, seed, ratio)
        for strategy, seeds in (("set", 1), ("random", 3), ("loss", 1))
        for seed in range(seeds)
        for ratio in (0.01, 0.05)
    ]
    for small, large in zip(plans[::2], plans[1::2], strict=True):
        assert set(small.edits) <= set(large.edits)  # a curve adds pairs, it does not choose anew
