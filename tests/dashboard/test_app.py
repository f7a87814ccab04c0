"""The page around the views."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from dashboard import app_hooks, runs
from dashboard.app import App
from tests.synthetic_run import write_synthetic_run


@pytest.fixture
def at(synthetic: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REWARDSCOPE_RUNS", str(synthetic))
    monkeypatch.setattr("sys.argv", ["panel"])
    return synthetic


def texts(app: App) -> str:
    """All HTML of the main area."""
    return " ".join(
        pane.object for pane in app.page.select(lambda part: isinstance(getattr(part, "object", None), str))
    )


def test_it_opens_the_run_feature_and_view_of_the_link(at: Path) -> None:
    app = App("?run=plain&f=12&view=features")
    assert (app.state.run, app.state.feature) == ("plain", 12)
    assert app.reader is not None
    assert app.bridge.search == "?run=plain&f=12"
    app.page.get_root()


def test_without_a_name_it_opens_the_newest_run(at: Path) -> None:
    newest = at / "plain" / "manifest.json"
    os.utime(newest, (time.time() + 60, time.time() + 60))
    assert App("").state.run == "plain"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("?run=nothing", "There is no run “nothing” here"),
        ("?run=plain&f=100000", "This run has no feature 100000"),
        ("?run=plain&p=none", "This run has no pair “none”"),
        ("?run=plain&cluster=77", "no cluster 77"),
        ("?run=plain&sort=x", "was ignored"),
    ],
)
def test_what_a_link_cannot_have_is_a_notice_not_an_error(at: Path, query: str, says: str) -> None:
    app = App(query)
    assert app.reader is not None
    assert len(app.state.notices) == 1
    assert says in app.state.notices[0]


def test_an_empty_folder_says_how_to_make_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDSCOPE_RUNS", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["panel"])
    monkeypatch.setattr(runs, "names", list)
    assert "rewardscope demo" in texts(App(""))


def test_a_damaged_run_is_a_sentence_and_the_others_still_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDSCOPE_RUNS", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["panel"])
    write_synthetic_run(tmp_path / "good", features=20, pairs=8)
    bad = write_synthetic_run(tmp_path / "bad", features=20, pairs=8)
    (bad / "run-synthetic.duckdb").unlink()
    app = App("?run=bad")
    assert "cannot be shown" in texts(app)
    assert "build the run again" in texts(app)
    assert set(app.names) >= {"good", "bad"}
    assert App("?run=good").reader is not None


def test_runs_come_from_the_command_line_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDSCOPE_RUNS", str(tmp_path / "a"))
    monkeypatch.setattr("sys.argv", ["main.py"])
    assert runs.folder() == tmp_path / "a"
    monkeypatch.setattr("sys.argv", ["main.py", "--runs", str(tmp_path / "b"), "--other"])
    assert runs.folder() == tmp_path / "b"


def test_sessions_share_one_reader_until_a_run_is_built_again(at: Path) -> None:
    assert runs.reader("plain") is runs.reader("plain")


def test_keys_do_what_the_sheet_says(at: Path) -> None:
    app = App("?run=plain")
    app._on_key("j")
    first = app.state.feature
    assert first is not None
    app._on_key("ArrowDown")
    assert app.state.feature != first
    app._on_key("k")
    assert app.state.feature == first
    app._on_key("?")
    assert app.help.open
    app._on_key("Escape")
    assert not app.help.open
    assert app.state.feature == first
    app._on_key("Escape")
    assert app.state.feature is None
    app._on_key("r")
    assert app.state.reveal
    assert app.bridge.reveal
    assert "reveal" not in app.bridge.search


@pytest.mark.parametrize("query", ["?run=plain&dark=1", "?run=plain&theme=dark"])
def test_the_theme_is_one_value_for_page_map_and_link(at: Path, query: str) -> None:
    app = App(query)
    assert app.page.dark_theme
    assert app.bridge.search == "?run=plain&dark=1"
    app.page.dark_theme = False
    assert not app.state.dark
    assert not app.bridge.dark
    assert "dark" not in app.bridge.search


def test_views_take_turns_and_are_built_once(at: Path) -> None:
    app = App("?run=plain")
    features = app._views["features"]
    app.state.view = "pairs"
    assert not app._frames["features"].visible
    assert app._frames["pairs"].visible
    app.state.view = "features"
    assert app._views["features"] is features
    assert app._frames["features"].visible


def test_every_answer_carries_the_security_headers() -> None:
    seen: dict[str, str] = {}

    class Handler:
        set_header = staticmethod(lambda name, value: seen.__setitem__(name, value))

    from panel.io.server import DocHandler

    handler: Any = Handler()
    try:
        DocHandler.set_default_headers(handler)
    except AttributeError:  # the framework's own part needs a request
        pytest.fail("headers could not be set")
    assert seen["Content-Security-Policy"] == app_hooks.CONTENT_SECURITY_POLICY
    assert "script-src-attr 'none'" in seen["Content-Security-Policy"]
    assert "unsafe-eval" not in seen["Content-Security-Policy"]
