"""Heavy work beside the server: one process that lives as long as the server, asked one job at a time.

A session's newer job takes the place of an older one that has not started (a slider that is dragged asks often), and
what somebody waits for with a hand on a slider goes before everything else. The server's own thread never computes.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from core.errors import RewardscopeError

log = logging.getLogger("rewardscope.dashboard")

NICENESS = 5
"""So that the server answers first where they share a core."""
STOPPED = "The process that computes this has stopped (it was ended from outside, or memory ran out)."


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        value: what the task returned, None when it failed.
        problem: why it failed, in words; '' when it did not.
        crashed: the process stopped while it worked on this; the next job gets a new one.
        restarted: the process had stopped before, and a new one was started for this job.
    """

    value: Any = None
    problem: str = ""
    crashed: bool = False
    restarted: bool = False


@dataclass(frozen=True)
class _Job:
    order: tuple[int, int]
    task: Callable[..., Any]
    args: tuple[Any, ...]
    done: Callable[[Outcome], None]


class Worker:
    """A queue in front of one process. All methods may be called from any thread and return at once.

    Attributes:
        crashes: how often the process has stopped without being asked to.
    """

    def __init__(self) -> None:
        self.crashes = 0
        self._lock = threading.RLock()
        self._pool: ProcessPoolExecutor | None = None
        self._waiting: dict[tuple[str, str], _Job] = {}
        self._busy = False
        self._numbers = itertools.count()

    def ask(
        self,
        owner: str,
        slot: str,
        task: Callable[..., Any],
        *args: Any,
        done: Callable[[Outcome], None],
        urgent: bool = False,
    ) -> None:
        """Queues `task(*args)`.

        Args:
            owner: the session; slot: what it is for. A job of the same owner and slot that has not started is dropped:
                its `done` is never called.
            task: a function that the other process can import; its arguments and its result are sent over.
            done: called with the outcome, from another thread.
            urgent: goes before all that is not.
        """
        with self._lock:
            self._waiting[owner, slot] = _Job((int(not urgent), next(self._numbers)), task, args, done)
            self._next()

    def drop(self, owner: str, slot: str | None = None) -> None:
        """Forgets an owner's jobs that have not started: those of one slot, or all."""
        with self._lock:
            for key in [key for key in self._waiting if key[0] == owner and slot in (None, key[1])]:
                del self._waiting[key]

    def close(self) -> None:
        """Ends the process, also in the middle of a job."""
        with self._lock:
            self._waiting.clear()
            pool, self._pool = self._pool, None
            for process in _processes(pool):
                with suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> None:
        """Starts the first job in the queue when the process is free."""
        if self._busy or not self._waiting:
            return
        key = min(self._waiting, key=lambda key: self._waiting[key].order)
        job = self._waiting.pop(key)
        future, restarted = self._submit(job)
        self._busy = True
        future.add_done_callback(lambda future: self._finished(job, future, restarted))

    def _submit(self, job: _Job) -> tuple[Future[Any], bool]:
        restarted = False
        if self._pool is not None:
            try:
                return self._pool.submit(job.task, *job.args), restarted
            except (BrokenProcessPool, RuntimeError):  # it stopped while it had nothing to do
                self._crashed()
                restarted = True
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)
        return self._pool.submit(job.task, *job.args), restarted

    def _crashed(self) -> None:
        self.crashes += 1
        log.warning("the process that computes for the page has stopped; a new one is started when it is needed")
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        self._pool = None

    def _finished(self, job: _Job, future: Future[Any], restarted: bool) -> None:
        """Reads the outcome (in a thread of the pool), starts the next job, and only then tells."""
        with self._lock:
            self._busy = False
            closed = self._pool is None
            outcome = self._outcome(future, restarted)
            if not closed:
                self._next()
        if not closed:
            job.done(outcome)

    def _outcome(self, future: Future[Any], restarted: bool) -> Outcome:
        if future.cancelled():
            return Outcome(problem=STOPPED, crashed=True)
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            if self._pool is not None:
                self._crashed()
            return Outcome(problem=STOPPED, crashed=True)
        if isinstance(error, RewardscopeError):
            return Outcome(problem=str(error), restarted=restarted)
        if error is not None:
            log.error("a task failed: %r", error, exc_info=error)
            return Outcome(problem=f"{type(error).__name__}: {error}", restarted=restarted)
        return Outcome(value=future.result(), restarted=restarted)


def _processes(pool: ProcessPoolExecutor | None) -> list[int]:
    """Ids of a pool's processes (Python 3.14 has `kill_workers`; until then they are only kept in a private place)."""
    return list(getattr(pool, "_processes", None) or {})


def _begin() -> None:
    """What the process does first: gives way to the server, and ends when the server ends in whatever way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's business
    with suppress(OSError):
        os.nice(NICENESS)
    server = multiprocessing.parent_process()
    if server is not None:
        threading.Thread(target=lambda: (server.join(), os._exit(0)), daemon=True).start()


_shared: Worker | None = None
_shared_lock = threading.Lock()


def shared() -> Worker:
    """The server's one worker; its process starts with the first job."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Worker()
        return _shared


def close() -> None:
    """Ends the shared worker, if there is one; for the end of the server."""
    global _shared
    with _shared_lock:
        if _shared is not None:
            _shared.close()
        _shared = None
