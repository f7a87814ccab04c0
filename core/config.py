"""One typed run configuration, read from YAML. Unknown keys and wrong values are errors, never ignored."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.errors import ConfigError

Pooling = Literal["last", "mean"]


class Section(BaseModel):
    """A part of the configuration; strict about keys so that a typo is never a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PairsConfig(Section):
    """Where preference pairs come from (core/data)."""

    source: str = "builtin"
    """`builtin`, a local .jsonl/.parquet/.csv path (relative to the YAML file), or a Hugging Face dataset name."""
    adapter: str = "auto"
    """Name of the upstream shape (see `rewardscope doctor`), or `auto` to recognise it by its columns."""
    subset: str | None = None
    """Configuration name of a Hugging Face dataset."""
    split: str | None = None
    """Split of a Hugging Face dataset; `None` takes every split and keeps its name."""
    revision: str | None = None
    on_bad_rows: Literal["fail", "skip"] = "fail"
    limit: int | None = Field(None, ge=1)
    """At most this many pairs, taken evenly over the file."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of prompts held out when the source has no train/test split of its own."""
    max_prompt_tokens: int | None = Field(None, ge=8)
    """Longest prompt accepted; `None` means the backbone's context length."""


class ModelConfig(Section):
    """The backbone and where it is cut (core/models)."""

    name: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    revision: str | None = None
    weights: Literal["auto", "wheel"] = "auto"
    """`wheel` takes the embedded model from its PyPI wheel, never the Hub, so that the numbers are the same everywhere."""
    layer: int = Field(15, ge=1)
    """Cut at hidden_states[layer]: blocks 0..layer-1 run, no final norm (methods: SARM)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    device: str = "auto"
    """`auto` (CUDA, then MPS, then CPU), `cpu`, `mps`, `cuda` or `cuda:N`."""
    tokens_per_batch: int = Field(2048, ge=64)
    """Tokens in one packed forward pass; results do not depend on it in float32 (2048 is fastest on CPU, more on a GPU)."""
    answers_per_shard: int = Field(512, ge=1)
    """A shard is closed once it holds this many answers: what an interruption can lose."""
    max_length: int | None = Field(None, ge=16)
    """Tokens of prompt and answer kept; `None` means the backbone's context length."""


class SaeConfig(Section):
    """The TopK sparse autoencoder (core/sae)."""

    latents: int = Field(9216, ge=2)
    """M; SARM's rule is 16 d."""
    k: int = Field(27, ge=1)
    """Active latents per token; SARM's rule is 3 d / 64."""
    level: Literal["token", "sequence", "random"] = "token"
    """Which vectors train it: every token, the last token of each sentence, or none (random-init ablation)."""
    paper_delimiters: bool = False
    """At level `sequence`, also train on tokens of `, ? -- ; ! "`, as the papers' code does."""
    vectors: Literal["disk", "stream"] = "disk"
    """`disk` keeps the training vectors (2 d bytes each) while training; `stream` computes them anew, for huge texts."""
    texts: tuple[str, ...] = ()
    """Extra text files (.txt/.jsonl/.parquet with a `text` column) or Hugging Face dataset names to train on."""
    use_pairs: bool = True
    """Also train on the prompts and answers of the run's train pairs."""
    max_tokens: int | None = Field(None, ge=1)
    """Upper bound on the vectors seen in one epoch; `None` is the whole text."""
    epochs: int = Field(1, ge=1)
    batch: int = Field(2048, ge=1)
    """Vectors in one optimiser step."""
    learning_rate: float = Field(5e-4, gt=0)
    schedule: Literal["smooth", "paper"] = "smooth"
    pre_bias: Literal["mean", "zero"] = "mean"
    """Where the pre-bias starts: the mean of the first batch, which keeps most latents alive, or zero as in both papers."""
    auxk: int = Field(0, ge=0)
    """Dead latents used for the auxiliary loss (0 switches revival off, as in both papers)."""
    dead_after: int = Field(200_000, ge=1)
    """A latent is dead when it was not active for this many vectors."""
    checkpoint: str | None = None
    """Use this trained SAE instead of training one."""
    seed: int = 0

    @model_validator(mode="after")
    def _k_below_m(self) -> SaeConfig:
        if self.k >= self.latents:
            raise ValueError(f"k ({self.k}) must be smaller than latents ({self.latents})")
        return self


class HeadConfig(Section):
    """The Bradley-Terry head on frozen features (core/rewards)."""

    pooling: Pooling = "mean"
    l2: float | None = Field(None, gt=0)
    """Ridge strength; `None` chooses it by validation loss on held-back prompts."""
    validation_fraction: float = Field(0.2, gt=0, lt=0.9)
    tolerance: float = Field(1e-6, gt=0)
    """Largest gradient norm accepted at the optimum."""
    bootstrap: int = Field(1000, ge=100)
    seed: int = 0


class RewardTrainingConfig(Section):
    """How a reward model is trained with the Bradley-Terry loss (core/rewards/train)."""

    scope: Literal["head", "lora", "full"] = "lora"
    layers: int | None = Field(None, ge=1)
    """Keep only this many decoder blocks of the base model; `None` keeps all."""
    epochs: float = Field(1.0, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    """`None` takes the scope's default (core/rewards/train)."""
    batch: int = Field(8, ge=1)
    """Pairs in one optimiser step."""
    max_length: int | None = Field(None, ge=16)
    """Tokens of prompt and answer kept while training, the start is cut; `None` means model.max_length."""
    lora_rank: int = Field(16, ge=1)
    seed: int = 0


class SarmTrainingConfig(RewardTrainingConfig):
    """How a SARM reward model is trained: decoder blocks, SAE and head (core/rewards/train_sarm; SARM section 2.2)."""

    mode: Literal["head", "frozen_sae", "joint", "separate"] = "frozen_sae"
    """What learns. `head`: the head alone (the code's mode 0). `frozen_sae`: blocks and head, the encoder is fixed (mode
    1, the paper's). `joint`: blocks, SAE and head on both losses (mode 2). `separate`: the blocks on the Bradley-Terry
    loss alone, the SAE on both with the states detached from the reconstruction (mode 3)."""
    encoder: Literal["sae", "identity"] = "sae"
    """`identity`: no SAE; a plain linear head on the standardised states at the same depth, the ablation's control."""
    reconstruction: float = Field(1.0, ge=0)
    """Weight of the SAE's reconstruction loss in `joint` and `separate`."""
    head_learning_rate: float | None = Field(None, gt=0)
    """`None`: the head's own default, larger than the blocks' because it starts at zero (the papers use one rate for all)."""
    validation_fraction: float = Field(0.1, ge=0, lt=0.9)
    """Share of the training prompts held back to choose the best checkpoint; 0 trains on all and keeps the last step."""
    gradient_checkpointing: bool | None = None
    """`None`: on an accelerator only."""
    evaluate_every: int | None = Field(None, ge=1)
    """Steps between measurements on the pairs held back; the best checkpoint is kept. `None`: four times in the training."""

    @model_validator(mode="before")
    @classmethod
    def _a_lone_head_has_one_scope(cls, data: Any) -> Any:
        return {"scope": "head", **data} if isinstance(data, dict) and data.get("mode") == "head" else data

    @model_validator(mode="after")
    def _scope_fits_mode(self) -> SarmTrainingConfig:
        """The mode says which parts learn; the scope how the blocks do, where they learn at all."""
        if (self.mode == "head") != (self.scope == "head"):
            raise ValueError("mode: head and scope: head are the same thing; with another mode, scope is lora or full")
        if self.encoder == "identity" and self.mode not in ("head", "frozen_sae"):
            raise ValueError("encoder: identity has no SAE to train; use mode: frozen_sae or head")
        return self


class RewardModelConfig(Section):
    """What the reward model is: a head fitted on the SAE's features, a SARM model trained as one, or an ordinary one the SAE
    stands beside (SAFER)."""

    kind: Literal["head", "classifier", "sarm"] = "head"
    """`classifier`: `model.name` is a sequence-classification checkpoint with one output, or is trained to be one.
    `sarm`: `model.name` is a SARM folder (`rewardscope train`, `rewardscope import`), or is trained to be one."""
    train: RewardTrainingConfig | None = None
    """Train the classifier from the causal model `model.name` on the run's training pairs first."""
    sarm: SarmTrainingConfig | None = None
    """Train the SARM model from the causal model `model.name` and the run's SAE on the run's training pairs first."""

    @model_validator(mode="after")
    def _train_the_right_kind(self) -> RewardModelConfig:
        if self.train is not None and self.kind != "classifier":
            raise ValueError("train is for kind: classifier; the head on features is always fitted")
        if self.sarm is not None and self.kind != "sarm":
            raise ValueError("sarm is for kind: sarm")
        return self


class SalienceConfig(Section):
    """Which features separate chosen from rejected answers (core/salience)."""

    poolings: tuple[Literal["last", "mean", "max", "boundary_sum"], ...] = ("last", "mean", "max", "boundary_sum")
    columns: tuple[str, ...] | None = None
    """Label columns of the pairs that make slices beside domain and category; `None` takes all with 2 to 20 values."""
    min_active: int = Field(30, ge=1)
    """Features active in fewer pairs of a slice are not tested."""
    draws: int = Field(1000, ge=100)
    """Sign-flip draws for every feature."""
    seed: int = 0


class ImpactConfig(Section):
    """The curves a run shows before anyone asks for others (core/impact)."""

    set_size: int = Field(32, ge=1)
    """Features of the default set: the highest |s| on the training pairs, as SAFER takes them, without ratings."""
    poison: tuple[float, ...] = (0.005, 0.01, 0.025, 0.05)
    denoise: tuple[float, ...] = (0.02, 0.04, 0.06, 0.08, 0.10)
    seeds: int = Field(5, ge=1)
    """Random plans behind each band."""
    bootstrap: int = Field(1000, ge=100)
    seed: int = 0


class FeaturesConfig(Section):
    """What is computed about every feature (core/features)."""

    contexts_per_band: int = Field(5, ge=1)
    top_contexts: int = Field(12, ge=1)
    context_before: int = Field(24, ge=0)
    context_after: int = Field(12, ge=0)
    neighbours: int = Field(10, ge=1)
    clusters: int = Field(24, ge=2)
    seed: int = 0


class RunConfig(Section):
    """A whole run: `rewardscope build CONFIG.yaml`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    runs: Path = Path("runs")
    pairs: PairsConfig = PairsConfig()
    model: ModelConfig = ModelConfig()
    sae: SaeConfig = SaeConfig()
    head: HeadConfig = HeadConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    features: FeaturesConfig = FeaturesConfig()
    salience: SalienceConfig = SalienceConfig()
    impact: ImpactConfig = ImpactConfig()

    @property
    def folder(self) -> Path:
        """The run's folder, `<runs>/<name>`."""
        return self.runs / self.name


AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: Path) -> RunConfig:
    """Reads and checks a YAML run configuration.

    Relative paths in it (pairs.source, sae.texts, sae.checkpoint, model.name when it is a folder) are taken
    relative to the file; `runs` is relative to the working directory.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or has an unknown key or a wrong value.
    """
    return _with_paths_from(read_yaml(path, RunConfig), path.resolve().parent)


def read_yaml(path: Path, section: type[AnySection]) -> AnySection:
    """Reads a YAML file as one section.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or has an unknown key or a wrong value.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file {path}; give the path of a YAML file.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give the path of a YAML file.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not valid YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of settings; see docs/configuration.md.")
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """The first problems of a pydantic error in one sentence each, naming the key."""
    parts = []
    for item in error.errors()[:3]:
        key = ".".join(str(part) for part in item["loc"]) or "configuration"
        what = "is not a known key" if item["type"] == "extra_forbidden" else item["msg"].lower()
        parts.append(f"{key} {what}" if item["type"] == "extra_forbidden" else f"{key}: {what}")
    return "; ".join(parts) + "."


def _with_paths_from(config: RunConfig, base: Path) -> RunConfig:
    def found(value: str) -> str:
        local = base / value
        return str(local) if not Path(value).is_absolute() and local.exists() else value

    return config.model_copy(
        update={
            "pairs": config.pairs.model_copy(update={"source": found(config.pairs.source)}),
            "model": config.model.model_copy(update={"name": found(config.model.name)}),
            "sae": config.sae.model_copy(
                update={
                    "texts": tuple(found(text) for text in config.sae.texts),
                    "checkpoint": found(config.sae.checkpoint) if config.sae.checkpoint else None,
                }
            ),
        }
    )


def fingerprint(*parts: Any) -> str:
    """A short stable hash of JSON-able values: the key under which a stage's result is kept."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
