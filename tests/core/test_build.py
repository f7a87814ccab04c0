"""A run is what a plain computation says, is left alone when nothing changed, and survives being killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from core.build import BuildResult, build
from core.config import RunConfig, load_config
from core.errors import DiskFullError
from core.progress import Silent
from core.store.arrays import load_arrays
from core.store.manifest import read_manifest
from tests.tiny_run import LATENTS, LAYER, K, write_config

TABLES = (
    "pair",
    "response",
    "activation",
    "feature",
    "histogram",
    "context",
    "band",
    "neighbour",
    "layout",
    "label",
    "evaluation",
    "salience",
    "impact",
    "causal",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return load_config(write_config(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def result(config: RunConfig) -> BuildResult:
    return build(config, Silent())


def tables(run: Path) -> dict[str, pl.DataFrame]:
    with duckdb.connect(str(run / read_manifest(run).database), read_only=True) as con:
        return {name: con.cursor().sql(f"SELECT * FROM {name}").pl() for name in TABLES}


def plain_reward(run: Path, model_folder: Path, prompt: str, answer: str) -> float:
    """The reward from first principles: full model one by one, TopK and sums in float64 numpy."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    # The tiny tokenizer has no chat template: the documented plain format, then the end token.
    before = tokenizer(f"User: {prompt}\n\nAssistant:")["input_ids"]
    ids = tokenizer(f"User: {prompt}\n\nAssistant: {answer}")["input_ids"] + [tokenizer.eos_token_id]
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER][0].double().numpy()
    sae = {key: value.astype(np.float64) for key, value in load_file(run / "sae.safetensors").items()}
    weights = load_file(run / "head.safetensors")["score.weight"][0].astype(np.float64)
    total = np.zeros(LATENTS)
    for x in states[len(before) :]:
        h = (x - x.mean()) / (x.std(ddof=1) + 1e-6)
        pre = sae["encoder.weight"] @ (h - sae["pre_bias"]) + sae["latent_bias"]
        active = np.argsort(-pre, kind="stable")[:K]
        total[active] += pre[active]
    return float(total / len(states[len(before) :]) @ weights)


def test_every_reward_is_what_a_plain_computation_gives(config: RunConfig, result: BuildResult) -> None:
    frames = tables(result.folder)
    prompts = dict(frames["pair"].select("pair_id", "prompt").iter_rows())
    rewards = frames["response"]["reward"].to_numpy()
    for row in frames["response"].head(24).iter_rows(named=True):
        expected = plain_reward(result.folder, Path(config.model.name), prompts[row["pair_id"]], row["text"])
        assert abs(row["reward"] - expected) < 1e-4 * rewards.std()


def test_contributions_sum_to_the_reward_in_the_database(result: BuildResult) -> None:
    frames = tables(result.folder)
    sums = (
        frames["activation"]
        .join(frames["feature"].select("feature_id", "weight"), on="feature_id")
        .group_by("response_id")
        .agg((pl.col("mean").cast(pl.Float64) * pl.col("weight")).sum().alias("total"))
        .sort("response_id")
    )
    rewards = frames["response"].sort("response_id")["reward"].to_numpy()
    assert np.abs(sums["total"].to_numpy() - rewards).max() < 1e-4 * rewards.std()
    assert result.manifest.health["sum_error"] < 1e-4


def test_float32_rewards_do_not_depend_on_the_batch(config: RunConfig, result: BuildResult, tmp_path: Path) -> None:
    other = config.model_copy(
        update={
            "runs": tmp_path,
            "model": config.model.model_copy(update={"tokens_per_batch": 64, "answers_per_shard": 7}),
        }
    )
    again = build(
        other.model_copy(
            update={"sae": config.sae.model_copy(update={"checkpoint": str(result.folder / "sae.safetensors")})}
        ),
        Silent(),
    )
    first, second = (load_arrays(r.folder / r.manifest.arrays) for r in (result, again))
    np.testing.assert_array_equal(first.token_features, second.token_features)
    np.testing.assert_allclose(first.token_values, second.token_values, atol=1e-4)


def test_the_margin_is_the_lowest_chosen_minus_the_highest_rejected(result: BuildResult) -> None:
    frames = tables(result.folder)
    by_side = (
        frames["response"]
        .group_by("pair_id", "side")
        .agg(pl.col("reward").min().alias("low"), pl.col("reward").max().alias("high"))
    )
    chosen = dict(by_side.filter(pl.col("side") == "chosen").select("pair_id", "low").iter_rows())
    rejected = dict(by_side.filter(pl.col("side") == "rejected").select("pair_id", "high").iter_rows())
    for pair_id, margin in frames["pair"].select("pair_id", "margin").iter_rows():
        assert margin == pytest.approx(chosen[pair_id] - rejected[pair_id], abs=1e-12)


def test_train_and_test_share_no_prompt_and_labels_are_kept(result: BuildResult) -> None:
    pairs = tables(result.folder)["pair"]
    splits = pairs.group_by("prompt").agg(pl.col("split").n_unique().alias("n"))
    assert splits["n"].max() == 1
    assert set(pairs["split"]) == {"train", "test"}
    assert pairs["labels"].str.contains("label").all()


def test_every_figure_has_its_n(result: BuildResult) -> None:
    evaluation = tables(result.folder)["evaluation"]
    assert (evaluation["n"] > 0).all()
    held = evaluation.filter((pl.col("benchmark") == "held-out") & (pl.col("metric") == "accuracy"))
    assert set(held["subset"]) == {"all", "safety", "chat"}
    assert held["ci_low"].null_count() == 0
    assert {"accuracy_raw", "accuracy_reconstruction", "accuracy_lost"} <= set(evaluation["metric"])
    assert {"fvu", "l0", "dead_fraction"} <= set(evaluation.filter(pl.col("benchmark") == "sae")["metric"])


def test_salience_impact_and_causal_checks_are_those_of_the_rewards(result: BuildResult) -> None:
    frames = tables(result.folder)
    salience = frames["salience"].filter(slice="all", pooling="mean").sort("feature_id")
    z = load_arrays(result.folder / result.manifest.arrays).pooled("mean").toarray().astype(np.float64)
    chosen = (frames["response"]["side"] == "chosen").to_numpy()
    np.testing.assert_allclose(
        salience["chosen_sum"], np.maximum(z, 0)[chosen].sum(axis=0)[salience["feature_id"]], rtol=1e-5
    )
    none = frames["impact"].filter(strategy="none")
    held = frames["evaluation"].filter(benchmark="held-out", metric="accuracy")
    assert dict(none.select("domain", "accuracy").iter_rows()) == pytest.approx(
        dict(held.select("subset", "value").iter_rows())
    )
    assert set(frames["impact"]["strategy"]) == {"none", "set", "random", "margin", "loss", "length"}
    # What ablating a feature takes from a pair is w (z_chosen - z_rejected), mean by prompt over pairs where it is active.
    pairs = frames["pair"].sort("pair_index")
    pair_of = frames["response"].sort("response_id")["pair_index"].to_numpy()
    weights = frames["feature"].sort("feature_id")["weight"].to_numpy()
    assert len(frames["causal"])
    for row in frames["causal"].to_dicts():
        column = z[:, row["feature_id"]]
        by_prompt: dict[str, list[float]] = {}
        for index, prompt in enumerate(pairs["prompt_id"]):
            mine = pair_of == index
            if np.any(column[mine] != 0):
                difference = column[mine & chosen].mean() - column[mine & ~chosen].mean()
                by_prompt.setdefault(prompt, []).append(weights[row["feature_id"]] * difference)
        assert row["n_prompts"] == len(by_prompt)
        assert row["effect"] == pytest.approx(np.mean([np.mean(v) for v in by_prompt.values()]), rel=1e-5, abs=1e-9)


def test_an_ordinary_reward_model_is_trained_and_read_beside_its_features(tmp_path: Path) -> None:
    """SAFER's shape: the model's own rewards are a plain transformers forward's; the SAE's features stand beside them."""
    path = write_config(tmp_path)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["model"]["layer"] = 2
    raw["reward_model"] = {"kind": "classifier", "train": {"scope": "full", "layers": 3, "learning_rate": 1e-3}}
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    made = build(load_config(path), Silent())
    checkpoint = made.folder / made.manifest.model["checkpoint"]
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    assert model.config.num_labels == 1
    assert model.config.num_hidden_layers == 3
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    frames = tables(made.folder)
    rows = frames["response"].join(frames["pair"].select("pair_id", "prompt"), on="pair_id")
    for row in rows.head(10).to_dicts():
        ids = tokenizer(f"User: {row['prompt']}\n\nAssistant: {row['text']}")["input_ids"] + [tokenizer.eos_token_id]
        with torch.inference_mode():
            assert model(torch.tensor([ids])).logits.item() == pytest.approx(row["model_reward"], abs=1e-4)
    assert rows["model_reward"].n_unique() > 20
    figures = frames["evaluation"]
    assert figures.filter(benchmark="reward-model held-out", metric="accuracy", subset="all")["n"][0] > 0
    assert len(frames["impact"].filter(strategy="set"))
    assert len(frames["causal"]) == 0  # features of an ordinary model are not checked by arithmetic
    assert build(load_config(path), Silent()).unchanged


def test_a_second_call_changes_nothing(config: RunConfig, result: BuildResult) -> None:
    before = {path: path.stat().st_mtime_ns for path in result.folder.rglob("*") if path.is_file()}
    again = build(config, Silent())
    assert again.unchanged
    assert {path: path.stat().st_mtime_ns for path in result.folder.rglob("*") if path.is_file()} == before


def test_the_same_configuration_gives_the_same_run(config: RunConfig, result: BuildResult, tmp_path: Path) -> None:
    again = build(config.model_copy(update={"runs": tmp_path}), Silent())
    assert again.manifest.run_id == result.manifest.run_id
    assert (again.folder / "sae.safetensors").read_bytes() == (result.folder / "sae.safetensors").read_bytes()
    for name, frame in tables(result.folder).items():
        assert frame.equals(tables(again.folder)[name]), name


def test_a_full_disk_leaves_the_last_good_run(
    config: RunConfig, result: BuildResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    before = tables(result.folder)
    whole, written = pq.write_table, []

    def fills_up(table: object, where: Path, **options: object) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(where)
        whole(table, where, **options)

    monkeypatch.setattr(pq, "write_table", fills_up)
    changed = config.model_copy(update={"sae": config.sae.model_copy(update={"seed": 7})})
    with pytest.raises(DiskFullError, match="free some room and run the same command again"):
        build(changed, Silent())
    monkeypatch.undo()
    assert read_manifest(result.folder).run_id == result.manifest.run_id
    assert all(frame.equals(before[name]) for name, frame in tables(result.folder).items())
    assert not list(result.folder.rglob("*.tmp"))


@pytest.mark.slow
def test_killed_at_every_stage_it_goes_on_to_the_same_run(
    result: BuildResult, config: RunConfig, tmp_path: Path
) -> None:
    """kill -9 as soon as each stage has begun (for the activations: once some shards are there)."""
    source = Path(config.model.name).parent / "tiny.yaml"
    command = [sys.executable, "-m", "core", "build", str(source), "--runs", str(tmp_path), "--json"]
    run = tmp_path / "tiny"
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    kept: set[tuple[str, int]] = set()

    def begun(stage: str) -> Callable[[], bool]:
        return lambda: any((run / "stages").glob(f"{stage}-*")) if (run / "stages").is_dir() else False

    moments: list[Callable[[], bool]] = [
        begun("sae"),
        lambda: len(list(run.glob("shards/*/activations-*.parquet"))) >= 2,
        begun("features"),
        lambda: any(run.glob("run-*.duckdb.tmp")),
    ]
    for moment in moments:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while not moment() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        shards = {(path.name, path.stat().st_mtime_ns) for path in run.glob("shards/*/activations-*.parquet")}
        assert kept <= shards, "a finished shard was lost or made again"
        kept = shards
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(run.rglob("*.tmp"))
    for name, frame in tables(result.folder).items():
        assert frame.equals(tables(run)[name]), name
