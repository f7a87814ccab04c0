"""`rewardscope steer` on a real tiny run: applied, searched, stored and written, while the run stays as it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from core.build import build
from core.cli import app
from core.config import load_config
from core.errors import ConfigError
from core.models.head_file import load_head
from core.progress import Silent
from core.rewards.score import load_model_scorer, load_scorer, run_model
from core.rewards.steered_model import write_model
from core.rewards.steering import SteeredRewards, Steering, read_steering
from core.store.reader import RunReader
from core.store.review import ReviewStore
from tests.tiny_run import LATENTS, write_config


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steer")
    build(load_config(write_config(folder)).model_copy(update={"runs": folder / "runs"}), Silent())
    return folder


def steer(home: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["steer", "tiny", "--runs", str(home / "runs"), *arguments])


def hashes(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


def top_features(home: Path, n: int) -> list[int]:
    weights = load_head(home / "runs" / "tiny" / "head.safetensors").weights
    return [int(i) for i in np.argsort(-np.abs(weights))[:n]]


def test_the_files_written_give_the_steered_rewards(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = home / "runs" / "tiny"
    before = hashes(run)
    first, second = top_features(home, 2)
    arguments = ["--set", f"{first}=0", "--set", f"{second}=2.5", "--pairs", "all", "--save", "two"]
    arguments += ["--target", "domain=chat"]
    paths = {name: tmp_path / name for name in ("steering.json", "head.safetensors", "model")}
    done = steer(
        home, *arguments, "-o", str(paths["steering.json"]), "--write-head", str(paths["head.safetensors"]),
        "--write-model", str(paths["model"]), "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["changes"] == {str(first): ["*", 0.0], str(second): ["*", 2.5]}
    assert said["specificity"]["accuracy"]["n"] == 40
    assert hashes(run) == before

    with RunReader.open(run) as reader:
        expected = SteeredRewards.of(reader).rewards({first: 0.0, second: 2.5})
        texts = reader.table("response")["text"].to_list()
        prompts = {row["pair_index"]: row["prompt"] for row in reader.table("pair").iter_rows(named=True)}
        pair = reader.table("response")["pair_index"].to_list()
        stored = read_steering(paths["steering.json"], sae=reader.manifest.sae["sha256"], latents=LATENTS)
        assert ReviewStore(home / "runs").find_steering(reader.manifest.sae["sha256"], "two").changes == stored.changes
    assert stored.multipliers(load_head(run / "head.safetensors").weights) == {first: 0.0, second: 2.5}
    head = load_head(paths["head.safetensors"])
    assert head.metadata["steered"]["changes"] == said["changes"]
    assert head.metadata["steered"]["run_id"]
    with_head = load_scorer(run, device="cpu").with_weights(head.weights)
    with_model = load_model_scorer(paths["model"], dtype="float32", device="cpu")
    for row in range(0, len(texts), 17):
        messages = [{"role": "user", "content": prompts[pair[row]]}]
        for scorer in (with_head, with_model):
            assert scorer.score(messages, [texts[row]])[0].reward == pytest.approx(expected[row], abs=2e-5)

    # A run whose model is a SARM folder: its blocks and SAE are taken from there, and the run's head is steered.
    manifest = run_model(run)[0]
    monkeypatch.setattr("core.rewards.score.run_model", lambda folder: (manifest, paths["model"]))
    write_model(tmp_path / "again", run, Steering.of_multipliers({second: 2.5}))
    again = load_model_scorer(tmp_path / "again", dtype="float32", device="cpu")
    with RunReader.open(run) as reader:
        other = SteeredRewards.of(reader).rewards({second: 2.5})
    messages = [{"role": "user", "content": prompts[pair[17]]}]
    assert again.score(messages, [texts[17]])[0].reward == pytest.approx(other[17], abs=2e-5)
    manifest.config["reward_model"] = {"kind": "classifier"}
    with pytest.raises(ConfigError, match="does not read the features"):
        write_model(tmp_path / "third", run, Steering.of_multipliers({second: 2.5}))


def test_search_and_presets(home: Path, tmp_path: Path) -> None:
    found = steer(home, "--search", "domain=chat", "--budget", "0.3", "--drift", "0.3", "--save", "chat", "--json")
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert said["how"]["method"] == "search"
    assert said["how"]["bounds"]["side"] == 0.3
    assert said["specificity"]["slice"] == "domain=chat"
    again = steer(home, "--preset", "chat@1", "--json")
    assert json.loads(again.stdout)["changes"] == said["changes"]
    assert json.loads(again.stdout)["specificity"] == said["specificity"]
    shown = steer(home, "--preset", "chat", "--target", "domain=safety")
    assert "Aimed at domain=safety, held-out pairs" in shown.stdout
    assert "Specificity" in shown.stdout


def test_sarms_additive_file_says_what_it_cannot_do(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "sarm.json"
    feature = top_features(home, 1)[0]
    path.write_text(json.dumps({str(feature): ["+", 2]}), encoding="utf-8")
    done = steer(home, "--steering", str(path), "--target", "domain=chat", "--json")
    said = json.loads(done.stdout)
    weight = load_head(home / "runs" / "tiny" / "head.safetensors").weights[feature]
    assert said["specificity"]["target"]["shift"] == pytest.approx(2 * weight)
    assert said["specificity"]["complement"]["shift"] == pytest.approx(2 * weight)
    assert said["specificity"]["accuracy"]["change"] == 0
    assert "cannot change any ranking" in said["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "in one way"),
        (["--set", "1=2", "--search", "domain=chat"], 2, "in one way"),
        (["--set", "one=2"], 2, "feature=multiplier"),
        (["--set", "1=2", "--set", "1=3"], 2, "twice"),
        (["--set", "1=inf", "--target", "domain=chat"], 1, "finite number"),
        (["--set", "4800=2"], 1, "has only 48"),
        (["--set", "1=2", "--target", "domain=cars"], 1, "no slice 'domain=cars'"),
        (["--search", "domain=cars"], 1, "no slice 'domain=cars'"),
        (["--search", "domain=chat", "--budget", "0"], 2, "above 0"),
        (["--steering", "nothing.json"], 1, "cannot be read"),
        (["--preset", "nobody"], 1, "no steering 'nobody'"),
        (["--set", "1=2", "--pairs", "some"], 2, "held-out or all"),
    ],
)
def test_mistakes_are_one_sentence_and_a_code(home: Path, arguments: list[str], code: int, said: str) -> None:
    done = steer(home, *arguments)
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output


def test_nothing_is_written_into_the_run_or_over_a_folder(home: Path, tmp_path: Path) -> None:
    run = home / "runs" / "tiny"
    before = hashes(run)
    for option, name in (("-o", "x.json"), ("--write-head", "head.safetensors"), ("--write-model", "steered")):
        done = steer(home, "--set", "1=0", "--target", "domain=chat", option, str(run / name))
        assert done.exit_code == 2
        assert "a run is never changed" in done.stderr
    (tmp_path / "mine").mkdir()
    done = steer(home, "--set", "1=0", "--target", "domain=chat", "--write-model", str(tmp_path / "mine"))
    assert done.exit_code == 2
    assert "exists already" in done.stderr
    assert hashes(run) == before
