"""Presentation mode takes the page's place, and gives it back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashboard.app import App
from dashboard.parts.own_text_model import OwnTextModel


@pytest.fixture
def app(synthetic: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setenv("REWARDSCOPE_RUNS", str(synthetic))
    monkeypatch.setattr("sys.argv", ["panel"])
    return App("?run=plain&view=features&f=12&steer=12:0,14:1&present=1")


def shown(app: App) -> list[str]:
    return [name for name, frame in app._frames.items() if frame.visible]


def test_a_link_opens_it_and_esc_gives_the_view_back(app: App) -> None:
    assert shown(app) == ["present"]
    assert not app._strip.visible
    assert not app._chips.visible
    assert app.bridge.present
    app.page.get_root()
    app._on_key("Escape")
    assert not app.state.present
    assert shown(app) == ["features"]
    assert app._strip.visible
    assert app._chips.visible
    assert not app.bridge.present
    assert (app.state.feature, app.state.steering) == (12, {12: 0.0, 14: 1.0})
    assert "present" not in app.bridge.search


def test_keys_that_would_leave_it_unseen_do_nothing(app: App) -> None:
    for key in ("j", "ArrowDown", "1", "4", "+", "0"):
        app._on_key(key)
    assert shown(app) == ["present"]
    assert (app.state.view, app.state.feature) == ("features", 12)
    app._on_key("r")
    assert app.state.reveal


def test_the_badge_says_how_many_features_are_steered(app: App) -> None:
    presentation = app._views["present"]
    assert "Steered: 1 feature<" in presentation._head.object  # type: ignore[attr-defined]
    app.state.live_steering = {12: 0.0, 14: 2.0}
    assert "Steered: 2 features" in presentation._head.object  # type: ignore[attr-defined]
    app.state.steering = {}
    assert "Steered" not in presentation._head.object  # type: ignore[attr-defined]


def test_both_forms_share_one_text(app: App) -> None:
    assert app.reader is not None
    model = OwnTextModel.of(app.state, app.reader)
    model.write("a prompt", ["an answer"], None)
    assert app._views["present"]._text.model is model  # type: ignore[attr-defined]
    assert app._views["present"]._text._editor.content["prompt"] == "a prompt"  # type: ignore[attr-defined]
