"""A served dashboard and a real Chromium without a network. Every page is checked for errors and outside requests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from core.paths import DEMO
from tests.ensure_chromium import find_chromium
from tests.synthetic_run import write_synthetic_run

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost"]
IDLE = "() => window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"

OpenPage = Callable[..., Page]

expect.set_options(timeout=60_000)  # a busy machine is slow, not wrong


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is a browser test."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `plain` and `hostile`; the shipped demo run stands beside them by itself."""
    folder = tmp_path_factory.mktemp("runs")
    write_synthetic_run(folder / "hostile", features=120, pairs=30, hostile=True)
    write_synthetic_run(folder / "plain", features=400, pairs=60)
    broken = write_synthetic_run(folder / "broken", features=20, pairs=8)
    (broken / "run-synthetic.duckdb").unlink()
    os.utime(folder / "plain" / "manifest.json", (time.time() + 60, time.time() + 60))
    return folder


@pytest.fixture(scope="session")
def server(runs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard, started the way users start it: the bare `panel` script from the repository's root."""
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log.txt"
    panel = Path(sys.executable).with_name("panel")
    command = [str(panel) if panel.exists() else str(shutil.which("panel")), "serve", "dashboard"]
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--address", "localhost", "--liveness"],
            cwd=ROOT,
            env={**os.environ, "REWARDSCOPE_RUNS": str(runs_folder)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    url, deadline = f"http://localhost:{port}", time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(url + "/liveness", timeout=1)
            break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(log.read_text(encoding="utf-8")) from None
            time.sleep(0.1)
    yield url + "/dashboard"
    process.terminate()
    process.wait(10)
    text = log.read_text(encoding="utf-8")
    for sign in ("Callback failed for object", "Error running application", "Exception in callback"):
        assert sign not in text, text  # tracebacks of closed websockets are harmless, these are not


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, server: str) -> Iterator[OpenPage]:
    """`open_page(query, width=1280, height=900)`: a loaded page; at the end nothing may have gone wrong on any."""
    problems: list[str] = []
    contexts = []

    def open_one(query: str = "?run=plain", width: int = 1280, height: int = 900, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: problems.append(f"error {error}"))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: problems.extend(outside(request.url)))
        page.goto(server + query)
        page.wait_for_function(IDLE)
        return page

    open_one.problems = problems  # type: ignore[attr-defined]
    yield open_one
    for context in contexts:
        context.close()
    # Bokeh says this when a plot goes out of view while it is being laid out; nothing is wrong then.
    harmless = "Cannot read properties of undefined (reading 'top_panel')"
    assert not [problem for problem in problems if harmless not in problem]


def outside(url: str) -> list[str]:
    """The URL when it is not ours: the page must work, and ask for nothing, without a network."""
    ours = url.startswith(("http://localhost:", "ws://localhost:", "data:", "blob:"))
    return [] if ours else [f"outside request {url}"]


@pytest.fixture(scope="session")
def demo() -> str:
    """Query of the shipped demo run."""
    assert (DEMO / "manifest.json").exists(), (
        "assets/demo is missing; `rewardscope demo` and `rewardscope export --bundle` make it"
    )
    return "?run=demo"
