"""The one process beside the server: order, latest wins, failures in words, a crash and what follows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest

from core.paths import ROOT
from dashboard.worker import STOPPED, Outcome, Worker
from tests.dashboard import worker_jobs as jobs


@pytest.fixture
def worker() -> Iterator[Worker]:
    one = Worker()
    yield one
    one.close()


def ask(worker: Worker, task: object, *args: object, slot: str = "slot") -> Outcome:
    answers: Queue[Outcome] = Queue()
    worker.ask("test", slot, task, *args, done=answers.put)  # type: ignore[arg-type]
    return answers.get(timeout=60)


def test_it_computes_in_another_process_that_stays(worker: Worker) -> None:
    assert worker.process_id is None
    assert ask(worker, jobs.double, 21) == Outcome(42)
    process = ask(worker, jobs.where).value
    assert process == worker.process_id != os.getpid()
    assert ask(worker, jobs.where).value == process


def test_failures_are_words_and_the_process_goes_on(worker: Worker) -> None:
    assert ask(worker, jobs.refuse) == Outcome(problem="There are no pairs; add some.")
    assert ask(worker, jobs.fail) == Outcome(problem="ZeroDivisionError: by zero")
    assert ask(worker, jobs.double, 1).value == 2


def test_what_a_task_says_on_its_way_is_heard_before_its_result(worker: Worker) -> None:
    told: Queue[object] = Queue()
    worker.ask("test", "slot", jobs.count, 3, done=lambda outcome: told.put(outcome.value), heard=told.put)
    assert [told.get(timeout=60) for _ in range(4)] == [1, 2, 3, 3]
    assert jobs.count(2) == 2  # where nobody can hear, it is just computed


def test_a_newer_job_takes_the_place_of_one_that_waits_and_urgent_ones_go_first(worker: Worker, tmp_path: Path) -> None:
    gate, answers = tmp_path / "gate", Queue[object]()

    def put(outcome: Outcome) -> None:
        answers.put(outcome.value)

    worker.ask("a", "busy", jobs.until, str(gate), done=put)
    deadline = time.monotonic() + 60
    while worker._waiting and time.monotonic() < deadline:  # until it has started
        time.sleep(0.01)
    worker.ask("a", "curve", jobs.double, 1, done=put)
    for value in range(10, 20):
        worker.ask("a", "point", jobs.double, value, done=put, urgent=True)
    worker.ask("b", "point", jobs.double, 50, done=put, urgent=True)
    worker.ask("c", "point", jobs.double, 70, done=put, urgent=True)
    worker.drop("c")
    gate.touch()
    assert [answers.get(timeout=60) for _ in range(4)] == [str(gate), 38, 100, 2]
    assert answers.empty()


def test_a_crash_is_said_and_the_next_job_gets_a_new_process(worker: Worker) -> None:
    first = ask(worker, jobs.where).value
    assert ask(worker, jobs.die) == Outcome(problem=STOPPED, crashed=True)
    again = ask(worker, jobs.where)
    assert again.value not in (None, first)
    assert not again.restarted  # the one who asked then has been told


def test_a_process_that_died_while_idle_is_replaced_and_that_is_said(worker: Worker) -> None:
    first = ask(worker, jobs.where).value
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while worker.process_id is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    outcome = ask(worker, jobs.where)
    assert outcome.value not in (None, first)
    assert outcome.restarted
    assert not ask(worker, jobs.double, 2).restarted


def test_one_who_is_gone_does_not_stop_the_others(worker: Worker) -> None:
    def gone(_: Outcome) -> None:
        raise RuntimeError("the session has ended")

    worker.ask("gone", "slot", jobs.double, 1, done=gone)
    assert ask(worker, jobs.double, 4).value == 8


def test_closing_ends_the_process_in_the_middle_of_a_job(worker: Worker, tmp_path: Path) -> None:
    process = ask(worker, jobs.where).value
    answers: Queue[Outcome] = Queue()
    worker.ask("test", "slot", jobs.until, str(tmp_path / "never"), done=answers.put)
    worker.close()
    assert not alive(process)
    worker.ask("test", "slot", jobs.double, 1, done=answers.put)
    assert answers.empty()


def test_the_process_ends_with_a_server_that_is_killed() -> None:
    code = (
        "import os, sys, threading\n"
        "from dashboard.worker import Worker\n"
        "from tests.dashboard import worker_jobs\n"
        "told = threading.Event()\n"
        "worker = Worker()\n"
        "worker.ask('a', 'b', worker_jobs.where, done=lambda outcome: (print(outcome.value, flush=True), told.set()))\n"
        "told.wait(60)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120, check=False
    )
    process, deadline = int(server.stdout), time.monotonic() + 60
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(process)


def test_neither_end_imports_torch_or_what_the_page_is_made_of() -> None:
    code = "import sys, dashboard.worker_process, dashboard.worker, dashboard.impact_tasks; print(sorted({'torch', 'panel', 'numba'} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120, check=True
    )
    assert shown.stdout.strip() == "[]"


def alive(process: int) -> bool:
    """Whether it runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
