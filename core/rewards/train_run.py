"""From a run's configuration to a SARM folder: what `rewardscope train` does, in one process or several."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from core.build import Build
from core.build_sarm import checked
from core.config import RunConfig
from core.errors import ConfigError
from core.progress import Progress, Silent
from core.rewards.processes import is_main, main_first, own_device, wait
from core.rewards.train_sarm import train_sarm


def train_from_config(config: RunConfig, out: Path, progress: Progress) -> dict[str, Any]:
    """Reads the pairs, takes or trains the SAE as a build does, and trains the SARM model into `out`.

    What was finished before an interruption (pairs, SAE, training checkpoints) lies in `<out>.work` and `<out>.training`
    and is used again by the same call; both are removed at the end.

    Returns:
        The facts of `train_sarm`, in every process; the held-out figure only in the main one.

    Raises:
        ConfigError: the configuration asks for no SARM training, or `out` exists.
        RewardscopeError: any other sentence that says what is wrong.
    """
    sarm = config.reward_model.sarm
    if sarm is None:
        raise ConfigError(
            "There is nothing to train: set reward_model: {kind: sarm, sarm: {mode: frozen_sae}} in the configuration."
        )
    if out.exists():
        raise ConfigError(f"{out} exists; give a new folder, or remove it first.")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(out.name + ".work")
    device, heard = own_device(config.model.device), progress if is_main() else Silent()
    with main_first(device):
        build = Build(config.model_copy(update={"runs": work}), heard)
        checked(config, build.resolved.path)
        build.folder.mkdir(parents=True, exist_ok=True)
        build.read_pairs()
        sae, facts = build.pretrained_sae()
    model = config.model
    trained = train_sarm(
        sarm,
        build.resolved.path,
        sae,
        model.layer,
        build.pairs,
        out,
        heard,
        pooling=config.head.pooling,
        max_length=build.limit(),
        sae_facts=facts,
        dtype=model.dtype,
        device=model.device,
        tokens_per_batch=model.tokens_per_batch,
        name=model.name,
    )
    wait(device)
    if is_main():
        shutil.rmtree(work, ignore_errors=True)
    return trained
