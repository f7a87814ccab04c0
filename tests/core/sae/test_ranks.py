"""Two processes under torchrun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.progress import Silent
from core.sae.checkpoint import read_tensors
from core.sae.pretrain import pretrain
from tests.core.sae.pretraining import ROOT, kill_in_the_middle, long_config


def test_two_processes_train_the_same_sae_and_survive_a_kill(model: Path, texts: Path, tmp_path: Path) -> None:
    long, path = long_config(model, texts, tmp_path, "stream")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "core", "pretrain", str(path), "--json"]
    kill_in_the_middle(command, tmp_path / "t" / "cut" / "training.safetensors")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    two = tmp_path / "t"
    assert (two / "cut" / "sae.safetensors").read_bytes() == (two / "whole" / "sae.safetensors").read_bytes()
    printed = json.loads(done.stdout)["entries"]  # one process prints
    assert [row["name"] for row in printed] == ["whole", "cut"]

    (alone, _) = pretrain(long.model_copy(update={"out": tmp_path / "alone"}), Silent())
    ours, theirs = read_tensors(Path(alone["file"]))[0], read_tensors(two / "whole" / "sae.safetensors")[0]
    for name in ours:
        torch.testing.assert_close(theirs[name].float(), ours[name].float(), rtol=1e-2, atol=2e-3, msg=name)
    assert printed[0]["fvu_normalised"] == pytest.approx(alone["fvu_normalised"], rel=1e-3)
