"""Training a TopK SAE: Adam on the normalised MSE, resumable at any moment with a bit-identical result."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from core.config import SaeConfig, fingerprint
from core.errors import ConfigError, ModelError
from core.progress import Progress
from core.sae.checkpoint import read_tensors, write_tensors
from core.sae.gradients import loss_and_gradients
from core.sae.ranks import ALONE, Ranks
from core.sae.schedule import lr_factor
from core.sae.screening import multiplies_bf16_fast
from core.sae.sparse import grouped_top
from core.sae.topk import TopKSAE, normalise

NORM_EVERY = 10
"""Decoder columns return to unit length after steps 0, 10, 20, … (as the papers' code does), and at the end."""


class VectorSource(Protocol):
    """An endless, replayable stream of training vectors.

    Attributes:
        d: width of the vectors.
        key: changes whenever the vectors or their order do; a training is resumed only under the same key.
        position: a JSON value that helps to find the batches after the last one given; None where none is needed.
    """

    @property
    def d(self) -> int: ...

    @property
    def key(self) -> str: ...

    @property
    def position(self) -> Any: ...

    def batches(self, first_step: int, position: Any = None) -> Iterator[Tensor]:
        """The [batch, d] hidden states (any floating dtype, on the CPU) of step `first_step` and of every step after
        it: the same values however often and from wherever the stream is taken up. Of several ranks each gets its
        share of a batch; together they get the batch."""
        ...


def train_sae(
    source: VectorSource,
    config: SaeConfig,
    *,
    total_steps: int,
    device: torch.device | str,
    work: Path,
    progress: Progress,
    checkpoint_seconds: float = 60.0,
    start: TopKSAE | None = None,
    ranks: Ranks = ALONE,
) -> TopKSAE:
    """Trains an SAE and returns it on `device`, without gradients, float32, decoder columns of unit length.

    Every `checkpoint_seconds` the whole state goes to `work/training.safetensors`. A call that finds it (same
    configuration, source and number of steps) goes on from there; the result is the same, bit for bit on one machine,
    as if never stopped.

    The k latents of a vector are chosen from pre-activations in bf16 where the device multiplies bf16 fast; their
    values, the loss, the gradients and the weights are float32.

    Of several ranks each computes the gradient of its share of a batch; the sum moves the same weights on all of them.
    The first writes the checkpoint and the others get it from there; another number of ranks may go on from it.

    Args:
        source: where vectors come from.
        config: latents, k, learning_rate, schedule, pre_bias, auxk, dead_after and seed are read here.
        total_steps: optimiser steps, which also fixes the schedule.
        work: folder of the checkpoint; the caller removes it when the SAE is stored.
        progress: gets the task `sae training`, counted in steps.
        start: weights to go on from instead of new ones (SARM's sequence-level adaptation of a token-level SAE); of
            the same d and M. Its pre-bias stays as it is.

    Raises:
        ConfigError: no steps to do, or k does not fit.
        ModelError: the loss is no longer finite, or a vector is not.
        DiskFullError: no room for the checkpoint.
    """
    if total_steps < 1:
        raise ConfigError("There is not one vector to train the SAE on; give sae.texts, or set sae.use_pairs.")
    sae = TopKSAE(source.d, config.latents, config.k, seed=config.seed)
    if start is not None:
        sae.load_state_dict(start.state_dict())
    run = SaeTraining(sae.to(device), config, total_steps, ranks)
    path = work / "training.safetensors"
    settings = config.model_dump(exclude={"texts", "checkpoint", "start", "held_out", "checkpoint_seconds"})
    key = fingerprint(source.key, source.d, total_steps, settings, *([] if start is None else [_weights_hash(start)]))
    position = run.resume(path, key)
    saved = time.monotonic()
    batches = source.batches(run.step, position)
    if run.step == 0 and config.pre_bias == "mean" and start is None:
        first = next(batches)
        run.centre(first)
        batches = chain([first], batches)
    with progress.task("sae training", total_steps, "steps") as task:
        task.advance(run.step)
        while run.step < total_steps:
            loss = run.advance(next(batches))
            task.advance()
            last = run.step == total_steps
            due = ranks.first and (last or time.monotonic() - saved >= checkpoint_seconds)
            if (due or last or run.step % NORM_EVERY == 0) and not torch.isfinite(loss):
                raise ModelError(f"SAE training diverged at step {run.step}; lower sae.learning_rate and build again.")
            if due:
                run.save(path, key, source.position)
                saved = time.monotonic()
    sae.unit_norm_decoder()
    return sae.requires_grad_(False)


def _weights_hash(sae: TopKSAE) -> str:
    digest = hashlib.sha256()
    for weight in sae.state_dict().values():
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class SaeTraining:
    """The state of a training (weights, Adam's moments, counters) and one step of it."""

    def __init__(self, sae: TopKSAE, config: SaeConfig, total: int, ranks: Ranks = ALONE) -> None:
        self.sae, self.config, self.total, self.ranks = sae, config, total, ranks
        self.step = 0
        self.since_active = torch.zeros(sae.latents, dtype=torch.int64, device=sae.pre_bias.device)
        decoder_rows = torch.nn.Parameter(sae.decoder_rows.detach())  # shares the decoder's memory
        self.weights = {
            "encoder": sae.encoder.weight,
            "decoder": decoder_rows,
            "latent_bias": sae.latent_bias,
            "pre_bias": sae.pre_bias,
        }
        self.adam = torch.optim.Adam(self.weights.values(), lr=config.learning_rate, betas=(0.9, 0.999), fused=True)
        self.coarse = torch.bfloat16 if multiplies_bf16_fast(sae.pre_bias.device) else torch.float32
        self.coarse_encoder = torch.empty_like(sae.encoder.weight, dtype=self.coarse, requires_grad=False)
        self.buffer = self.pre = torch.empty(0)

    @torch.no_grad()
    def centre(self, batch: Tensor) -> None:
        """Starts the pre-bias at the batch's mean, so that no latent spends itself on what all vectors share."""
        h = normalise(batch.to(self.sae.pre_bias.device)).h
        self.sae.pre_bias.copy_(self.ranks.sum(h.sum(0)) / self._over_ranks(len(h)))

    @torch.no_grad()
    def advance(self, batch: Tensor) -> Tensor:
        """One optimiser step on hidden states [n, d], this rank's share of the batch; returns the batch's loss."""
        sae = self.sae
        h = normalise(batch.to(sae.pre_bias.device)).h.float()
        active = self._choose(h)
        revived = self._dead_choice() if self.config.auxk else None
        gradients = loss_and_gradients(sae, h, active, revived, self.ranks.sum)
        for name, weight in self.weights.items():
            weight.grad = self.ranks.sum(getattr(gradients, name))
        factor = lr_factor(self.config.schedule, self.step, self.total)
        self.adam.param_groups[0]["lr"] = self.config.learning_rate * factor
        self.adam.step()
        if self.step % NORM_EVERY == 0:
            sae.unit_norm_decoder()
        self.since_active += self._over_ranks(len(h))
        self.since_active[active.reshape(-1)] = 0
        self.ranks.least(self.since_active)
        self.step += 1
        return self.ranks.sum(gradients.loss)

    def _over_ranks(self, n: int) -> int:
        return n if self.ranks.size == 1 else int(self.ranks.sum(torch.tensor(n, device=self.ranks.device)))

    def _choose(self, h: Tensor) -> Tensor:
        """The k strongest latents of each vector [n, k]; leaves the coarse pre-activations in self.pre for AuxK."""
        if len(self.buffer) < len(h):  # one for all steps: fresh memory costs more than the product
            self.buffer = torch.empty(len(h), self.sae.latents, dtype=self.coarse, device=h.device)
        self.pre = self.buffer[: len(h)]
        self.coarse_encoder.copy_(self.sae.encoder.weight)
        u = (h - self.sae.pre_bias).to(self.coarse)
        torch.addmm(self.sae.latent_bias.to(self.coarse), u, self.coarse_encoder.T, out=self.pre)
        return grouped_top(self.pre, self.sae.k)[1]

    def _dead_choice(self) -> Tensor | None:
        """The strongest dead latents of each vector [n, a], a <= auxk; None when all are alive."""
        dead = (self.since_active > self.config.dead_after).nonzero().squeeze(1)
        if not len(dead):
            return None
        best = self.pre[:, dead].topk(min(self.config.auxk, len(dead)), dim=1, sorted=False).indices
        return dead[best]

    def save(self, path: Path, key: str, position: Any = None) -> None:
        """Writes the whole state, the decoder as it is: scaling it here would change what a resumed training gives."""
        tensors = {"since_active": self.since_active}
        for name, weight in self.weights.items():
            state = self.adam.state[weight]
            tensors |= {name: weight.detach(), f"{name}.m": state["exp_avg"], f"{name}.v": state["exp_avg_sq"]}
        write_tensors(path, tensors, {"key": key, "step": str(self.step), "position": json.dumps(position)})

    @torch.no_grad()
    def resume(self, path: Path, key: str) -> Any:
        """Takes up the state in `path` if it belongs to this very training; else starts at step 0.

        Only the first rank reads; all end with its state. Returns the source's position.
        """
        tensors, facts = self._stored(path, key) if self.ranks.first else ({}, {})
        step, position = self.ranks.agree([int(facts.get("step", 0)), json.loads(facts.get("position", "null"))])
        self.step = step
        for name, weight in self.weights.items():
            weight.copy_(tensors.get(name, weight))
            self.ranks.from_first(weight.detach())
            if step:
                m, v = (tensors.get(f"{name}.{part}", weight).to(weight.device) for part in "mv")
                self.adam.state[weight] = {
                    "step": torch.tensor(float(step), device=weight.device),
                    "exp_avg": self.ranks.from_first(m.clone()),
                    "exp_avg_sq": self.ranks.from_first(v.clone()),
                }
        self.since_active.copy_(tensors.get("since_active", self.since_active))
        self.ranks.from_first(self.since_active)
        return position

    @staticmethod
    def _stored(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        try:
            tensors, facts = read_tensors(path)
        except ModelError:
            return {}, {}
        return (tensors, facts) if facts.get("key") == key else ({}, {})
