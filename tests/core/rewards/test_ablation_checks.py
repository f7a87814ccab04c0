"""Checks of a set on real tiny runs: a head's and a classifier's, stopped and taken up again, through the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from polars.testing import assert_frame_equal
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner, Result

import core.commands.ablate  # noqa: F401  (registers the verb)
from core.build import build
from core.cli import app
from core.config import load_config
from core.data.chat import EncodedAnswer
from core.errors import DataError, RunError
from core.models.resolve import weights_sha256
from core.progress import Silent
from core.rewards.ablation import Sides, head_effects
from core.rewards.ablation_checks import encoded_pairs, load_rerun, run_checks
from core.rewards.ablation_plan import plan_checks
from core.rewards.ablation_rerun import AnswerEffects, ClassifierRerun, HeadRerun, Rerun
from core.rewards.score import load_scorer
from core.store.reader import RunReader
from core.store.review import ReviewStore
from core.store.sets import FeatureSet
from tests.tiny_run import write_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `tiny`, whose reward is its head, and `tiny-rm`, the same beside a random reward model."""
    home = tmp_path_factory.mktemp("home")
    build(load_config(write_config(home)), Silent())
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(home / "model", num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    beside = home / "runs" / "tiny-rm"
    shutil.copytree(home / "runs" / "tiny", beside)
    model.save_pretrained(beside / "reward_model")
    for file in (home / "model").glob("token*"):
        shutil.copy(file, beside / "reward_model")
    manifest = json.loads((beside / "manifest.json").read_text())
    manifest["config"]["reward_model"] = {"kind": "classifier", "train": None}
    manifest["model"] |= {"checkpoint": "reward_model", "weights_sha256": weights_sha256(beside / "reward_model")}
    (beside / "manifest.json").write_text(json.dumps(manifest))
    return home / "runs"


def common_set(reader: RunReader, size: int = 4) -> FeatureSet:
    """The features active in most pairs, with the signs of their weights."""
    top = reader.features.frame.sort("n_pairs", "feature_id", descending=[True, False]).head(size)
    ids, up = top["feature_id"].to_list(), (top["weight"] > 0).to_list()
    plus = tuple(f for f, good in zip(ids, up, strict=True) if good)
    return FeatureSet("mine", plus, tuple(set(ids) - set(plus)), reader.manifest.sae["sha256"])


class Counting:
    """A re-run that counts, and on request is stopped."""

    def __init__(self, inner: Rerun, stop_after: int | None = None) -> None:
        self.inner, self.calls, self.features, self.stop_after = inner, 0, 0, stop_after
        self.tokenizer, self.context_length = inner.tokenizer, inner.context_length

    def ablate(self, answers: Sequence[EncodedAnswer], features: Sequence[int]) -> list[AnswerEffects]:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        self.features += len(features)
        return self.inner.ablate(answers, features)


@pytest.mark.parametrize("name", ["tiny", "tiny-rm"])
def test_rows_are_what_single_reruns_give(runs: Path, name: str, tmp_path: Path) -> None:
    with RunReader.open(runs / name) as reader:
        one = common_set(reader)
        plan = plan_checks(reader, one, pairs=12, random=8)
        rerun = load_rerun(reader, "cpu")
        assert isinstance(rerun, ClassifierRerun if name == "tiny-rm" else HeadRerun)
        rows: list[dict[str, Any]] = []
        result = run_checks(
            plan, reader, one, lambda: rerun, journal=tmp_path / "j", progress=Silent(), on_row=rows.append
        )
        table = Sides.of(reader.table("pair"), reader.table("response"))
        assert result.rows["feature_id"].to_list() == sorted(one.features)
        assert sorted(row["feature_id"] for row in rows) == sorted(one.features)
        feature = one.features[0]
        row = result.rows.filter(feature_id=feature).to_dicts()[0]
        assert row["n_pairs"] == len(plan.sampled[feature]) == 12
        assert row["n_random"] == len(plan.matched[feature]) >= 8
        changes: dict[int, list[float]] = {}
        for pair, answers in encoded_pairs(reader, rerun, plan.sampled[feature].tolist()):
            chosen = table.chosen[table.response_pair == pair]
            change = np.array([rerun.ablate([answer], [feature])[0].change[0] for answer in answers])
            changes.setdefault(int(table.prompt[pair]), []).append(change[chosen].mean() - change[~chosen].mean())
        expected = np.mean([np.mean(values) for values in changes.values()])
        assert row["n_prompts"] == len(changes)
        assert row["effect"] == pytest.approx(expected, abs=1e-5)
        assert abs(row["effect"]) > 1e-4
        assert row["ci_low"] < row["effect"] < row["ci_high"]
        assert len(result.random) == len(plan.pool)
        assert not set(result.random["feature_id"].to_list()) & set(one.features)


def test_the_unablated_rewards_are_the_runs_own(runs: Path) -> None:
    """A head's re-run scores what the run stored; the classifier's what transformers says."""
    with RunReader.open(runs / "tiny") as reader:
        stored = reader.rewards()
        table = Sides.of(reader.table("pair"), reader.table("response"))
        rerun = load_rerun(reader, "cpu")
        for pair, answers in encoded_pairs(reader, rerun, [0, 7]):
            found = [effects.reward for effects in rerun.ablate(answers, [0])]
            np.testing.assert_allclose(found, stored[table.response_pair == pair], rtol=1e-4, atol=1e-6)
        assert load_scorer(runs / "tiny").head.pooling == rerun.pooling  # type: ignore[attr-defined]


def test_a_stopped_check_goes_on_where_it_was(runs: Path, tmp_path: Path) -> None:
    with RunReader.open(runs / "tiny-rm") as reader:
        one = common_set(reader, 3)
        plan = plan_checks(reader, one, pairs=10, random=8, seed=1)
        whole = Counting(load_rerun(reader, "cpu"))
        expected = run_checks(plan, reader, one, lambda: whole, journal=tmp_path / "whole", progress=Silent())
        journal = tmp_path / "part"
        part = Counting(load_rerun(reader, "cpu"), stop_after=5)
        with pytest.raises(KeyboardInterrupt):
            run_checks(plan, reader, one, lambda: part, journal=journal, progress=Silent())
        with journal.open("a", encoding="utf-8") as file:
            file.write('\n{"pair": 9, "fea')  # killed while it wrote
        more = Counting(load_rerun(reader, "cpu"), stop_after=3)
        with pytest.raises(KeyboardInterrupt):
            run_checks(plan, reader, one, lambda: more, journal=journal, progress=Silent())
        rest = Counting(load_rerun(reader, "cpu"))
        found = run_checks(plan, reader, one, lambda: rest, journal=journal, progress=Silent())
        assert rest.calls == whole.calls - 5 - 3
        again = run_checks(plan, reader, one, pytest.fail, journal=journal, progress=Silent())
        more_pairs = plan_checks(reader, one, pairs=12, random=8, seed=1)
        added = sum(map(len, more_pairs.sampled.values())) - sum(map(len, plan.sampled.values()))
        last = Counting(load_rerun(reader, "cpu"))
        run_checks(more_pairs, reader, one, lambda: last, journal=journal, progress=Silent())
        assert 0 < last.features == added
        assert_frame_equal(again.rows, expected.rows)
        assert_frame_equal(found.rows, expected.rows)
        assert_frame_equal(found.random, expected.random)


def test_the_plan_takes_new_prompts_first_and_random_features_from_outside(runs: Path) -> None:
    with RunReader.open(runs / "tiny") as reader:
        one = common_set(reader)
        plan = plan_checks(reader, one, pairs=15, random=8)
        again = plan_checks(reader, one, pairs=15, random=8)
        other = plan_checks(reader, one, pairs=15, random=8, seed=1)
        assert all(np.array_equal(plan.sampled[f], again.sampled[f]) for f in plan.sampled)
        assert any(not np.array_equal(plan.sampled[f], other.sampled[f]) for f in one.features)
        table = Sides.of(reader.table("pair"), reader.table("response"))
        for feature, pairs in plan.sampled.items():
            n_prompts = len(np.unique(table.prompt[pairs]))
            active = np.unique(table.response_pair[reader.arrays.pooled("mean")[:, [feature]].nonzero()[0]])
            assert set(pairs) <= set(active)
            assert n_prompts == min(15, len(np.unique(table.prompt[active])))
        assert not set(plan.pool) & set(one.features)
        fewer = plan_checks(reader, one, pairs=10, random=8)
        assert all(set(fewer.sampled[f]) <= set(plan.sampled[f]) for f in one.features)
        with pytest.raises(DataError, match="made for another SAE"):
            plan_checks(reader, replace(one, plus=(10**6,), minus=()))


def test_other_tokens_than_the_runs_are_refused(runs: Path, tmp_path: Path) -> None:
    with RunReader.open(runs / "tiny") as reader:
        rerun = load_rerun(reader, "cpu")
        rerun.tokenizer.eos_token = "w50"
        rerun.tokenizer.chat_template = None
        with pytest.raises(RunError, match="other tokens now"):
            list(encoded_pairs(reader, rerun, [0]))


def test_another_reward_model_than_the_runs_is_refused(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "tiny-rm", tmp_path / "changed")
    weights = tmp_path / "changed" / "reward_model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with (
        RunReader.open(tmp_path / "changed") as reader,
        pytest.raises(RunError, match="not those the run was made with"),
    ):
        load_rerun(reader, "cpu")


# --- the command ---------------------------------------------------------------------------------------------------


def ablate(runs: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["ablate", *arguments, "--runs", str(runs)], env={"COLUMNS": "200"})


@pytest.fixture
def stored(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, FeatureSet]:
    """The runs with a stored set, and nothing else in review.sqlite or the cache."""
    monkeypatch.setenv("REWARDSCOPE_CACHE", str(tmp_path / "cache"))
    for file in runs.glob("review.sqlite*"):
        file.unlink()
    with RunReader.open(runs / "tiny") as reader:
        return runs, ReviewStore(runs).save_set(common_set(reader))


def test_ablate_a_head_and_store_it(stored: tuple[Path, FeatureSet]) -> None:
    runs, one = stored
    done = ablate(runs, "tiny", "--set", "mine", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["method"], facts["n_checked"]) == ("head", len(one))
    assert {row["feature"]: row["sign"] for row in facts["features"]} == {f: one.sign(f) for f in one.features}
    with RunReader.open(runs / "tiny") as reader:
        kept = ReviewStore(runs).causal(reader.manifest.run_id)
    assert kept["feature_id"].to_list() == list(one.features)
    assert set(kept["method"]) == {"head"}
    words = ablate(runs, "tiny", "--set", "mine").stdout
    assert "features checked are verified" in words
    assert "S+" in words


def test_ablate_a_classifier_stores_rows_and_does_not_repeat_them(stored: tuple[Path, FeatureSet]) -> None:
    runs, one = stored
    first = ablate(runs, "tiny-rm", "--set", "mine", "--pairs", "10", "--device", "cpu", "--json")
    assert first.exit_code == 0, first.output
    facts = json.loads(first.stdout)
    assert facts["method"] == "residual"
    assert facts["rank_correlation"]["set"]["n"] == len(one)
    both = facts["rank_correlation"]["set and random features"]
    assert both["n"] >= len(one) + 8
    assert both["low"] <= both["rho"] <= both["high"]
    again = json.loads(ablate(runs, "tiny-rm", "--set", "mine@1", "--pairs", "10", "--json").stdout)
    assert again == facts | {"version": 1}
    more = json.loads(ablate(runs, "tiny-rm", "--set", "mine@1", "--pairs", "12", "--device", "cpu", "--json").stdout)
    assert {row["n_pairs"] for row in more["features"]} == {12}
    words = ablate(runs, "tiny-rm", "--set", "mine", "--pairs", "10", "--device", "cpu", "--force")
    assert words.exit_code == 0, words.output
    assert "Rank correlation of attribution with ablation, set:" in words.stdout
    refused = ablate(runs, "tiny-rm", "--set", "mine", "--method", "head")
    assert refused.exit_code == 2
    assert "use --method residual" in refused.output


def test_a_set_from_a_file_and_features_not_checked(
    stored: tuple[Path, FeatureSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, one = stored
    with RunReader.open(runs / "tiny") as reader:
        table = Sides.of(reader.table("pair"), reader.table("response"))
        prompts = head_effects(reader.arrays.pooled("mean"), table, np.ones(reader.arrays.latents)).n_prompts
    dead = int(prompts.argmin())
    for module in ("ablation", "ablation_plan"):
        monkeypatch.setattr(f"core.rewards.{module}.MIN_PROMPTS", int(prompts[dead]) + 1)
    file = tmp_path / "set.json"
    file.write_text(json.dumps({"s_plus": [dead], "s_minus": [one.features[0]]}))
    for method in ("head", "residual"):
        done = ablate(runs, "tiny", "--set", str(file), "--method", method, "--pairs", "10", "--json")
        assert done.exit_code == 0, done.output
        rows = {row["feature"]: row for row in json.loads(done.stdout)["features"]}
        assert rows[dead]["verdict"] == "not checked"
        assert "prompts" in rows[dead]["why"]
        assert rows[one.features[0]]["verdict"] in ("verified", "correlated only")
    assert "not checked" in ablate(runs, "tiny", "--set", str(file)).stdout
    file.write_text(json.dumps({"s_plus": [dead], "s_minus": []}))
    for method in ("head", "residual"):
        none = json.loads(ablate(runs, "tiny", "--set", str(file), "--method", method, "--json").stdout)
        assert (none["n_checked"], none["n_verified"], len(none["features"])) == (0, 0, 1)
    file.write_text(json.dumps({"s_plus": [], "s_minus": []}))
    assert "is empty" in ablate(runs, "tiny", "--set", str(file)).output


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "--set NAME"),
        (("--set", "none such"), 1, "There is no set"),
        (("--set", "mine", "--method", "guess"), 2, "use head or residual"),
    ],
)
def test_wrong_usage_is_said(stored: tuple[Path, FeatureSet], arguments: tuple[str, ...], code: int, says: str) -> None:
    done = ablate(stored[0], "tiny", *arguments)
    assert done.exit_code == code
    assert says in done.output
