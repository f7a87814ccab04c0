"""`plan` and `impact` as a user meets them, on a real small run: files, tables, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import Result
from typer.testing import CliRunner

import core.commands.impact  # adds the verbs
from core.build import build
from core.commands.common import app
from core.commands.impact import ratios_of
from core.config import load_config
from core.errors import ConfigError
from core.progress import Silent
from core.store.manifest import read_manifest
from core.store.review import ReviewStore
from core.store.sets import FeatureSet, set_to_json
from tests.tiny_run import write_config


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run `runs/tiny` and a stored set 'mine'."""
    folder = tmp_path_factory.mktemp("home")
    build(load_config(write_config(folder)), Silent())
    ReviewStore(folder / "runs").save_set(feature_set(folder))
    return folder


def feature_set(home: Path) -> FeatureSet:
    return FeatureSet("mine", (1, 2, 3), (7, 8), read_manifest(home / "runs" / "tiny").sae["sha256"])


def run(home: Path, *arguments: object) -> Result:
    assert core.commands.impact
    return CliRunner().invoke(app, [*map(str, arguments), "--runs", str(home / "runs")])


def facts(result: Result) -> dict:  # type: ignore[type-arg]
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_plan_is_written_and_can_be_previewed_saved_and_exported(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    made = facts(run(home, "plan", "tiny", "--set", "mine", "--ratio", "20%", "-o", path, "--json"))
    file = json.loads(path.read_text())
    assert made["plan"] == file["id"]
    assert made["set"] == "mine@1"
    assert made["changed"] == len(file["pairs"]) == made["n_train"] * 20 // 100 > 0
    assert {entry["action"] for entry in file["pairs"]} == {"flip"}

    shown = facts(run(home, "impact", "tiny", "--plan", path, "--save", "--export", tmp_path / "out", "--json"))
    points = pl.DataFrame(shown["points"])
    assert points["plan"].unique(maintain_order=True).to_list() == ["none", made["plan"]]
    assert points.filter(plan=made["plan"])["domain"].to_list() == ["all", "chat", "safety"]
    assert shown["saved"] is True
    [written] = shown["exported"]
    assert "POISONED" in Path(written).name
    rows = pl.read_parquet(written)
    assert (rows["rewardscope_action"] == "flip").sum() == made["changed"]

    stored = ReviewStore(home / "runs").impact(read_manifest(home / "runs" / "tiny").run_id)
    kept = stored.filter(plan=made["plan"], domain="all").row(0, named=True)
    assert (kept["set_name"], kept["set_version"], kept["kind"]) == ("mine", 1, "preview")
    assert kept["accuracy"] == pytest.approx(points.filter(plan=made["plan"], domain="all")["accuracy"][0])

    again = run(home, "plan", "tiny", "--set", "mine", "--ratio", "20%", "-o", path)
    assert again.exit_code == 1
    assert "is there already" in again.output


def test_a_set_can_be_a_file_and_the_default_is_the_runs_own(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(set_to_json(feature_set(home)))
    by_file = facts(run(home, "plan", "tiny", "--set", path, "-o", tmp_path / "a.json", "--json"))
    by_name = facts(run(home, "plan", "tiny", "--set", "mine@1", "-o", tmp_path / "b.json", "--json"))
    assert by_file["plan"] == by_name["plan"]
    own = facts(run(home, "plan", "tiny", "-o", tmp_path / "c.json", "--json"))
    assert own["set"] is not None
    none = facts(run(home, "plan", "tiny", "--strategy", "loss", "-o", tmp_path / "d.json", "--json"))
    assert none["set"] is None


def test_a_curve_has_its_ratios_and_strategies(home: Path) -> None:
    options = ("--set", "mine", "--ratios", "10%,0.2", "--strategies", "set,random", "--seeds", 2)
    shown = facts(run(home, "impact", "tiny", *options, "--direction", "denoise", "--json"))
    points = pl.DataFrame(shown["points"]).filter(domain="all")
    assert points.select("strategy", "ratio", "seed").rows() == [
        ("none", 0.0, 0), ("set", 0.1, 0), ("set", 0.2, 0),
        ("random", 0.1, 0), ("random", 0.2, 0), ("random", 0.1, 1), ("random", 0.2, 1),
    ]  # fmt: skip
    assert set(points["action"]) == {"drop"}
    assert 0 <= shown["suspected_errors"] <= shown["plans"][0]["n_train"]
    words = run(home, "impact", "tiny", *options)
    assert words.exit_code == 0
    assert "not a retrain" in words.output
    assert "20.0%" in words.output


def test_the_build_stores_the_same_plans(home: Path) -> None:
    """The table `impact` of the run names the plan that the command line makes of the run's default set."""
    from core.store.reader import RunReader

    with RunReader.open(home / "runs" / "tiny") as reader:
        stored = reader.table("impact")
    shown = facts(run(home, "impact", "tiny", "--strategies", "set,margin,loss,length", "--json"))
    points = pl.DataFrame(shown["points"]).filter(domain="all")
    same = stored.filter((pl.col("domain") == "all") & pl.col("plan").is_in(points["plan"].implode()))
    joined = points.join(same, on="plan", suffix="_stored")
    assert set(joined["plan"]) == set(points["plan"])
    assert (joined["accuracy"] - joined["accuracy_stored"]).abs().max() == 0


def test_wrong_usage_and_failures_have_their_exit_codes(home: Path, tmp_path: Path) -> None:
    for code, says, arguments in (
        (2, "'best' is not known", ("plan", "tiny", "--strategy", "best")),
        (2, "is not a ratio", ("plan", "tiny", "--ratio", "many")),
        (2, "not between 0 and 1", ("plan", "tiny", "--ratio", "5")),
        (2, "use poison or denoise", ("impact", "tiny", "--direction", "up", "--ratios", "5%")),
        (2, "use parquet or jsonl", ("impact", "tiny", "--format", "csv")),
        (2, "writes the pairs of one plan", ("impact", "tiny", "--export", tmp_path / "x")),
        (1, "There is no set 'yours'", ("plan", "tiny", "--set", "yours")),
        (1, "There is no run", ("impact", "nowhere")),
        (1, "cannot be read", ("impact", "tiny", "--plan", tmp_path / "none.json")),
    ):
        result = run(home, *arguments)
        assert result.exit_code == code, (arguments, result.output)
        assert says in " ".join(result.output.split())
        assert "Traceback" not in result.output
    assert not (tmp_path / "x").exists()


def test_ratios_are_shares_or_per_cent() -> None:
    assert ratios_of("0.5%, 1%,0.05") == [pytest.approx(0.005), pytest.approx(0.01), 0.05]
    for bad in ("", "5%,", "120%", "-1%", "nan"):
        with pytest.raises(ConfigError):
            ratios_of(bad)
