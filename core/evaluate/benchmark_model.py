"""What gives a benchmark's rewards: a run's model, a folder (SARM, ArmoRM, an ordinary reward model), and the head used."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ConfigError, ModelError
from core.models.armorm import ObjectiveModel, is_armorm, load_objectives
from core.models.backbone import load_backbone
from core.models.classifier import Classifier, load_classifier
from core.models.head_file import load_head
from core.models.resolve import file_sha256, weights_sha256
from core.rewards.score import FeatureScorer, load_model_scorer, load_scorer, run_model
from core.rewards.steering import Steering, read_steering
from core.sae.checkpoint import load_sae
from core.store.manifest import read_manifest

SCORING = 1
"""Raise it when the same model gives other rewards than before."""
MODEL_TYPE = "rewardscope_sarm"


@dataclass(frozen=True)
class BenchmarkModel:
    """What gives the rewards.

    Attributes:
        facts: name, kind ('head', 'sarm', 'classifier' or 'armorm'), hashes, dtype, layer, pooling, max_length, latents.
        scorer: features and the head on them; None for a reward model without features.
        own: the reward model whose own rewards count; None where the head on features is the model.
    """

    facts: dict[str, Any]
    scorer: FeatureScorer | None
    own: Classifier | ObjectiveModel | None

    @property
    def identity(self) -> list[Any]:
        """What the activations and a model's own rewards depend on (the head's weights are applied afterwards)."""
        names = ("kind", "weights_sha256", "sae_sha256", "layer", "dtype", "pooling", "max_length")
        return [SCORING, *(self.facts.get(name) for name in names)]


def open_run(run: Path, device: str = "auto") -> BenchmarkModel:
    """The model of a run: its head on features, or its ordinary reward model with the SAE beside it.

    Raises:
        RunError: what is found is not what the run was made with.
        ModelError: the model cannot be found or loaded.
    """
    manifest = read_manifest(run)
    model = manifest.model
    facts = {name: model.get(name) for name in ("name", "weights_sha256", "layer", "dtype")}
    facts |= {"sae_sha256": manifest.sae["sha256"], "head_sha256": manifest.head["sha256"]}
    if model.get("kind") != "classifier":
        return _with_features({**facts, "kind": "head"}, load_scorer(run, device), None)
    _, path = run_model(run)
    backbone = load_backbone(path, model["layer"], dtype=model["dtype"], device=device)
    sae, _ = load_sae(run / "sae.safetensors", device=backbone.device)
    settings = manifest.config["model"]
    scorer = FeatureScorer(
        backbone=backbone,
        sae=sae,
        head=load_head(run / "head.safetensors"),
        max_length=settings["max_length"] or backbone.context_length,
        tokens_per_batch=int(settings["tokens_per_batch"]),
    )
    classifier = load_classifier(path, dtype=model["dtype"], device=device)
    return _with_features({**facts, "kind": "classifier"}, scorer, classifier)


def open_folder(folder: Path, *, dtype: str = "float32", device: str = "auto") -> BenchmarkModel:
    """A checkpoint folder: SARM, ArmoRM-style, or an ordinary reward model (sequence classification with one output).

    Raises:
        ModelError: it is none of them, or cannot be loaded.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no model folder (it has no config.json); give one that save_pretrained wrote.")
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read ({error}).") from None
    facts: dict[str, Any] = {"name": folder.resolve().name, "weights_sha256": weights_sha256(folder), "dtype": dtype}
    if kind == MODEL_TYPE:
        return _with_features({**facts, "kind": "sarm"}, load_model_scorer(folder, dtype=dtype, device=device), None)
    gated = is_armorm(folder)
    own = (load_objectives if gated else load_classifier)(folder, dtype=dtype, device=device)
    kind = "armorm" if gated else "classifier"
    facts |= {"kind": kind, "max_length": own.backbone.context_length, "latents": 0}
    return BenchmarkModel(facts, None, own)


def with_features_of(model: BenchmarkModel, run: Path) -> BenchmarkModel:
    """The same model; where its SAE is the run's, weight by weight, its features are said to be the run's."""
    if model.scorer is None or (model.facts.get("sae_sha256")):
        return model
    own, _ = load_sae(run / "sae.safetensors", device=model.scorer.backbone.device)
    mine, theirs = model.scorer.sae.state_dict(), own.state_dict()
    same = mine.keys() == theirs.keys() and all(
        mine[key].shape == theirs[key].shape and bool((mine[key].float() == theirs[key].float()).all()) for key in mine
    )
    return replace(model, facts={**model.facts, "sae_sha256": file_sha256(run / "sae.safetensors")}) if same else model


def _with_features(facts: dict[str, Any], scorer: FeatureScorer, classifier: Classifier | None) -> BenchmarkModel:
    facts |= {"layer": scorer.backbone.layer, "pooling": scorer.head.pooling, "max_length": scorer.max_length}
    return BenchmarkModel({**facts, "latents": len(scorer.head.weights)}, scorer, classifier)


# --- another head --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """The head that is used.

    Attributes:
        weights: float64 [M].
        offset: added to every reward (additive steering).
        facts: what the summary says of it; {} = the model's own head.
    """

    weights: np.ndarray
    offset: float = 0.0
    facts: dict[str, Any] | None = None


def chosen_weights(model: BenchmarkModel, steering: Path | None, head: Path | None) -> Weights | None:
    """The head that the rewards are computed with: the model's own, another file's, steered.

    Raises:
        ConfigError: the model's reward does not come from a head on features.
        DataError, ModelError: a file is of another SAE, or cannot be read.
    """
    if (steering or head) and (model.scorer is None or model.own is not None):
        raise ConfigError("This reward model does not read features, so no steering or head on them can change it.")
    if model.scorer is None:
        return None
    weights, facts = model.scorer.head.weights, None
    if head is not None:
        other = load_head(head)
        if other.pooling != model.scorer.head.pooling:
            raise ConfigError(f"{head} pools by {other.pooling}, the model by {model.scorer.head.pooling}.")
        weights = model.scorer.with_weights(other.weights).head.weights
        facts = {"head": {"file": head.name, "sha256": file_sha256(head)}}
    if steering is None:
        return Weights(weights, facts=facts)
    one = read_steering(steering, sae=str(model.facts.get("sae_sha256", "")), latents=len(weights))
    return Weights(one.weights(weights), one.offset(weights), {**(facts or {}), "steering": _steering_facts(one)})


def _steering_facts(one: Steering) -> dict[str, Any]:
    changes = {str(feature): [change.symbol, change.value] for feature, change in one.changes.items()}
    return {"name": one.name, "changes": changes, "note": one.note}
