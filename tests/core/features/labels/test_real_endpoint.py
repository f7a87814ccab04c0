"""Labels from a real server and a real model: `transformers serve` with the embedded model, over HTTP on this machine.

The model is far too small for the task, so what is tested is the truth about its replies: each is what was asked for, or
missing with the reason, and nothing is in between.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.features.labels.endpoint import Endpoint, EndpointSettings, Reply
from core.features.labels.labeller import Job, Summary, label_features
from core.features.labels.passages import feature_passages
from core.features.labels.prompts import Messages
from core.features.labels.replies import ReplyError, read_label, read_numbers
from core.progress import Silent
from core.store.reader import RunReader
from tests.core.features.labels.planted import OFTEN, SORRY

pytestmark = [pytest.mark.slow, pytest.mark.model]
STARTED_WITHIN = 180.0


@pytest.fixture(scope="module")
def url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a server with the embedded model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-c", serve, "serve", str(smollm2), *options],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until_up(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_until_up(health: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"no server within {STARTED_WITHIN:g} s: {log.read_text(errors='replace')[-2000:]}")


class Recording(Endpoint):
    """The endpoint, which also remembers what came."""

    def __init__(self, settings: EndpointSettings) -> None:
        super().__init__(settings)
        self.replies: list[tuple[str, Reply]] = []

    async def ask(self, messages: Messages, name: str, schema: dict[str, Any]) -> Reply:
        reply = await super().ask(messages, name, schema)
        self.replies.append((name, reply))
        return reply


def test_each_reply_is_what_was_asked_for_or_missing_with_its_problem(
    url: str, smollm2: Path, reader: RunReader
) -> None:
    [unlabelled, labelled] = feature_passages(reader, [SORRY, OFTEN], shown=5, scored=20)
    jobs = [Job(unlabelled), Job(labelled, "the word river", {"text": "the word river", "problem": None})]
    saved: dict[int, dict[str, Any]] = {}

    async def work() -> tuple[Summary, list[tuple[str, Reply]]]:
        settings = EndpointSettings(url, str(smollm2), max_tokens=24, concurrency=1, retries=1, timeout=240)
        async with Recording(settings) as endpoint:
            summary = await label_features(
                jobs, endpoint, lambda row: saved.update({row["feature_id"]: dict(row)}), Silent(), score=True
            )
            return summary, endpoint.replies

    summary, replies = asyncio.run(work())
    assert all(reply.answered for _, reply in replies), replies  # the server answered every request
    assert all(reply.prompt_tokens and reply.completion_tokens for _, reply in replies)
    assert summary.prompt_tokens == sum(reply.prompt_tokens or 0 for _, reply in replies)

    [reply] = [reply for name, reply in replies if name == "label"]
    row, read = saved[SORRY], read_label(reply.content or "")
    assert (row["text"], row["safety_rating"], row["monosemanticity"]) == (
        read.text,
        read.safety_rating,
        read.monosemanticity,
    )
    whole = None not in (row["text"], row["safety_rating"], row["monosemanticity"])
    assert whole or row["problem"]

    verdicts = [reply for name, reply in replies if name == "numbers"]
    usable = sum(is_usable(reply) for reply in verdicts)
    row = saved[OFTEN]
    assert row["text"] == "the word river"
    asked = len(labelled.detection) + len(labelled.fuzzing)
    judged = row["detection_n"] + row["fuzzing_n"]
    assert (judged == 0) == (usable == 0 or row["text"] is None)
    assert judged <= asked
    for kind in ("detection", "fuzzing"):
        assert (row[f"{kind}_score"] is None) == (row[f"{kind}_n"] == 0)
    assert judged == asked or "without a usable answer" in row["problem"]


def is_usable(reply: Reply) -> bool:
    try:
        read_numbers(reply.content or "", 20)
    except ReplyError:
        return False
    return True
