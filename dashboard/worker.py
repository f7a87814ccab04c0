"""Heavy work beside the server: one process that lives as long as the server, asked one job at a time.

A session's newer job takes the place of an older one that has not started (a slider that is dragged asks often), and
what somebody waits for with a hand on a slider goes before everything else. The server's own threads never compute: one
of them only waits for the process (dashboard/worker_process.py), which it talks to through a pipe of their own.
"""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from core.paths import ROOT
from dashboard.worker_said import Said

log = logging.getLogger("rewardscope.dashboard")

STOPPED = "The process that computes this has stopped: it was ended from outside, or memory ran out."


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
    heard: Callable[[Any], None]


class Worker:
    """A queue in front of one process. All methods may be called from any thread and return at once."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], _Job] = {}
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._closed = self._busy = False

    @property
    def process_id(self) -> int | None:
        """The id of the process, None before the first job and after it has stopped."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def ask(
        self,
        owner: str,
        slot: str,
        task: Callable[..., Any],
        *args: Any,
        done: Callable[[Outcome], None],
        urgent: bool = False,
        heard: Callable[[Any], None] = lambda said: None,
    ) -> None:
        """Queues `task(*args)`.

        Args:
            owner: the session; slot: what it is for. A job of the same owner and slot that has not started is dropped:
                its `done` is never called.
            task: a function that the other process can import; its arguments and its result are sent over.
            done: called with the outcome, from another thread.
            urgent: goes before all that is not.
            heard: called with what the task says on its way (worker_said.say), from another thread.
        """
        with self._changed:
            if self._closed:
                return
            self._waiting[owner, slot] = _Job((int(not urgent), next(self._numbers)), task, args, done, heard)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
                self._thread.start()
            self._changed.notify()

    def drop(self, owner: str, slot: str | None = None) -> None:
        """Forgets an owner's jobs that have not started: those of one slot, or all."""
        with self._changed:
            for key in [key for key in self._waiting if key[0] == owner and slot in (None, key[1])]:
                del self._waiting[key]

    def ahead(self, owner: str, slot: str) -> int | None:
        """How many jobs, the one at work included, are done before this one starts; None when it does not wait."""
        with self._changed:
            mine = self._waiting.get((owner, slot))
            if mine is None:
                return None
            return int(self._busy) + sum(job.order < mine.order for job in self._waiting.values())

    def close(self) -> None:
        """Ends the process, also in the middle of a job; nothing is answered any more."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()
            process = self._process
        if process is not None:
            process.kill()
            process.wait()

    # -------------------------------------------------------------- the one thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._waiting.pop(min(self._waiting, key=lambda key: self._waiting[key].order))
                self._busy = True
            outcome = self._do(job)
            self._busy = False
            self._deliver(job.done, outcome)

    def _deliver(self, to: Callable[[Any], None], what: Any) -> None:
        if self._closed:
            return
        try:
            to(what)
        except Exception:  # whoever asked may be gone; the others still wait
            log.exception("an answer could not be delivered")

    def _do(self, job: _Job) -> Outcome:
        restarted = self._process is not None and self._process.poll() is not None
        if restarted:
            self._stopped()
        try:
            if self._pipe is None:
                self._start()
            assert self._pipe is not None
            self._pipe.send((job.task, job.args))
            while isinstance(reply := self._pipe.recv(), Said):
                self._deliver(job.heard, reply.value)
            value, problem = reply
        except (EOFError, OSError) as error:
            if not self._closed:
                log.warning("the process that computes for the page has stopped (%r)", error)
            self._stopped()
            return Outcome(problem=STOPPED, crashed=True)
        return Outcome(value, problem, restarted=restarted)

    def _start(self) -> None:
        """Starts the process with this server's modules and nothing of what it has loaded."""
        ours, theirs = Pipe()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with theirs, self._changed:
            if self._closed:
                raise EOFError
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dashboard.worker_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
            )
        self._pipe = ours

    def _stopped(self) -> None:
        if self._pipe is not None:
            with suppress(OSError):
                self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._pipe = self._process = None


_shared: Worker | None = None
_lock = threading.Lock()


def shared() -> Worker:
    """The server's one worker; its process starts with the first job."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = Worker()
        return _shared


def close() -> None:
    """Ends the shared worker, if there is one; for the end of the server."""
    global _shared
    with _lock:
        if _shared is not None:
            _shared.close()
        _shared = None
