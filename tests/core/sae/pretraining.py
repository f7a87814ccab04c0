"""A small pretraining, and a way to kill one in the middle."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from core.errors import RewardscopeError
from core.sae.checkpoint import read_tensors
from core.sae.pretrain import PretrainConfig

ROOT = Path(__file__).parents[3]
SAE = {"latents": 64, "k": 4, "batch": 32, "learning_rate": 2e-3, "auxk": 4, "dead_after": 300}
STEPS = 100
TWICE = ({"name": "whole"}, {"name": "cut"})
"""The same SAE two times: the second is killed on its way."""


def small_config(model: Path, texts: Path, out: Path, *table: dict[str, Any], **sae: Any) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "name": "t",
            "out": out,
            "model": {"name": str(model), "layer": 2, "dtype": "float32", "device": "cpu"},
            "sae": {**SAE, **sae},
            "texts": [str(texts)],
            "table": table,
        }
    )


def long_config(model: Path, texts: Path, tmp_path: Path, vectors: str) -> tuple[PretrainConfig, Path]:
    """Two times 100 steps that write their state all the time, and the same as a file."""
    long = small_config(model, texts, tmp_path, *TWICE, vectors=vectors, max_tokens=32 * STEPS, checkpoint_seconds=0)
    return long, write_config(long, tmp_path)


def write_config(config: PretrainConfig, folder: Path) -> Path:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def kill_in_the_middle(command: list[str], state: Path) -> None:
    """Runs a command and kills it and its children (-9) once the state is some steps old."""
    child = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and child.poll() is None and step_of(state) < 20:
            time.sleep(0.005)
    finally:
        for process in [child, *(child.children(recursive=True) if child.is_running() else [])]:
            process.kill()  # torchrun's workers are not in its process group
        errors = child.communicate()[1].decode()
    assert child.returncode == -signal.SIGKILL, errors[-2000:]
    assert 20 <= step_of(state) < STEPS


def step_of(state: Path) -> int:
    try:
        return int(read_tensors(state)[1]["step"])
    except RewardscopeError:
        return 0
