"""`rewardscope label` as a user meets it, against a real server on this machine."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from core.cli import app
from core.commands.label import feature_ids, is_local
from core.errors import ConfigError
from core.store.review import ReviewStore
from core.store.sets import FeatureSet
from tests.core.features.labels import planted
from tests.core.features.labels.planted import DEAD, OFTEN, RARE, SAE, SORRY, Server, knows_sorry, serving

KEY = "sk-never-shown"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.write_planted_run(tmp_path_factory.mktemp("run") / "planted")


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "runs" / "planted")
    return tmp_path / "runs"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with serving(knows_sorry) as server:
        yield server


def invoke(runs: Path, *arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(app, ["label", "planted", "--runs", str(runs), *arguments], input=answer)


def label(runs: Path, server: Server, *arguments: str) -> dict[str, Any]:
    done = invoke(runs, "--base-url", server.url, "--model", "m", "--yes", "--json", "--retries", "0", *arguments)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_labels_rates_scores_and_stores(runs: Path, server: Server) -> None:
    facts = label(runs, server, "--features", f"{SORRY},{RARE},{DEAD}")
    assert facts["features"] == {"chosen": 3, "by": "id", "to_do": 1, "finished": 0, "too_few_passages": 2}
    assert facts["done"]["labelled"] == facts["done"]["rated"] == facts["done"]["scored"] == 1
    assert facts["estimate"]["requests"] == facts["done"]["requests"] == len(server.bodies) == 5
    [row] = ReviewStore(runs).labels(SAE).iter_rows(named=True)
    assert (row["feature_id"], row["source"], row["run_id"], row["text"]) == (SORRY, "m", "planted", "the word sorry")
    assert (row["safety_rating"], row["monosemanticity"], row["problem"]) == (5, 4, None)
    assert (row["detection_score"], row["detection_n"], row["fuzzing_score"], row["fuzzing_n"]) == (1, 40, 1, 40)


def test_a_second_run_asks_only_for_what_is_missing(runs: Path, server: Server) -> None:
    def broken(body: dict[str, Any]) -> Any:
        first = planted.passages_of(body)[0]
        return "no idea" if "⟪river⟫" in first or "⟪ river⟫" in first else knows_sorry(body)

    server.answer = broken
    chosen = ("--features", f"{SORRY},{OFTEN}")
    first = label(runs, server, *chosen)
    assert (first["done"]["labelled"], list(first["done"]["problems"])) == (1, [str(OFTEN)])
    server.answer = knows_sorry
    asked = len(server.bodies)
    second = label(runs, server, *chosen)
    assert (second["features"]["finished"], second["features"]["to_do"]) == (1, 1)
    assert second["done"]["requests"] == len(server.bodies) - asked == 5
    assert any("river⟫" in passage for passage in planted.passages_of(server.bodies[asked]))
    third = label(runs, server, *chosen)
    assert (third["features"]["finished"], third["done"]["requests"]) == (2, 0)
    assert label(runs, server, *chosen, "--again")["done"]["requests"] == 10


def test_scores_can_follow_later(runs: Path, server: Server) -> None:
    chosen = ("--features", str(SORRY))
    assert label(runs, server, *chosen, "--no-score")["done"]["requests"] == 1
    assert label(runs, server, *chosen, "--no-score")["done"]["requests"] == 0
    later = label(runs, server, *chosen)
    assert (later["done"]["requests"], later["done"]["scored"]) == (4, 1)
    [row] = ReviewStore(runs).labels(SAE).iter_rows(named=True)
    assert (row["safety_rating"], row["detection_score"], row["prompt_tokens"]) == (5, 1, 500)


def test_the_key_is_sent_and_neither_printed_nor_stored(runs: Path, server: Server) -> None:
    done = invoke(runs, "--base-url", server.url, "--model", "m", "--yes", "--features", str(SORRY))
    assert done.exit_code == 0, done.output
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    server.answer = lambda _: (401, json.dumps({"error": {"message": f"bad key {KEY}"}}), {})
    failed = invoke(runs, "--base-url", server.url, "--model", "other", "--yes", "--features", str(SORRY))
    assert failed.exit_code == 1
    assert "refuses the key" in failed.output
    assert KEY not in done.output + failed.output
    stored = [path.read_bytes() for path in runs.glob("review.sqlite*")]
    assert stored
    assert not any(KEY.encode() in data for data in stored)


def test_another_variable_can_hold_the_key(runs: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-mine")
    label(runs, server, "--features", str(SORRY), "--no-score", "--key-env", "MY_KEY")
    assert server.headers[0]["authorization"] == "Bearer sk-mine"


def test_a_dry_run_prints_cost_and_one_request_and_asks_nothing(runs: Path, server: Server) -> None:
    arguments = ("--base-url", server.url, "--model", "m", "--features", str(SORRY), "--dry-run")
    done = invoke(runs, *arguments, "--price-in", "3", "--price-out", "15")
    assert done.exit_code == 0, done.output
    assert "5 requests" in done.stdout
    assert "price at most" in done.stdout
    assert "⟪ sorry⟫" in done.stdout
    assert "--- system ---" in done.stdout
    facts = json.loads(invoke(runs, *arguments, "--json").stdout)
    assert facts["estimate"]["price"] is None
    assert [message["role"] for message in facts["request"]] == ["system", "user"]
    assert server.bodies == []
    assert not (runs / "review.sqlite").exists()


def test_it_asks_before_it_starts(runs: Path, server: Server) -> None:
    arguments = ("--base-url", server.url, "--model", "m", "--features", str(SORRY), "--no-score")
    assert invoke(runs, *arguments, answer="n\n").exit_code == 1
    assert server.bodies == []
    assert invoke(runs, *arguments, answer="y\n").exit_code == 0
    assert len(server.bodies) == 1
    assert invoke(runs, *arguments, "--json").exit_code == 2


def test_features_of_a_set_and_the_largest(runs: Path, server: Server) -> None:
    ReviewStore(runs).save_set(FeatureSet("safety", (SORRY,), (OFTEN,), SAE))
    dry = ("--base-url", server.url, "--model", "m", "--dry-run", "--json")
    by_set = json.loads(invoke(runs, *dry, "--set", "safety").stdout)
    assert (by_set["features"]["chosen"], by_set["features"]["by"]) == (2, "set 'safety'")
    largest = json.loads(invoke(runs, *dry, "--top", "7").stdout)
    assert (largest["features"]["chosen"], largest["features"]["by"]) == (
        7,
        "largest |w|, for this run has no salience",
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--base-url", "http://x/v1"], "--model"),
        (["--model", "m"], "OPENAI_BASE_URL"),
        (["--model", "m", "--base-url", "ftp://x"], "address"),
        (["--model", "m", "--base-url", "http://me:secret@x/v1"], "user name"),
        (["--model", "offline", "--base-url", "http://x/v1"], "another name"),
        (["--model", "m", "--base-url", "http://x/v1", "--yes", "--features", "1", "--top", "3"], "one way"),
        (["--model", "m", "--base-url", "http://x/v1", "--yes", "--features", "1,x"], "12,40-45"),
        (["--model", "m", "--base-url", "http://x/v1", "--yes", "--features", "64"], "no feature 64"),
    ],
)
def test_wrong_usage_is_said_in_one_sentence(
    runs: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    done = invoke(runs, *arguments)
    assert done.exit_code == 2, done.output
    assert says in done.output
    assert "secret" not in done.output


def test_it_says_where_passages_go(runs: Path) -> None:
    done = invoke(runs, "--model", "m", "--base-url", "http://api.example.org/v1", "--features", "0", "--dry-run")
    assert "are sent to api.example.org" in done.output
    assert "unencrypted" in done.output
    assert [is_local(host) for host in ("localhost", "127.0.0.9", "::1", "10.0.0.1", "localhost.evil.org")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_ids_are_read_as_written() -> None:
    assert feature_ids("12, 40-42,#7,12") == [12, 40, 41, 42, 7]
    for wrong in ("", "a", "5-2", "-1", "1;2", "0-99999999"):
        with pytest.raises(ConfigError):
            feature_ids(wrong)


def test_answers_are_stored_when_they_arrive(runs: Path, server: Server) -> None:
    """The endpoint breaks down after the first feature: what was answered before is kept."""

    def answer(body: dict[str, Any]) -> Any:
        stored = ReviewStore(runs).labels(SAE)
        return (401, "{}", {}) if len(stored) else knows_sorry(body)

    server.answer = answer
    arguments = (
        "--base-url",
        server.url,
        "--model",
        "m",
        "--yes",
        "--features",
        f"{SORRY},{OFTEN}",
        "--concurrency",
        "1",
    )
    done = invoke(runs, *arguments)
    assert done.exit_code == 1
    with contextlib.closing(sqlite3.connect(runs / "review.sqlite")) as db:
        assert db.execute("SELECT text FROM label").fetchall() == [("the word sorry",)]
