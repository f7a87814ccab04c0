"""The process that holds a model: what it says on its way, who waits for whom, what fails, and what follows a crash."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import yaml

from core.build import build
from core.config import load_config
from core.paths import ROOT
from core.progress import Silent
from core.rewards.decomposition import SUM_TOLERANCE
from core.rewards.score import load_scorer
from core.store.reader import RunReader
from dashboard.scoring import STEPS, ModelState, Scoring
from dashboard.scoring_process import Scored
from dashboard.worker import STOPPED, Outcome
from tests.dashboard import worker_jobs as jobs
from tests.synthetic_run import write_synthetic_run
from tests.tiny_run import write_config

LIMIT = 48
MESSAGES = [{"role": "user", "content": "w5 w6 w7 w8"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real run whose model reads at most LIMIT tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    return str(build(load_config(write_config(folder, max_length=LIMIT)), Silent()).folder)


@pytest.fixture(scope="module")
def shared() -> Iterator[Scoring]:
    one = Scoring()
    yield one
    one.close()


def wait(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(scoring: Scoring, run: str, *answers: str, owner: str = "a") -> Outcome:
    told: Queue[Outcome] = Queue()
    scoring.score(owner, run, MESSAGES, answers, begun=lambda: None, done=told.put)
    return told.get(timeout=120)


def test_the_model_is_read_step_by_step_and_scores_as_the_command_line_does(shared: Scoring, run: str) -> None:
    assert shared.state(run) == ModelState()
    assert shared.process_id is None
    seen: list[ModelState] = []
    stop = shared.listen(lambda: seen.append(shared.state(run)))
    shared.load(run)
    shared.load(run)  # a second visitor
    wait(lambda: shared.state(run).state == "ready")
    stop()
    steps = list(dict.fromkeys(state.step for state in seen if state.state == "loading" and state.step))
    assert tuple(steps) == STEPS
    shares = [state.share for state in seen if state.state == "loading"]
    assert shares == sorted(shares)
    held = shared.state(run).held
    assert held is not None
    assert (held.runs, held.limit) == ((run,), LIMIT)
    assert re.fullmatch(r"[\w.-]+, layer \d+", held.about)  # the folder's name, not where it lies
    assert held.seconds > 0

    answers = ["w10 w11 w12 w13", "w20 w21 <img src=x onerror=alert(1)> w9", "w10"]
    value = ask(shared, run, *answers).value
    assert isinstance(value, Scored)
    expected = load_scorer(Path(run)).score(MESSAGES, answers)
    for ours, theirs in zip(value.answers, expected, strict=True):
        assert ours.text == theirs.text
        assert ours.reward == pytest.approx(theirs.reward, abs=1e-5)  # the number of threads orders float32 sums
        np.testing.assert_array_equal(ours.features, theirs.features)
        np.testing.assert_allclose(ours.contributions, theirs.contributions, atol=1e-5)
        np.testing.assert_allclose(ours.token_values, theirs.tokens.values, atol=1e-4)
        assert ours.reward == pytest.approx(ours.contributions.sum(), abs=1e-12)
        assert ours.n_read == ours.n_tokens == len(theirs.tokens.token_ids)
        assert ours.prompt_dropped == 0
        assert abs(ours.model_reward - ours.reward) <= SUM_TOLERANCE
    known = shared.state(run).held
    assert known is not None
    assert known.seconds == held.seconds  # what reading it took is still known
    assert shared.process_id != os.getpid()


@pytest.mark.parametrize(
    "reward_model",
    [
        {"kind": "sarm", "sarm": {"mode": "frozen_sae", "scope": "lora", "epochs": 1, "batch": 8}},
        {"kind": "classifier", "train": {"epochs": 1}},
    ],
    ids=lambda one: str(one["kind"]),
)
def test_a_run_of_another_kind_of_model_gives_its_stored_rewards(
    shared: Scoring, tmp_path: Path, reward_model: dict[str, Any]
) -> None:
    path = write_config(tmp_path)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**raw, "reward_model": reward_model}), encoding="utf-8")
    folder = build(load_config(path), Silent()).folder
    with RunReader.open(folder) as reader:
        stored = reader.table("response").head(2)
        prompt = reader.table("pair")["prompt"][0]
    told: Queue[Outcome] = Queue()
    messages = [{"role": "user", "content": prompt}]
    shared.score("a", str(folder), messages, stored["text"].to_list(), begun=lambda: None, done=told.put)
    value = told.get(timeout=120).value
    assert isinstance(value, Scored)
    assert [one.reward for one in value.answers] == pytest.approx(stored["reward"].to_list(), abs=1e-4)
    assert np.ptp(stored["reward"].to_numpy()) > 1e-3


def test_what_does_not_fit_is_counted(shared: Scoring, run: str) -> None:
    long = " ".join(f"w{4 + i % 80}" for i in range(90))
    value = ask(shared, run, "w10 w11", long).value
    short, cut = value.answers
    assert short.n_read == short.n_tokens
    assert cut.n_read < cut.n_tokens
    assert cut.n_tokens >= 90
    assert cut.n_prompt - cut.prompt_dropped + cut.n_read == LIMIT


def test_a_refused_text_is_a_sentence_and_the_model_stays(shared: Scoring, run: str) -> None:
    ask(shared, run, "w10")
    assert ask(shared, run, "w10", " ").problem == "Answer 2 is empty; there is nothing to score."
    assert shared.state(run).state == "ready"
    assert ask(shared, run, "w10").problem == ""


def test_a_newer_request_takes_the_place_of_one_that_waits(shared: Scoring, run: str, tmp_path: Path) -> None:
    gate, told = tmp_path / "gate", Queue[Any]()
    shared._worker.ask("other", "busy", jobs.until, str(gate), done=lambda outcome: None)
    wait(lambda: not shared._worker._waiting)
    for answer in ("w10", "w11", "w12"):
        shared.score("a", run, MESSAGES, [answer], begun=lambda: None, done=lambda outcome: told.put(("a", outcome)))
    shared.score(
        "b", run, MESSAGES, ["w13"], begun=lambda: told.put("begun"), done=lambda outcome: told.put(("b", outcome))
    )
    shared.score("c", run, MESSAGES, ["w14"], begun=lambda: None, done=lambda outcome: told.put(("c", outcome)))
    assert [shared.ahead(owner) for owner in "abc"] == [1, 2, 3]
    shared.drop("c")
    assert shared.ahead("c") is None
    gate.touch()
    first, begun, second = (told.get(timeout=120) for _ in range(3))
    assert (first[0], first[1].value.answers[0].text) == ("a", "w12")
    assert begun == "begun"
    assert (second[0], second[1].value.answers[0].text) == ("b", "w13")
    assert told.empty()
    assert shared.ahead("a") is None


def test_one_model_is_held_and_another_run_takes_its_place(shared: Scoring, run: str, tmp_path: Path) -> None:
    other = str(build(load_config(write_config(tmp_path)), Silent()).folder)
    before = ask(shared, run, "w10 w30").value.answers[0].reward
    ask(shared, other, "w10 w30")
    assert shared.state(other).state == "ready"
    assert shared.state(run).state == "absent"
    assert ask(shared, run, "w10 w30").value.answers[0].reward == before
    assert [shared.state(one).state for one in (run, other)] == ["ready", "absent"]


def test_one_session_that_cannot_be_told_does_not_stop_the_others(shared: Scoring, run: str) -> None:
    def gone() -> None:
        raise RuntimeError("the session has ended")

    stop = shared.listen(gone)
    assert ask(shared, run, "w10").problem == ""
    stop()


def test_a_process_that_was_ended_is_replaced_and_a_crash_is_said(
    shared: Scoring, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = ask(shared, run, "w10 w11").value.answers[0].reward
    process = shared.process_id
    assert process is not None
    os.kill(process, signal.SIGKILL)
    wait(lambda: shared.process_id is None)
    again = ask(shared, run, "w10 w11")
    assert again.restarted
    assert again.value.answers[0].reward == pytest.approx(reward, abs=1e-12)
    assert shared.process_id not in (None, process)

    with monkeypatch.context() as patched:
        patched.setattr("dashboard.scoring_process.score", jobs.die_whatever)
        assert ask(shared, run, "w10").crashed
    assert shared.state(run) == ModelState("failed", problem=STOPPED, crashed=True)
    without = str(write_synthetic_run(tmp_path / "plain", features=40, pairs=10))
    assert "is not on this machine" in ask(shared, without, "w10").problem  # by a new process
    assert shared.state(run).crashed


def test_a_run_without_its_model_fails_in_a_sentence_and_nothing_is_fetched(tmp_path: Path) -> None:
    scoring, run = Scoring(), str(write_synthetic_run(tmp_path / "plain", features=40, pairs=10))
    scoring.load(run)
    wait(lambda: scoring.state(run).state == "failed")
    says = "The model of this run, Synthetic/Model, is not on this machine; `hf download Synthetic/Model` fetches it."
    assert scoring.state(run) == ModelState("failed", problem=says)
    scoring.close()
    assert scoring.process_id is None


def test_the_server_never_imports_torch() -> None:
    code = (
        "import sys, dashboard.scoring, dashboard.scoring_process, dashboard.parts.own_text\n"
        "print(sorted({'torch', 'transformers', 'numba'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120, check=True
    )
    assert shown.stdout.strip() == "[]"
