"""`rewardscope sets` on a real tiny run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.build import build
from core.config import load_config
from core.progress import Silent
from tests.tiny_run import write_config


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    config = load_config(write_config(folder))
    build(config.model_copy(update={"runs": folder / "runs"}), Silent())
    return folder


def sets(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "core", "sets", *arguments]
    path = os.environ.get("PYTHONPATH")
    here = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": here if not path else f"{here}{os.pathsep}{path}"}
    return subprocess.run(command, cwd=home, capture_output=True, text=True, check=False, env=environment)


def test_made_listed_exported_and_imported_it_is_the_same_set(home: Path, tmp_path: Path) -> None:
    made = sets(home, "make", "first", "--size", "6", "--json")
    assert made.returncode == 0, made.stderr
    one = json.loads(made.stdout)
    assert 1 <= len(one["s_plus"]) + len(one["s_minus"]) <= 6
    assert one["how"]["slice"] == "split=train"
    assert sets(home, "export", "first", str(tmp_path / "set.json")).returncode == 0
    assert sets(home, "import", str(tmp_path / "set.json")).returncode == 0
    listed = json.loads(sets(home, "list", "--json").stdout)
    assert [(entry["name"], entry["version"]) for entry in listed] == [("first", 2)]
    assert (listed[0]["s_plus"], listed[0]["s_minus"]) == (one["s_plus"], one["s_minus"])
    assert listed[0]["how"]["method"] == "import"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["make", "x", "--slice", "domain=nothing"], 1, "No feature of slice 'domain=nothing' passes"),
        (["make", "x", "--order", "luck"], 2, "use s, effect_size or effect"),
        (["make", "x", "--min-rating", "5"], 1, "rate them with `rewardscope label`"),
        (["export", "nobody", "set.json"], 1, "There is no set 'nobody'"),
        (["import", "nothing.json"], 1, "cannot be read"),
    ],
)
def test_mistakes_are_one_sentence_and_a_code(home: Path, arguments: list[str], code: int, said: str) -> None:
    done = sets(home, *arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert said in done.stderr
