"""Training: it finds planted directions, and a killed training ends as if it had never stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.config import SaeConfig
from core.errors import ConfigError, DiskFullError, ModelError
from core.progress import Silent
from core.sae import checkpoint
from core.sae.quality import sae_quality
from core.sae.topk import TopKSAE
from core.sae.train import train_sae
from tests.core.sae.planted import Planted

SMALL = SaeConfig(latents=96, k=3, learning_rate=2e-3, auxk=4, dead_after=3000)


def train(config: SaeConfig, work: Path, steps: int, source: Planted | None = None, **options: float) -> TopKSAE:
    source = source or Planted()
    return train_sae(source, config, total_steps=steps, device="cpu", work=work, progress=Silent(), **options)


def state_bytes(sae: TopKSAE) -> dict[str, bytes]:
    return {name: weight.contiguous().numpy().tobytes() for name, weight in sae.state_dict().items()}


def test_planted_directions_are_found(tmp_path: Path) -> None:
    planted = Planted()
    sae = train(SMALL, tmp_path, 400)
    closest = (planted.directions @ sae.decoder.weight).max(1).values
    assert closest.mean() > 0.9
    assert sae_quality(sae, [planted.vectors(4096, seed=10**6)]).fvu_normalised < 0.1


def test_decoder_columns_have_unit_length(tmp_path: Path) -> None:
    sae = train(SMALL, tmp_path, 27)
    torch.testing.assert_close(sae.decoder.weight.norm(dim=0), torch.ones(96))
    assert not sae.encoder.weight.requires_grad


def test_auxk_revives_dead_latents(tmp_path: Path) -> None:
    planted = Planted(offset=60)
    config = SMALL.model_copy(update={"pre_bias": "zero", "auxk": 0})
    without = train(config, tmp_path / "without", 600, planted)
    revived = train(config.model_copy(update={"auxk": 8}), tmp_path / "with", 600, planted)
    held_out = [planted.vectors(4096, seed=10**6)]
    before, after = sae_quality(without, held_out), sae_quality(revived, held_out)
    assert before.dead_fraction > 0.6
    assert after.dead_fraction < before.dead_fraction - 0.1
    assert after.fvu_normalised < before.fvu_normalised


def test_starting_at_the_mean_keeps_latents_alive(tmp_path: Path) -> None:
    planted = Planted(offset=60)
    config = SMALL.model_copy(update={"auxk": 0})
    mean = train(config, tmp_path / "mean", 100, planted)
    zero = train(config.model_copy(update={"pre_bias": "zero"}), tmp_path / "zero", 100, planted)
    held_out = [planted.vectors(4096, seed=10**6)]
    assert sae_quality(mean, held_out).dead_fraction < sae_quality(zero, held_out).dead_fraction - 0.3


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first, second = train(SMALL, tmp_path / "a", 30), train(SMALL, tmp_path / "b", 30)
    other = train(SMALL.model_copy(update={"seed": 1}), tmp_path / "c", 30)
    assert state_bytes(first) == state_bytes(second)
    assert state_bytes(first) != state_bytes(other)


def test_the_paper_schedule_ends_in_idle_steps(tmp_path: Path) -> None:
    """Its factor is 0 in the last 5 %, so weights do not move there (pre_bias sees no re-normalisation)."""

    @dataclass(frozen=True)
    class Different(Planted):
        """Other vectors in the last step."""

        def batches(self, first_step: int, position: Any = None) -> Iterator[Tensor]:
            for step, batch in enumerate(super().batches(first_step), start=first_step):
                yield batch if step < 39 else batch * 2 - 1

    paper = SMALL.model_copy(update={"schedule": "paper", "auxk": 0})
    assert torch.equal(
        train(paper, tmp_path / "a", 40).pre_bias, train(paper, tmp_path / "b", 40, Different(key="d")).pre_bias
    )


class Killed(Exception):
    """Stands for the end of the process."""


@dataclass(frozen=True)
class Mortal(Planted):
    """Dies before yielding the batch of step `dies_at`."""

    dies_at: int = 0

    def batches(self, first_step: int, position: Any = None) -> Iterator[Tensor]:
        for step, batch in enumerate(super().batches(first_step), start=first_step):
            if step == self.dies_at:
                raise Killed
            yield batch


@pytest.mark.parametrize("dies_at", [1, 2, 17, 20, 39])
def test_resuming_at_any_step_changes_nothing(tmp_path: Path, dies_at: int) -> None:
    whole = train(SMALL, tmp_path / "whole", 40)
    with pytest.raises(Killed):
        train(SMALL, tmp_path / "cut", 40, Mortal(dies_at=dies_at), checkpoint_seconds=0.0)
    assert (tmp_path / "cut" / "training.safetensors").exists()
    assert state_bytes(train(SMALL, tmp_path / "cut", 40)) == state_bytes(whole)


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    whole = train(SMALL, tmp_path, 20)
    again = train(SMALL, tmp_path, 20, Mortal(dies_at=0))
    assert state_bytes(again) == state_bytes(whole)


def test_another_configuration_starts_anew(tmp_path: Path) -> None:
    train(SMALL, tmp_path, 20)
    other = SMALL.model_copy(update={"learning_rate": 1e-3})
    assert state_bytes(train(other, tmp_path, 20)) == state_bytes(train(other, tmp_path / "fresh", 20))


def test_no_vectors_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not one vector"):
        train(SMALL, tmp_path, 0)


def test_divergence_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="diverged"):
        train(SMALL.model_copy(update={"learning_rate": 1e30}), tmp_path, 40)


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        train(SMALL, tmp_path, 40, Mortal(dies_at=10), checkpoint_seconds=0.0)
    before = (tmp_path / "training.safetensors").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(DiskFullError, match="is full"):
            train(SMALL, tmp_path, 40, checkpoint_seconds=0.0)
    assert (tmp_path / "training.safetensors").read_bytes() == before
    assert state_bytes(train(SMALL, tmp_path, 40)) == state_bytes(train(SMALL, tmp_path / "whole", 40))
