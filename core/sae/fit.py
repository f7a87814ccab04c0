"""The SAE stage of a build: harvest vectors, train, measure on vectors left out, store."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from core.config import SaeConfig, fingerprint
from core.errors import ConfigError, ModelError
from core.models.backbone import Backbone
from core.progress import Progress
from core.sae.checkpoint import load_sae, save_sae, stored_dtype
from core.sae.quality import DENSITY_EDGES, sae_quality
from core.sae.ranks import ALONE, Ranks
from core.sae.streams import TrainingText
from core.sae.texts import texts_hash
from core.sae.topk import TopKSAE
from core.sae.train import VectorSource, train_sae
from core.sae.vectors import ShuffledVectors, StreamedVectors, VectorFile, harvest_vectors
from core.store.stages import write_json

HELD_OUT_VECTORS = 1 << 14
STORED = torch.float16


@dataclass(frozen=True)
class Surroundings:
    """What a fit does not get from its configuration; the default is a build's.

    Attributes:
        ranks: the processes that fit the SAE together.
        vectors: folder of harvested vectors that several fits share (and their caller removes); None keeps them in the
            fit's own folder and removes them with it.
        model: names the backbone's weights where `vectors` is shared between models.
        start: SAE file to go on from.
        latin1: at level `sequence`, leave out sentences with characters beyond U+00FF.
        held_out: at most this many vectors are measured.
        checkpoint_seconds: how often the training state is written.
        metadata: written into the SAE file beside `layer`, `level` and `seed`.
    """

    ranks: Ranks = ALONE
    vectors: Path | None = None
    model: str = ""
    start: Path | None = None
    latin1: bool = False
    held_out: int = HELD_OUT_VECTORS
    checkpoint_seconds: float = 60.0
    metadata: Mapping[str, str] = field(default_factory=dict)


def fit_sae(
    config: SaeConfig,
    backbone: Backbone,
    conversations: Sequence[Sequence[int]],
    folder: Path,
    progress: Progress,
    *,
    tokens_per_batch: int = 2048,
    around: Surroundings | None = None,
) -> TopKSAE:
    """Trains an SAE (or takes `config.checkpoint`) and writes `sae.safetensors` and `quality.json` into `folder`.

    Interrupted, it goes on where it stopped when called again with the same arguments: vectors and training state
    stay in `folder` until the SAE is stored. Weights are rounded to float16 (those of a checkpoint to what its file
    holds) before they are measured and stored, so the file is the SAE that was measured.

    Args:
        folder: of this stage and this model; nothing else writes into it.
        conversations: token ids of whole formatted conversations, answers to one prompt next to each other.
        progress: gets the tasks `sae vectors`, `sae held out` and `sae training`.

    Returns:
        The SAE on the backbone's device, without gradients, the same on every rank.

    Raises:
        ConfigError: there is nothing to train on.
        DataError: a training text is missing or damaged.
        ModelError: the checkpoint does not fit the backbone, or the training diverged.
        DiskFullError: no room; what is finished stays.
    """
    return _Fit(config, backbone, conversations, folder, progress, tokens_per_batch, around or Surroundings()).run()


class _Fit:
    """One fit: where its vectors come from, and what is done with them."""

    def __init__(
        self,
        config: SaeConfig,
        backbone: Backbone,
        conversations: Sequence[Sequence[int]],
        folder: Path,
        progress: Progress,
        tokens_per_batch: int,
        around: Surroundings,
    ) -> None:
        self.config, self.backbone, self.folder, self.progress = config, backbone, folder, progress
        self.tokens_per_batch, self.around = tokens_per_batch, around
        self.text = training_text(config, backbone, conversations, latin1=around.latin1)
        self.key = fingerprint(
            backbone.layer,
            backbone.d_model,
            str(backbone.dtype),
            training_inputs_hash(config),
            _ids_hash(conversations),
            config.model_dump(include={"texts", "level", "paper_delimiters", "max_tokens"}),
            tokens_per_batch,
            *filter(None, [around.model, around.latin1]),
        )

    def run(self) -> TopKSAE:
        around, folder = self.around, self.folder
        sae, metadata = self._sae()
        dtype = stored_dtype(metadata) if self.config.checkpoint else STORED
        sae.round_weights(dtype)
        held_out = self._harvest(held_out=True)
        if around.ranks.first:
            quality = sae_quality(sae, held_out.in_order())
            save_sae(folder / "sae.safetensors", sae, {**around.metadata, **metadata}, dtype)
            found = dataclasses.asdict(quality).items()
            facts = {name: value for name, value in found if name != "density" and value is not None}
            write_json(folder / "quality.json", {**facts, "density_edges": DENSITY_EDGES})
            for leftover in (folder / "sae-vectors", folder / "sae-held-out"):
                shutil.rmtree(leftover, ignore_errors=True)
            (folder / "training.safetensors").unlink(missing_ok=True)
        around.ranks.wait()
        return sae

    def _sae(self) -> tuple[TopKSAE, dict[str, str]]:
        """The SAE, trained, untrained or given, and the metadata of its file."""
        config, backbone = self.config, self.backbone
        metadata = {"layer": str(backbone.layer), "level": config.level, "seed": str(config.seed)}
        if config.checkpoint:
            return _given(config.checkpoint, "sae.checkpoint", backbone)
        if config.level == "random":
            sae = TopKSAE(backbone.d_model, config.latents, config.k, seed=config.seed)
            return sae.to(backbone.device).requires_grad_(False), metadata
        start = self._start()
        source, steps = self._source()
        sae = train_sae(
            source,
            config,
            total_steps=steps,
            device=backbone.device,
            work=self.folder,
            progress=self.progress,
            checkpoint_seconds=self.around.checkpoint_seconds,
            start=start,
            ranks=self.around.ranks,
        )
        return sae, metadata | {"steps": str(steps), "vectors": str(steps * config.batch)}

    def _start(self) -> TopKSAE | None:
        path = self.around.start
        if path is None:
            return None
        sae, _ = _given(str(path), "start", self.backbone)
        if type(sae) is not TopKSAE:
            raise ModelError(f"{path} is not a TopK SAE of SARM's form, and no other can be trained on.")
        if sae.latents != self.config.latents:
            raise ModelError(
                f"{path} has {sae.latents} latents, but {self.config.latents} are asked for; an SAE goes on with the "
                "latents it has."
            )
        return sae

    def _source(self) -> tuple[VectorSource, int]:
        """The training vectors and the number of steps over them."""
        config, ranks = self.config, self.around.ranks
        if config.vectors == "disk":
            shuffled = ShuffledVectors(self._harvest(held_out=False), config.batch, config.seed, ranks)
            return shuffled, shuffled.steps(config.epochs)
        if config.max_tokens is None:
            raise ConfigError("sae.vectors: stream needs sae.max_tokens, so that the schedule knows where it ends.")
        steps = -(-config.epochs * config.max_tokens // config.batch)
        budget = self.tokens_per_batch
        return StreamedVectors(
            self.backbone,
            self.text.open,
            config.batch,
            config.seed,
            key=self.key,
            tokens_per_batch=budget,
            ranks=ranks,
        ), steps

    def _harvest(self, *, held_out: bool) -> VectorFile:
        name = "sae held out" if held_out else "sae vectors"
        limit = self.around.held_out if held_out else self.config.max_tokens
        return harvest_vectors(
            self.backbone,
            self.text.open(held_out=held_out),
            (self.around.vectors or self.folder) / name.replace(" ", "-"),
            key=f"{self.key}-{limit}",
            limit=limit,
            progress=self.progress,
            name=name,
            tokens_per_batch=self.tokens_per_batch,
            ranks=self.around.ranks,
        )


def training_text(
    config: SaeConfig, backbone: Backbone, conversations: Sequence[Sequence[int]], *, latin1: bool = False
) -> TrainingText:
    """Everything the configuration names."""
    return TrainingText(
        conversations,
        config.texts,
        backbone.tokenizer,
        # An SAE at level `random` is not trained, but measured on tokens.
        "sequence" if config.level == "sequence" else "token",
        context_length=backbone.context_length,
        paper_delimiters=config.paper_delimiters,
        latin1=latin1,
    )


def training_inputs_hash(config: SaeConfig) -> str:
    """Changes when a training text or the given checkpoint does.

    Raises:
        DataError: a text file is missing.
        ModelError: the checkpoint file is missing.
    """
    if config.checkpoint and not Path(config.checkpoint).is_file():
        raise ModelError(f"There is no SAE file {config.checkpoint}; check sae.checkpoint.")
    return fingerprint([texts_hash(source) for source in (*config.texts, *filter(None, [config.checkpoint]))])


def _given(path: str, setting: str, backbone: Backbone) -> tuple[TopKSAE, dict[str, str]]:
    sae, metadata = load_sae(Path(path), device=backbone.device)
    if sae.d_model != backbone.d_model:
        raise ModelError(
            f"{path} is for hidden states of width {sae.d_model}, but the backbone's have {backbone.d_model}; give "
            f"in {setting} the SAE that was trained on this model."
        )
    if metadata.get("layer", str(backbone.layer)) != str(backbone.layer):
        raise ModelError(
            f"{path} reads hidden_states[{metadata['layer']}], but model.layer is {backbone.layer}; set model.layer to "
            f"{metadata['layer']}, or give in {setting} an SAE of this layer."
        )
    return sae, metadata


def _ids_hash(conversations: Sequence[Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for ids in conversations:
        digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
    return digest.hexdigest()
