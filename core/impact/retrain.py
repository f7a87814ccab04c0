"""Retraining: the model itself is trained again on a plan's edited pairs, the measurement that a preview stands in for.

An ordinary reward model is trained again from its causal base. A run whose head on SAE features is the model (SARM) has its
first blocks and its head trained again, with the SAE's encoder as it is; the head starts at zero, not at the preview's. Where
the blocks were trained for the run (kind sarm), they start from the causal base too.
What is measured is the same for both and the same as in a preview: accuracy and margin on the held-out pairs, against the
model retrained in the same way on unchanged pairs, with intervals over prompts drawn with replacement.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from core.config import RewardTrainingConfig, fingerprint
from core.data.chat import EncodedAnswer
from core.errors import DataError, RunError, disk_full_is_said
from core.impact.inputs import ImpactInputs
from core.impact.plans import Plan
from core.impact.preview import measure
from core.models.backbone import context_length, load_tokenizer, pick_device, wrap_backbone
from core.models.classifier import Classifier, RewardHead
from core.models.resolve import resolve_model, weights_sha256
from core.models.sarm import sarm_of
from core.progress import Progress
from core.rewards.train import (
    base_classifier,
    encoded_answers,
    load_dtype,
    reward_tokenizer,
    token_comparisons,
    trains_in_bf16,
)
from core.rewards.trainer import TokenComparisons, fit_bradley_terry, learning_rates
from core.sae.checkpoint import load_sae
from core.store.reader import RunReader

VERSION = 1
"""Raise it when a retrain would give other numbers, so that kept ones are not reused."""
FOLDER = "retrained"
NONE = "none"


@dataclass(frozen=True)
class Retrained:
    """One trained model, measured.

    Attributes:
        rewards: float64 [n_held_out_answers], in order of response_id.
        facts: of the training (`fit_bradley_terry`), and n_changed, the pairs of the training set that were edited.
    """

    rewards: np.ndarray
    facts: dict[str, Any]


class Retraining:
    """Everything that the retrains of one run with the same settings share.

    Finished retrains are kept in the run's folder `retrained/` under the hash of what they depend on; one that was
    interrupted leaves nothing behind.

    Args:
        reader: the run, open.
        inputs: of the same run.
        training: scope, epochs, learning rate, batch, seed; `max_length` and `layers` None = as the run.
        limit: at most this many training pairs, taken evenly over the file.
        device, dtype: None = as in the run's configuration.
    """

    def __init__(
        self,
        reader: RunReader,
        inputs: ImpactInputs,
        training: RewardTrainingConfig,
        progress: Progress,
        *,
        limit: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        self.reader, self.inputs, self.progress = reader, inputs, progress
        self.model = dict(reader.manifest.config["model"])
        self.device = pick_device(device or self.model["device"])
        self.dtype = dtype or str(self.model["dtype"])
        reward_model = reader.manifest.config.get("reward_model") or {}
        own = reward_model.get("train") or reward_model.get("sarm") or {}
        limit_tokens = training.max_length or own.get("max_length") or self.max_length
        self.training = training.model_copy(
            update={"max_length": int(limit_tokens), "layers": training.layers or own.get("layers")}
        )
        self.limit = limit

    # ------------------------------------------------------------- what is measured

    def baseline(self) -> Retrained:
        """The model trained on the unchanged pairs; trained once for these settings, then kept."""
        return self._retrained({})

    def retrain(self, plan: Plan) -> Retrained:
        """The model trained on the plan's edited pairs.

        Raises:
            DataError: the plan was made for other pairs, or leaves nothing to train on.
        """
        if plan.data_sha256 != self.inputs.data_sha256:
            raise DataError(f"The plan {plan.id} was made for other pairs than those of this run; make it again.")
        return self._retrained(plan.edits)

    def points(self, plan: Plan | None) -> list[dict[str, Any]]:
        """Rows for ReviewStore.save_impact: of the unchanged data, and of the plan where one is given.

        The baseline is trained first when it is not kept yet.
        """
        baseline = self.baseline()
        after = self.retrain(plan) if plan is not None else None
        columns = [baseline.rewards] if after is None else [baseline.rewards, after.rewards]
        measured = measure(self.inputs, np.stack(columns, axis=1))
        direction, action = (plan.direction, plan.action) if plan else ("poison", "flip")
        none = Plan(
            self.inputs.run, self.inputs.run_id, self.inputs.data_sha256, NONE, direction, action, 0.0, 0, 0, {}
        )
        rows = self._rows(none, NONE, measured[0], baseline)
        if plan is not None and after is not None:
            rows += self._rows(plan, plan.id, measured[1], after)
        return rows

    def _rows(self, plan: Plan, name: str, measured: list[dict[str, object]], one: Retrained) -> list[dict[str, Any]]:
        chosen = plan.feature_set or {}
        return [
            {
                "run_id": self.inputs.run_id,
                "plan": name,
                "set_name": chosen.get("name"),
                "set_version": chosen.get("version"),
                "direction": plan.direction,
                "action": plan.action,
                "strategy": plan.strategy,
                "ratio": plan.ratio,
                "seed": plan.seed,
                **row,
                "kind": "retrained",
                "scope": self.training.scope,
                "details": json.dumps(one.facts, sort_keys=True),
            }
            for row in measured
        ]

    # ----------------------------------------------------------------- one retrain

    def _retrained(self, edits: Mapping[str, str]) -> Retrained:
        path = self._path(edits)
        if (kept := read_retrained(path)) is not None:
            return kept
        index = self.inputs.index_of
        flip = np.array([index[pair] for pair, action in edits.items() if action == "flip"], dtype=np.int64)
        drop = np.array([index[pair] for pair, action in edits.items() if action != "flip"], dtype=np.int64)
        changed = np.isin(np.unique(self.comparisons.pair), np.concatenate([flip, drop]))
        name = "baseline" if not edits else "retraining"
        rewards, facts = self._train(self.comparisons.edited(flip, drop), name)
        facts |= {
            "n_train": len(changed),
            "n_changed": int(changed.sum()),
            "limit": self.limit,
            "max_length": self.training.max_length,
            "dtype": self.dtype,
            "kind": self.inputs.kind,
        }
        if self.device.type == "cuda":
            facts["device_name"] = torch.cuda.get_device_name(self.device)
        write_retrained(path, Retrained(rewards, facts))
        return Retrained(rewards, facts)

    def _train(self, comparisons: TokenComparisons, name: str) -> tuple[np.ndarray, dict[str, Any]]:
        """Trains a fresh model and scores every held-out answer with it."""
        bf16 = trains_in_bf16(self.dtype, self.device)
        computes = torch.bfloat16 if self.dtype == "bfloat16" else torch.float32
        held, groups = self.held_out
        budget = int(self.model["tokens_per_batch"])
        model = self._fresh()
        model, facts = fit_bradley_terry(
            model, self.tokenizer, comparisons, self.training, device=self.device, bf16=bf16, progress=self.progress,
            name=name,
        )  # fmt: skip
        found: Any
        if self.inputs.kind == "classifier":
            head = RewardHead(model.score.weight[0].double().cpu().numpy(), {})
            layers = int(model.config.num_hidden_layers)
            backbone = wrap_backbone(model.model, self.tokenizer, layers, self.device, computes, final_norm=True)
            states = Classifier(backbone, head).final_states(([held[i].ids for i in g] for g in groups), budget)
            found = ((index, float(head.rewards(state))) for index, state in states)
        else:
            backbone = model.packed(self.tokenizer, self.device, computes)
            found = model.rewards(([(held[i].ids, held[i].answer_start) for i in g] for g in groups), backbone, budget)
        order = [i for group in groups for i in group]
        rewards = np.full(len(held), np.nan)
        with self.progress.task("measuring", len(held), "answers") as task:
            for index, reward in found:
                rewards[order[index]] = reward
                task.advance()
        if not np.isfinite(rewards).all():
            raise RunError("The retrained model gives rewards that are not numbers; lower the learning rate.")
        return rewards, facts

    def _fresh(self) -> Any:
        """The model as it is before training."""
        dtype = load_dtype(self.dtype, self.device, self.training)
        torch.manual_seed(self.training.seed)
        if self.inputs.kind == "classifier":
            return base_classifier(self._base, self.tokenizer, layers=self.training.layers, dtype=dtype)
        sae, _ = load_sae(self.reader.folder / "sae.safetensors")
        pooling = str(self.reader.manifest.head["pooling"])
        return sarm_of(self._base, sae, int(self.model["layer"]), pooling, dtype=dtype)

    # ------------------------------------------------------------ read once, shared

    @cached_property
    def max_length(self) -> int:
        """Tokens of prompt and answer the run keeps."""
        return int(self.model.get("max_length") or context_length(self._base))

    @cached_property
    def _base(self) -> Path:
        """The folder of the model that training starts from.

        Raises:
            RunError: a model that was given, not trained: what it was trained from is not known; or an SAE that has seen the
                pairs.
        """
        reward_model = self.reader.manifest.config.get("reward_model") or {}
        setting = {"classifier": "train", "sarm": "sarm"}.get(self.inputs.kind)
        if setting and not reward_model.get(setting):
            raise RunError(
                "This run's reward model was given as a finished checkpoint, so it is not known what to train again "
                f"from; build the run from its causal base with reward_model.{setting}."
            )
        if self.inputs.kind == "sarm" and reward_model["sarm"]["mode"] in ("joint", "separate"):
            raise RunError(
                "This run's SAE was trained on its preference pairs too, so a model trained again with it would know the "
                "unchanged pairs; build the run with reward_model.sarm.mode: frozen_sae."
            )
        return resolve_model(self.model["name"], self.model.get("revision"), self.model.get("weights", "auto")).path

    @cached_property
    def _base_sha256(self) -> str:
        found = weights_sha256(self._base)
        manifest = self.reader.manifest
        made_with = {
            "head": manifest.model["weights_sha256"],
            "sarm": (manifest.head.get("trained") or {}).get("base_sha256"),
        }.get(self.inputs.kind, found)
        if found != made_with:
            raise RunError(
                f"The weights of {self.model['name']} found here are not those the run was made with; build it again."
            )
        return found

    @cached_property
    def tokenizer(self) -> Any:
        if self.inputs.kind == "classifier":
            return reward_tokenizer(self._base)
        tokenizer = load_tokenizer(self._base)
        if tokenizer.pad_token_id is None:  # masked everywhere, so any token will do
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def _tables(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        return self.reader.table("pair").sort("pair_index"), self.reader.table("response").sort("response_id")

    @cached_property
    def comparisons(self) -> TokenComparisons:
        """The unchanged training pairs, tokenised."""
        pairs, responses = self._tables
        train = np.flatnonzero(self.inputs.train)
        if self.limit is not None and self.limit < len(train):
            train = train[np.arange(self.limit) * len(train) // self.limit]
        assert self.training.max_length is not None  # set in __init__
        return token_comparisons(self.tokenizer, pairs[train], responses, self.training.max_length)

    @cached_property
    def held_out(self) -> tuple[list[EncodedAnswer], list[list[int]]]:
        """Every held-out answer in order of response_id, and which of them share a prompt."""
        pairs, responses = self._tables
        held = pairs.filter(pl.Series(~self.inputs.train))
        encoded, answers = encoded_answers(self.tokenizer, held, responses, self.max_length)
        groups: dict[int, list[int]] = {}
        for row, pair in enumerate(answers["pair_index"].to_list()):
            groups.setdefault(int(self.inputs.prompt[pair]), []).append(row)
        return encoded, list(groups.values())

    def _path(self, edits: Mapping[str, str]) -> Path:
        rates = learning_rates(self.training, pools_features=self.inputs.kind != "classifier")
        settings = (self.training.model_dump(mode="json"), rates, self.limit, self.dtype, self.device.type)
        key = fingerprint(VERSION, self.inputs.run_id, self._base_sha256, settings, sorted(edits.items()))
        return self.reader.folder / FOLDER / f"{key}.npz"


def write_retrained(path: Path, one: Retrained) -> None:
    """Keeps a finished retrain: written aside and moved into place."""
    aside = path.with_name(path.name + ".part")
    with disk_full_is_said(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                np.savez(file, rewards=one.rewards, facts=np.array(json.dumps(one.facts, sort_keys=True)))
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def read_retrained(path: Path) -> Retrained | None:
    """A retrain kept earlier; None where there is none (or its file is damaged, and it is trained again)."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return Retrained(kept["rewards"].astype(np.float64), json.loads(str(kept["facts"])))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
