"""Stage 1 of SARM: SAEs pretrained over text, one or a whole table of them (layer, width, k, level) from one YAML.

    <out>/<name>/<entry>/sae.safetensors     the SAE, as `sae.checkpoint` of a run takes it
    <out>/<name>/<entry>/quality.json        how well it represents vectors it was not trained on
    <out>/<name>/table.json                  one row an entry

An entry whose settings, model and texts have not changed is not trained again; one that was interrupted goes on.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from safetensors import safe_open

from core.config import ModelConfig, PairsConfig, SaeConfig, Section, fingerprint, read_yaml
from core.data.load import source_hash
from core.errors import ConfigError, DataError
from core.models.backbone import Backbone, load_backbone
from core.models.resolve import ResolvedModel, file_sha256, resolve_model, weights_sha256
from core.progress import Progress
from core.sae.checkpoint import METADATA
from core.sae.conversations import training_conversations
from core.sae.fit import Surroundings, fit_sae, training_inputs_hash
from core.sae.ranks import Ranks, joined
from core.store.stages import write_json

Size = int | str
"""A number, or a rule in the width d of the hidden states: `16d`, `3d/64`."""
FIGURES = ("fvu_normalised", "fvu_normalised_interval", "fvu", "normalised_mse", "dead_fraction", "l0", "n")
"""What of quality.json goes into the table."""


class PretrainSaeConfig(SaeConfig):
    """The SAE, and how it is pretrained."""

    start: str | None = None
    """Go on from this SAE instead of new weights: the papers' adaptation of a token-level SAE to sequence level."""
    latin1: bool = False
    """At level `sequence`, leave out sentences with characters beyond U+00FF, as the papers' code does."""
    held_out: int = Field(1 << 14, ge=1)
    """At most this many held-out vectors are measured; at sequence level each costs the backbone a whole sentence.
    A change trains nothing again."""
    checkpoint_seconds: float = Field(60.0, ge=0)
    """How often the training state is written (24 d M bytes)."""


class TableEntry(Section):
    """One SAE of a table: what differs from `model` and `sae`."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$")
    """Its folder; made of the settings when left out, as the published files are named."""
    layer: int | None = Field(None, ge=1)
    latents: Size | None = None
    k: Size | None = None
    level: Literal["token", "sequence", "random"] | None = None
    paper_delimiters: bool | None = None
    seed: int | None = None
    start: str | None = None
    """An SAE file, or the name of an earlier entry of this table."""


class PretrainConfig(Section):
    """`rewardscope pretrain CONFIG.yaml`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    out: Path = Path("saes")
    """Folder of the results, relative to the working directory; they go into `<out>/<name>`."""
    model: ModelConfig = ModelConfig()
    sae: PretrainSaeConfig = PretrainSaeConfig()
    texts: tuple[str, ...] = ()
    """Text files, folders of them or datasets to train on (core/sae/texts); `sae.texts` are added to them."""
    pairs: PairsConfig | None = None
    """Also train on the conversations of these pairs' train split (unless `sae.use_pairs` is false)."""
    table: tuple[TableEntry, ...] = ()
    """One SAE each; a single one as `model` and `sae` say when left out."""

    @property
    def folder(self) -> Path:
        return self.out / self.name


@dataclass(frozen=True)
class Entry:
    """One SAE to train: its folder's name, the cut, and its whole configuration."""

    name: str
    layer: int
    sae: PretrainSaeConfig


def load_pretrain_config(path: Path) -> PretrainConfig:
    """Reads the YAML; relative paths in it (texts, pairs.source, model.name, start) are taken relative to the file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or has an unknown key or a wrong value.
    """
    config = read_yaml(path, PretrainConfig)
    base = path.resolve().parent

    def found(value: str) -> str:
        local = base / value
        return str(local) if not Path(value).is_absolute() and local.exists() else value

    sae = config.sae
    if sae.checkpoint:
        raise ConfigError("sae.checkpoint names an SAE that is trained already; to train it further, give sae.start.")
    texts, start = tuple(found(text) for text in sae.texts), found(sae.start) if sae.start else None
    return config.model_copy(
        update={
            "texts": tuple(found(text) for text in config.texts),
            "sae": sae.model_copy(update={"texts": texts, "start": start}),
            "model": config.model.model_copy(update={"name": found(config.model.name)}),
            "pairs": config.pairs and config.pairs.model_copy(update={"source": found(config.pairs.source)}),
            "table": tuple(
                entry.model_copy(update={"start": found(entry.start) if entry.start else None})
                for entry in config.table
            ),
        }
    )


def table_entries(config: PretrainConfig, d: int) -> list[Entry]:
    """The SAEs a configuration asks for, in order.

    Args:
        d: width of the backbone's hidden states, for sizes given by rule.

    Raises:
        ConfigError: a size is no number or rule, k is not below latents, or two entries are the same.
    """
    entries: list[Entry] = []
    for row in config.table or (TableEntry(),):
        sizes = {name: size_of(size, d) for name in ("latents", "k") if (size := getattr(row, name)) is not None}
        plain = ("level", "paper_delimiters", "seed", "start")
        given = {name: value for name in plain if (value := getattr(row, name)) is not None}
        sae = config.sae.model_copy(update={**sizes, **given, "texts": (*config.texts, *config.sae.texts)})
        if sae.k >= sae.latents or sae.k < 1:
            raise ConfigError(f"table: k ({sae.k}) must be at least 1 and smaller than latents ({sae.latents}).")
        if sae.level == "random" and sae.start:
            raise ConfigError("An SAE at level random is not trained, so it cannot start from another.")
        layer = row.layer or config.model.layer
        name = row.name or _name(sae, layer)
        if name in {entry.name for entry in entries}:
            raise ConfigError(f"table: two entries would be {name}; give one of them a name of its own.")
        entries.append(Entry(name, layer, sae))
    return entries


def size_of(size: Size, d: int) -> int:
    """A size in numbers: itself, or a rule such as `16d` (SARM's M) or `3d/64` (SARM's k), rounded down.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(size, int):
        return size
    rule = re.fullmatch(r"(\d+)\s*\*?\s*d\s*(?:/\s*([1-9]\d*))?", size.strip())
    if rule is None:
        raise ConfigError(f"table: {size!r} is neither a number nor a rule such as 16d or 3d/64.")
    return int(rule[1]) * d // int(rule[2] or 1)


def pretrain(config: PretrainConfig, progress: Progress) -> list[dict[str, Any]]:
    """Trains every SAE of a configuration that is not there yet; under torchrun, all its processes together.

    Returns:
        one row an entry, as in table.json: name, layer, level, latents, k, paper_delimiters, seed, start, file, how
        many vectors trained it (`vectors`, those of later epochs counted again), and on held-out vectors
        fvu_normalised with its 95 % interval and fvu (share of variance unexplained, of standardised and of raw
        states), normalised_mse, dead_fraction, l0 and n (the number of these vectors).

    Raises:
        RewardscopeError: a sentence that says what is wrong; what is finished stays.
    """
    with joined(config.model.device) as (ranks, device):
        return Pretraining(config, progress, ranks, str(device)).run()


class Pretraining:
    """The entries of one configuration, one after the other."""

    def __init__(self, config: PretrainConfig, progress: Progress, ranks: Ranks, device: str) -> None:
        self.config, self.progress, self.ranks, self.device = config, progress, ranks, device
        self.folder = config.folder
        self.resolved = self._resolve()
        self.weights: str = ranks.agree(weights_sha256(self.resolved.path) if ranks.first else "")
        self.entries = table_entries(config, _hidden_size(self.resolved.path))
        self.texts: str = ranks.agree(training_inputs_hash(self.entries[0].sae) if ranks.first else "")
        self.pairs = source_hash(config.pairs) if config.pairs and config.sae.use_pairs else ""
        self.backbone: Backbone | None = None
        self.conversations: list[list[int]] | None = None

    def run(self) -> list[dict[str, Any]]:
        if not (self.entries[0].sae.texts or self.pairs):
            raise ConfigError("There is nothing to train or measure an SAE on; give texts, or pairs.")
        rows: list[dict[str, Any]] = []
        for entry in self.entries:
            if not self.ranks.agree(self._is_done(entry)):
                self._train(entry)
            rows.append(self.ranks.agree(self._row(entry) if self.ranks.first else None))
            if self.ranks.first:
                write_json(self.folder / "table.json", {"name": self.config.name, "entries": rows})
        if self.ranks.first:
            shutil.rmtree(self.folder / "vectors", ignore_errors=True)
        return rows

    def _resolve(self) -> ResolvedModel:
        """The model's files; the first rank fetches them, if need be, before the others look."""
        model = self.config.model
        if self.ranks.first:
            resolve_model(model.name, model.revision, model.weights)
        self.ranks.wait()
        return resolve_model(model.name, model.revision, model.weights)

    def _key(self, entry: Entry) -> str:
        model = self.config.model
        start = self._start(entry)
        return fingerprint(
            self.weights,
            entry.layer,
            model.dtype,
            model.max_length,
            self.texts,
            self.pairs,
            self.config.pairs and self.config.pairs.model_dump(mode="json", exclude={"source"}),
            entry.sae.model_dump(mode="json", exclude={"texts", "start", "held_out", "checkpoint_seconds"}),
            file_sha256(start) if start and start.is_file() else None,
        )

    def _start(self, entry: Entry) -> Path | None:
        start = entry.sae.start
        if start is None:
            return None
        earlier = self.folder / start / "sae.safetensors"
        return earlier if earlier.is_file() else Path(start)

    def _is_done(self, entry: Entry) -> bool:
        try:
            done = json.loads((self.folder / entry.name / "entry.json").read_text(encoding="utf-8"))
            return bool(done["key"] == self._key(entry)) and (self.folder / entry.name / "sae.safetensors").is_file()
        except (OSError, ValueError, KeyError):
            return False

    def _train(self, entry: Entry) -> None:
        folder, model = self.folder / entry.name, self.config.model
        start = self._start(entry)
        if start is not None and not start.is_file():
            raise ConfigError(
                f"There is no SAE {entry.sae.start} to start from: neither a file nor an entry before it."
            )
        if self.backbone is None or self.backbone.layer != entry.layer:
            self.backbone = None  # room for the next one
            self.backbone = load_backbone(self.resolved.path, entry.layer, dtype=model.dtype, device=self.device)
        if self.conversations is None:
            self.conversations = self._conversations(self.backbone)
        metadata = {"model": model.name, "delimiters": str(entry.sae.paper_delimiters).lower()}
        if start is not None:
            metadata["start"] = file_sha256(start)
        fit_sae(
            entry.sae,
            self.backbone,
            self.conversations,
            folder,
            self.progress,
            tokens_per_batch=model.tokens_per_batch,
            around=Surroundings(
                ranks=self.ranks,
                vectors=self.folder / "vectors",
                model=self.weights,
                start=start,
                latin1=entry.sae.latin1,
                held_out=entry.sae.held_out,
                checkpoint_seconds=entry.sae.checkpoint_seconds,
                metadata=metadata,
            ),
        )
        if self.ranks.first:
            write_json(folder / "entry.json", {"key": self._key(entry), "sae": entry.sae.model_dump(mode="json")})
        self.ranks.wait()

    def _conversations(self, backbone: Backbone) -> list[list[int]]:
        if self.config.pairs is None or not self.pairs:
            return []
        limit = self.config.model.max_length or backbone.context_length
        return training_conversations(self.config.pairs, backbone.tokenizer, limit)

    def _row(self, entry: Entry) -> dict[str, Any]:
        folder = self.folder / entry.name
        quality = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
        sae = entry.sae
        return {
            "name": entry.name,
            "layer": entry.layer,
            "level": sae.level,
            "latents": sae.latents,
            "k": sae.k,
            "paper_delimiters": sae.paper_delimiters,
            "seed": sae.seed,
            "start": sae.start,
            "file": str(folder / "sae.safetensors"),
            "vectors": _vectors(folder / "sae.safetensors"),
            **{name: quality.get(name) for name in FIGURES},
        }


def _vectors(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return int(json.loads(file.metadata()[METADATA]).get("vectors", 0))


def _name(sae: PretrainSaeConfig, layer: int) -> str:
    parts = [sae.level, f"Latent{sae.latents}", f"Layer{layer}", f"K{sae.k}"]
    parts += ["Delimiters"] if sae.paper_delimiters and sae.level == "sequence" else []
    parts += ["Adapted"] if sae.start else []
    parts += [f"Seed{sae.seed}"] if sae.seed else []
    return "_".join(parts)


def _hidden_size(path: Path) -> int:
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(path, trust_remote_code=False).get_text_config().hidden_size)
    except (ValueError, OSError, KeyError, AttributeError) as error:
        raise DataError(f"{path} does not hold a decoder's configuration: {error}") from None
