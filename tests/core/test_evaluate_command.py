"""`rewardscope evaluate` on a tiny real run: rewards as the plain computation gives them, results as the rules say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from core.build import build
from core.cli import app
from core.config import load_config
from core.data.chat import encode_pair
from core.errors import DataError
from core.evaluate.benchmark_model import Weights, open_folder, open_run
from core.evaluate.items import BenchmarkItems, Item, read_items
from core.evaluate.run_benchmark import evaluate
from core.evaluate.score_items import benchmark_figures, cell_items
from core.features.extract import storable
from core.models.classifier import Classifier
from core.progress import Silent
from core.rewards.score import FeatureScorer, load_scorer
from core.store.benchmarks import (
    BenchmarkResult,
    read_activations,
    read_benchmark,
    read_benchmarks,
    read_weights,
)
from core.store.benchmarks import (
    read_items as stored_items,
)
from core.store.manifest import read_manifest
from tests.core.models.architectures import save_model
from tests.core.models.test_armorm import armorm_checkpoint, plain
from tests.tiny_run import write_config

runner = CliRunner()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    build(load_config(write_config(folder)), Silent())
    return folder / "runs"


def words(rng: np.random.Generator, n: int) -> str:
    return " ".join(f"w{i}" for i in rng.integers(4, 97, n))


@pytest.fixture(scope="module")
def rb2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RewardBench 2's own layout, every subset, with Ties and answers that are the same text."""
    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for subset in ("Factuality", "Precise IF", "Math", "Safety", "Focus"):
        for i in range(4):
            wrong = [words(rng, 8) for _ in range(3)]
            rows.append(row(f"{i}", subset, words(rng, 6), [words(rng, 9)], wrong))
    rows.append(row("same", "Focus", words(rng, 6), ["w9 w10"], ["w9 w10", "w9 w10", "w9 w10"]))
    for i in range(3):
        rows.append(row(f"ref:{i}", "Ties", words(rng, 5), [words(rng, 3)], [words(rng, 4) for _ in range(3)]))
        right = [words(rng, 3) for _ in range(2)]
        rows.append(row(f"tied:{i}", "Ties", words(rng, 5), [*right, right[0]], [words(rng, 4) for _ in range(4)]))
    path = tmp_path_factory.mktemp("data") / "test.parquet"
    pl.DataFrame(rows).write_parquet(path)
    return path


def row(number: str, subset: str, prompt: str, chosen: list[str], rejected: list[str]) -> dict[str, Any]:
    total = len(chosen) + len(rejected)
    return {
        "id": number,
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "num_correct": len(chosen),
        "total_completions": total,
        "subset": subset,
    }


def plain_reward(scorer: FeatureScorer, item: Item, position: int) -> float:
    """One answer by itself: hidden states of the single sequence, the SAE row by row, a dense mean over the answer."""
    (answer,) = encode_pair(
        scorer.backbone.tokenizer, item.messages, [item.answers[position]], max_length=scorer.max_length
    )
    (states,) = scorer.backbone.states([answer.ids])
    total = np.zeros(len(scorer.head.weights))
    for state in states[answer.answer_start :]:
        active = scorer.sae.encode(torch.atleast_2d(state))
        total[active.indices[0].numpy()] += storable(active.values[0].numpy()).astype(np.float64)
    return float(total @ scorer.head.weights / (len(answer.ids) - answer.answer_start))


def test_every_reward_is_that_of_the_plain_computation_and_the_figures_follow(runs: Path, rb2: Path) -> None:
    called = runner.invoke(app, ["evaluate", "rewardbench2", "tiny", "--data", str(rb2), "--runs", str(runs), "--json"])
    assert called.exit_code == 0, called.output
    told = json.loads(called.stdout)
    manifest = read_manifest(runs / "tiny")
    (result,) = read_benchmarks(runs, manifest.run_id)
    assert result.folder == runs / "benchmarks" / manifest.run_id / "rewardbench2"
    assert told["figures"] == result.figures
    scorer, items, stored = load_scorer(runs / "tiny"), read_items("rewardbench2", str(rb2)).items, stored_items(result)
    scale = float(np.std(np.concatenate(stored["rewards"].to_list())))
    for item, rewards in list(zip(items, stored["rewards"].to_list(), strict=True))[::3]:
        expected = [plain_reward(scorer, item, position) for position in range(len(item.answers))]
        assert rewards == pytest.approx(expected, abs=1e-5 * scale)
    # The same text has exactly the same reward, so a tie is a tie.
    same = stored.filter(item_id="Focus/same").row(0, named=True)
    assert len(set(same["rewards"])) == 1
    assert same["result"] == 0.25
    tied = stored.filter(item_id="tied:0").row(0, named=True)
    assert tied["rewards"][0] == tied["rewards"][2]
    by_hand = {}
    for subset in ("Factuality", "Precise IF", "Math", "Safety", "Focus"):
        mine = [r for item, r in zip(items, stored["rewards"].to_list(), strict=True) if item.subset == subset]
        by_hand[subset] = np.mean([(r[0] == max(r)) / r.count(max(r)) for r in mine])
    figures = {one["name"]: one for one in result.figures}
    for subset, value in by_hand.items():
        assert figures[subset]["value"] == pytest.approx(value, abs=1e-12)
        assert figures[subset]["n"] == (5 if subset == "Focus" else 4)
    assert figures["overall"]["value"] == pytest.approx(
        np.mean([*by_hand.values(), figures["Ties"]["value"]]), abs=1e-12
    )


def test_activations_are_stored_so_that_no_model_is_needed(runs: Path, rb2: Path) -> None:
    result = one_result(runs, rb2)
    activations, weights, items = read_activations(result), read_weights(result), stored_items(result)
    assert activations is not None
    assert weights is not None
    for vectors, rewards in zip(items["vectors"].to_list(), items["rewards"].to_list(), strict=True):
        for at, reward in zip(vectors, rewards, strict=True):
            features, pooled = activations.row(at)
            assert float(pooled @ weights[features]) == pytest.approx(reward, abs=1e-12)


def one_result(runs: Path, rb2: Path, tag: str = "") -> BenchmarkResult:
    manifest = read_manifest(runs / "tiny")
    name = f"rewardbench2-{tag}" if tag else "rewardbench2"
    folder = runs / "benchmarks" / manifest.run_id / name
    if not folder.is_dir():
        arguments = ["evaluate", "rewardbench2", "tiny", "--data", str(rb2), "--runs", str(runs), "--tag", tag]
        assert runner.invoke(app, arguments).exit_code == 0
    return read_benchmark(folder)


def test_a_batch_of_any_size_gives_the_same_rewards_and_results(runs: Path, rb2: Path, tmp_path: Path) -> None:
    items = read_items("rewardbench2", str(rb2))
    found = []
    for budget in (32, 4096):
        model = open_run(runs / "tiny")
        assert model.scorer is not None
        object.__setattr__(model.scorer, "tokens_per_batch", budget)
        weights = _own(model.scorer)
        result = evaluate(items, model, tmp_path / str(budget), "run", Silent(), title="t", weights=weights)
        found.append(stored_items(result))
    rewards = [np.concatenate(frame["rewards"].to_list()) for frame in found]
    for other in rewards[1:]:
        assert np.abs(other - rewards[0]).max() <= 1e-5 * rewards[0].std()
    assert all(frame["result"].equals(found[0]["result"]) for frame in found[1:])


def _own(scorer: FeatureScorer) -> Any:
    return Weights(scorer.head.weights)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    runs: Path, rb2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.evaluate import run_benchmark

    monkeypatch.setattr(run_benchmark, "PART", 12)
    items, model = read_items("rewardbench2", str(rb2)), open_run(runs / "tiny")
    assert model.scorer is not None
    done: list[int] = []  # answers of each part that was computed
    stopped: list[bool] = []
    real = run_benchmark._part

    def stops(model: Any, groups: Any) -> Any:
        if len(done) == 3 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        done.append(sum(map(len, groups)))
        return real(model, groups)

    monkeypatch.setattr(run_benchmark, "_part", stops)
    arguments: dict[str, Any] = {"title": "t", "weights": _own(model.scorer)}
    with pytest.raises(KeyboardInterrupt):
        evaluate(items, model, tmp_path, "run", Silent(), **arguments)
    assert not read_benchmarks(tmp_path, "run")
    result = evaluate(items, model, tmp_path, "run", Silent(), **arguments)
    assert sum(done) == result.facts["counts"]["different_answers"]  # nothing was computed twice
    whole = np.concatenate(stored_items(result)["rewards"].to_list())
    assert whole == pytest.approx(np.concatenate(stored_items(one_result(runs, rb2))["rewards"].to_list()), abs=1e-9)
    assert [path.name for path in result.folder.parent.iterdir()] == ["rewardbench2"]


def test_a_steering_is_scored_from_the_stored_activations(
    runs: Path, rb2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = one_result(runs, rb2)
    activations, weights = read_activations(plain), read_weights(plain)
    assert activations is not None
    assert weights is not None
    column = np.asarray(activations.matrix().tocsc().sum(axis=0)).reshape(-1)
    feature = int(np.argmax(np.abs(column * weights)))
    (tmp_path / "half.json").write_text(json.dumps({str(feature): ["*", -2]}))
    monkeypatch.setattr("core.evaluate.run_benchmark.compute", None)  # the model must not run again
    arguments = ["evaluate", "rewardbench2", "tiny", "--data", str(rb2), "--runs", str(runs), "--json"]
    called = runner.invoke(app, [*arguments, "--steering", str(tmp_path / "half.json")])
    assert called.exit_code == 0, called.output
    told = json.loads(called.stdout)
    assert told["tag"] == "half"
    assert told["changed"]["steering"]["changes"] == {str(feature): ["*", -2.0]}
    steered = stored_items(one_result(runs, rb2, "half"))
    old, new = stored_items(plain), np.concatenate(steered["rewards"].to_list())
    rows = np.concatenate(old["vectors"].to_list())
    expected = np.concatenate(old["rewards"].to_list()) - 3 * weights[feature] * np.array(
        [dict(zip(*activations.row(at), strict=True)).get(feature, 0.0) for at in rows]
    )
    assert new == pytest.approx(expected, abs=1e-9)
    assert np.abs(new - np.concatenate(old["rewards"].to_list())).max() > 1e-6


def test_a_steered_sarm_model_scores_as_the_steering_does(
    runs: Path, rb2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.rewards.steered_model import write_model
    from core.rewards.steering import Steering

    plain = one_result(runs, rb2)
    weights = read_weights(plain)
    assert weights is not None
    largest = np.argsort(-np.abs(weights))[:3].tolist()
    steering = Steering.of_multipliers(dict(zip(largest, (0.0, -1.5, 3.0), strict=True)), name="three")
    write_model(tmp_path / "steered-model", runs / "tiny", steering)
    data = ["--data", str(rb2), "--runs", str(runs), "--model", str(tmp_path / "steered-model"), "--json"]
    called = runner.invoke(app, ["evaluate", "rewardbench2", "tiny", *data])
    assert called.exit_code == 0, called.output
    told = json.loads(called.stdout)
    assert (told["tag"], told["model"]["kind"]) == ("steered-model", "sarm")
    assert told["model"]["sae_sha256"] == read_manifest(runs / "tiny").sae["sha256"]  # the run's own features
    found, activations = stored_items(one_result(runs, rb2, "steered-model")), read_activations(plain)
    assert activations is not None
    expected = activations.rewards(steering.weights(weights))[np.concatenate(stored_items(plain)["vectors"].to_list())]
    scale = float(np.std(expected))
    assert np.concatenate(found["rewards"].to_list()) == pytest.approx(expected, abs=1e-5 * scale)
    # By itself it is a model of its own.
    alone = runner.invoke(app, ["evaluate", "rewardbench2", *data[:2], "--runs", str(tmp_path), *data[4:]])
    assert json.loads(alone.stdout)["run_id"].startswith("model-")


def test_an_ordinary_reward_model_is_scored_by_its_own_head(rb2: Path, tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "rm")
    called = runner.invoke(
        app,
        ["evaluate", "rewardbench2", "--model", str(folder), "--data", str(rb2), "--runs", str(tmp_path), "--json"],
    )
    assert called.exit_code == 0, called.output
    (result,) = read_benchmarks(tmp_path)
    assert result.run_id.startswith("model-")
    assert not result.has_features
    model = open_folder(folder)
    assert isinstance(model.own, Classifier)
    items, stored = read_items("rewardbench2", str(rb2)).items, stored_items(result)
    for item, rewards in list(zip(items, stored["rewards"].to_list(), strict=True))[:6]:
        for position, reward in enumerate(rewards):
            (one,) = encode_pair(model.own.backbone.tokenizer, item.messages, [item.answers[position]], max_length=128)
            assert reward == pytest.approx(float(model.own.rewards([[one.ids]])[0]), abs=1e-5)
    refused = runner.invoke(
        app, ["evaluate", "rewardbench2", "--model", str(folder), "--data", str(rb2), "--head", str(rb2)]
    )
    assert refused.exit_code == 2
    assert "does not read features" in refused.stderr


def test_a_model_of_gated_objectives_is_scored_by_its_published_formula(rb2: Path, tmp_path: Path) -> None:
    folder = armorm_checkpoint(tmp_path)
    arguments = ["--model", str(folder), "--data", str(rb2), "--runs", str(tmp_path), "--json"]
    called = runner.invoke(app, ["evaluate", "rewardbench2", *arguments])
    assert called.exit_code == 0, called.output
    (result,) = read_benchmarks(tmp_path)
    assert (result.facts["model"]["kind"], result.has_features) == ("armorm", False)
    model = open_folder(folder)
    assert model.own is not None
    items, stored = read_items("rewardbench2", str(rb2)).items, stored_items(result)
    for item, rewards in list(zip(items, stored["rewards"].to_list(), strict=True))[:4]:
        encoded = encode_pair(model.own.backbone.tokenizer, item.messages, item.answers, max_length=128)
        expected = [plain(folder, list(one.ids))[0] for one in encoded]
        assert rewards == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert np.ptp(expected) > 1e-3


def save_classifier(folder: Path) -> Path:
    from safetensors.torch import load_file, save_file

    save_model("llama", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    torch.manual_seed(5)
    save_file({**tensors, "score.weight": torch.randn(1, 32)}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nobench", "tiny"], 2, "There is no benchmark 'nobench'"),
        (["pairs", "tiny"], 1, "Say which pairs to score"),
        (["rewardbench", "tiny", "--data", "{rb2}", "--tag", "a/b"], 2, "not usable"),
        (["rm-bench", "tiny", "--data", "{rb2}"], 1, "is no RM-Bench file: it lacks domain"),
        (["rewardbench2", "tiny", "--data", "{rb2}", "--dtype", "int8"], 2, "float32 or bfloat16"),
    ],
)
def test_what_is_wrong_is_said(runs: Path, rb2: Path, arguments: list[str], code: int, words: str) -> None:
    given = [one.format(rb2=rb2) for one in arguments]
    called = runner.invoke(app, ["evaluate", *given, "--runs", str(runs)])
    assert called.exit_code == code, called.output
    assert words in " ".join(called.stderr.split())


def test_pairs_of_ones_own_are_a_benchmark_too(runs: Path) -> None:
    pairs = runs.parent / "pairs.jsonl"
    arguments = ["evaluate", "pairs", "tiny", "--data", str(pairs), "--runs", str(runs)]
    assert "overall" in runner.invoke(app, arguments).stdout
    result = read_benchmark(runs / "benchmarks" / read_manifest(runs / "tiny").run_id / "pairs")
    stored = stored_items(result)
    rewards = [np.array(own) for own in stored["rewards"].to_list()]
    n_correct = stored["n_correct"].to_list()
    expected = [min(own[:n]) > max(own[n:]) for own, n in zip(rewards, n_correct, strict=True)]
    figures = {one["name"]: one for one in result.figures}
    assert figures["overall"]["value"] == pytest.approx(np.mean(expected))
    assert figures["overall"]["n"] == 40
    assert figures["overall"]["n_prompts"] == 20
    assert {"safety", "chat"} < figures.keys()
    # The run's own stored rewards are those of the same pairs.
    from core.store.reader import RunReader

    with RunReader.open(runs / "tiny") as reader:
        own = reader.table("response").sort("response_id")["reward"].to_numpy()
    assert np.concatenate(rewards) == pytest.approx(own, abs=1e-5 * float(np.std(own)))


def test_cells_list_the_items_their_figures_are_made_of(runs: Path, rb2: Path) -> None:
    result = one_result(runs, rb2)
    items = stored_items(result)
    rewards = [np.array(own) for own in items["rewards"].to_list()]
    for one in benchmark_figures("rewardbench2", items, rewards):
        cell = cell_items("rewardbench2", items, rewards, one.name)
        assert len(cell.index) == one.n
        if one.name not in ("overall", "Ties"):
            assert cell.result.mean() == pytest.approx(one.value, abs=1e-12)


def test_limit_keeps_both_prompts_of_a_tie(rb2: Path) -> None:
    taken: BenchmarkItems = read_items("rewardbench2", str(rb2), 12)
    ties = [item.item_id for item in taken.items if item.subset == "Ties"]
    assert ties
    assert {one.partition(":")[2] for one in ties if one.startswith("ref")} == {
        one.partition(":")[2] for one in ties if one.startswith("tied")
    }


def test_many_conversations_at_once_are_scored_as_each_alone(runs: Path) -> None:
    scorer = load_scorer(runs / "tiny")
    conversations: list[Any] = [
        ([{"role": "user", "content": "w5 w6 w7"}], ["w10 w11", " w10 w11 ", "w12"]),
        ([{"role": "user", "content": "w8"}], ["w10 w11", ""]),
        ([{"role": "user", "content": "w5 w6 w7"}], ["w12"]),
    ]
    groups = scorer.score_groups(conversations)
    for (messages, answers), scored in zip(conversations, groups, strict=True):
        assert [one.text for one in scored] == answers
        for answer, one in zip(answers, scored, strict=True):
            if answer:
                (alone,) = scorer.score(messages, [answer])
                assert one.reward == pytest.approx(alone.reward, abs=1e-6)
                assert one.tokens.char.tolist() == alone.tokens.char.tolist()
            assert one.reward == pytest.approx(float(one.pooled @ scorer.head.weights[one.features]), abs=1e-12)
    assert groups[0][2].reward == groups[2][0].reward  # computed once
    doubled = scorer.with_weights(2 * scorer.head.weights)
    assert doubled.manifest is scorer.manifest
    assert doubled.score_groups(conversations[:1])[0][0].reward == pytest.approx(2 * groups[0][0].reward)
    with pytest.raises(DataError, match="made for another"):
        scorer.with_weights(np.zeros(3))
    with pytest.raises(DataError, match="Answer 2 is empty"):
        scorer.score(conversations[0][0], ["w4", " "])
