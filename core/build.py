"""The main job: from a configuration to a published run, stage by stage.

pairs -> [reward model] -> sae -> activations -> head -> features -> salience -> impact -> causal -> evaluation -> database
pairs -> pretraining (an SAE) -> reward model (SARM) -> sae, head (taken from it) -> ...      with reward_model.sarm

Each stage keeps its result under the hash of what it depends on. A stage whose inputs have not changed is skipped;
a build that was interrupted goes on where it stopped; the published run changes only at the very end, by replacing
the manifest. (The SAE comes before the activations because what is extracted are its features.)
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from core import build_sarm
from core.config import RunConfig, SaeConfig, fingerprint
from core.data.chat import EncodedAnswer, encode_pairs
from core.data.load import check_prompt_lengths, load_pairs, source_hash
from core.data.schema import BadRow, PreferencePairs
from core.errors import ConfigError, disk_full_is_said
from core.evaluate.run_quality import (
    PairTable,
    accuracy_rows,
    baseline_rows,
    batch_spread_rows,
    evaluation_frame,
    figure_row,
    probe_rows,
    storage_rows,
)
from core.features.contexts import context_tables
from core.features.extract import Answer, extract, group_answers
from core.features.labels.offline import label_table
from core.features.layout import layout_tables
from core.features.neighbours import neighbour_table
from core.features.pieces import token_pieces
from core.features.statistics import feature_table, histogram_table
from core.impact.inputs import ImpactInputs
from core.impact.stage import impact_tables
from core.models.backbone import Backbone, context_length, load_backbone, load_tokenizer, pick_device
from core.models.classifier import HEAD_FILE, final_states, load_classifier, load_reward_head, save_reward_head
from core.models.head_file import load_head, save_head
from core.models.resolve import ResolvedModel, file_sha256, resolve_model, weights_sha256
from core.progress import Progress
from core.publish import BuildResult, publish
from core.rewards.ablation import causal_tables
from core.rewards.accuracy import pair_outcome
from core.rewards.decomposition import model_rewards
from core.rewards.head import L2_GRID, all_comparisons, choose_l2, fit_head, head_of
from core.rewards.processes import world
from core.rewards.train import train_reward_model
from core.rewards.train_sarm import train_sarm
from core.sae.checkpoint import load_sae
from core.sae.fit import fit_sae, training_inputs_hash
from core.sae.topk import TopKSAE
from core.salience.sets import DEFAULT_SLICE, default_set
from core.salience.table import salience_tables
from core.store.arrays import RunArrays, load_arrays, save_arrays
from core.store.pooling import arrays_from_shards
from core.store.stages import Stage, open_stage, write_json

STAGE_VERSION = 1
"""Raise it when the meaning of every stage's result changes, so that old results are not reused."""
STAGE_VERSIONS = {"features": 2}
"""The same for one stage (and what depends on it); 1 where nothing is said."""


__all__ = ["Build", "BuildResult", "build"]


def build(config: RunConfig, progress: Progress) -> BuildResult:
    """Builds (or finishes, or leaves as it is) the run a configuration describes.

    Raises:
        RewardscopeError: a sentence that says what is wrong; the last published run is untouched.
    """
    return Build(config, progress).run()


class Build:
    """The stages of one run, in the order in which they happen."""

    def __init__(self, config: RunConfig, progress: Progress) -> None:
        self.config = config
        self.progress = progress
        self.folder = config.folder
        self.keys: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.trained: Path | None = None
        self.taken: SaeConfig | None = None

    def run(self) -> BuildResult:
        with disk_full_is_said(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.config = build_sarm.checked(self.config, self.resolved.path)
            self.read_pairs()
            self._reward_model()
            self._sae()
            self._activations()
            self._head()
            self._features()
            self._salience()
            self._impact()
            self._evaluation()
            return publish(self)

    # ------------------------------------------------------------------ stages

    def read_pairs(self) -> None:
        """Reads, checks and splits the preference pairs."""
        config = self.config.pairs
        stage = self._stage(
            "pairs", config.model_dump(mode="json", exclude={"source"}), source_hash(config), self.limit()
        )

        def compute(folder: Path) -> None:
            pairs = load_pairs(config, skipped_to=folder / "skipped.jsonl")
            pairs = check_prompt_lengths(
                pairs,
                self.tokenizer,
                config.max_prompt_tokens or self.limit(),
                config.on_bad_rows,
                skipped_to=folder / "skipped.jsonl",
            )
            pairs.pairs.write_parquet(folder / "pair.parquet")
            pairs.responses.write_parquet(folder / "response.parquet")
            write_json(folder / "origin.json", dict(pairs.origin))

        frames = self._run(stage, compute).frames()
        skipped = stage.folder / "skipped.jsonl"
        lines = skipped.read_text(encoding="utf-8").splitlines() if skipped.exists() else []
        bad = tuple(BadRow(**json.loads(line)) for line in lines)
        origin = json.loads((stage.folder / "origin.json").read_text(encoding="utf-8"))
        self.pairs = PreferencePairs(frames["pair"], frames["response"], bad, origin)
        self.table = PairTable.of(self.pairs.pairs, self.pairs.responses)

    def _reward_model(self) -> None:
        """Trains a reward model from the given causal model, when the configuration asks for one."""
        if self.config.reward_model.sarm is not None:
            self._sarm()
        config = self.config.reward_model.train
        if config is None:
            return
        base = weights_sha256(self.resolved.path)
        dtype, device = self.config.model.dtype, self.device.type
        inputs = (config.model_dump(mode="json"), base, self.keys["pairs"], self.limit(), dtype, device)
        stage = self._stage("reward_model", *inputs)

        def compute(folder: Path) -> None:
            facts = train_reward_model(
                config,
                self.resolved.path,
                self.pairs,
                folder / "model",
                self.progress,
                max_length=self.limit(),
                dtype=self.config.model.dtype,
                device=str(self.device),
            )
            write_json(folder / "training.json", facts)

        self._run(stage, compute)
        self.trained = stage.folder / "model"

    def _sarm(self) -> None:
        """Trains a SARM model of the causal model and an SAE trained on its states."""
        config, settings, model = self.config.reward_model.sarm, self.config.model, self.resolved
        assert config is not None
        if world() > 1:
            raise ConfigError(
                "A build runs in one process; train with `torchrun -m core train CONFIG.yaml -o FOLDER` first, then build "
                "with model.name: FOLDER."
            )
        sae, facts = self.pretrained_sae()
        inputs = (
            config.model_dump(mode="json"),
            weights_sha256(model.path),
            self.keys.get("pretraining"),
            settings.layer,
        )
        pooling = self.config.head.pooling
        device = self.device
        stage = self._stage(
            "reward_model", "sarm", *inputs, self.keys["pairs"], self.limit(), pooling, settings.dtype, device.type
        )

        def compute(folder: Path) -> None:
            train_sarm(
                config,
                model.path,
                sae,
                settings.layer,
                self.pairs,
                folder / "model",
                self.progress,
                pooling=pooling,
                max_length=self.limit(),
                sae_facts=facts,
                dtype=settings.dtype,
                device=str(device),
                tokens_per_batch=settings.tokens_per_batch,
                name=model.name,
            )

        self._run(stage, compute)
        self.trained = stage.folder / "model"
        own = build_sarm.read_sarm_config(self.trained)
        sizes = {"latents": own.latents, "k": own.k}  # of `encoder: identity`, not those of sae
        self.taken = self.config.sae.model_copy(update=sizes)

    def pretrained_sae(self) -> tuple[TopKSAE | None, dict[str, str]]:
        """The SAE from which a SARM model is trained, trained or given, and the metadata of its file.

        None where the model needs no SAE (`encoder: identity`).
        """
        sarm = self.config.reward_model.sarm
        if sarm is not None and sarm.encoder == "identity":
            return None, {}
        model = self.config.model
        identity = [weights_sha256(self.resolved.path), model.layer, model.dtype, self.device.type]
        stage = self._run(self._sae_stage("pretraining", identity), lambda folder: self._fit_sae(folder, self._base()))
        sae, facts = load_sae(stage.folder / "sae.safetensors")
        return sae, facts

    def _sae(self) -> None:
        """Trains the SAE, or takes the given checkpoint, or that of a SARM model."""
        stage = self._sae_stage("sae", self._model_identity)

        def compute(folder: Path) -> None:
            if not self.is_sarm:
                self._fit_sae(folder, self.backbone)
                return
            budget = self.config.model.tokens_per_batch
            build_sarm.take_sae(
                self.model_path,
                self.taken or self.config.sae,
                self.backbone,
                self._train_ids(),
                folder,
                self.progress,
                tokens_per_batch=budget,
            )

        self._run(stage, compute)
        self.sae_file = stage.folder / "sae.safetensors"
        self.sae, self.sae_metadata = load_sae(self.sae_file, device=self.device)
        self.sae_quality = json.loads((stage.folder / "quality.json").read_text(encoding="utf-8"))

    def _activations(self) -> None:
        """Extracts the features of every answer into shards, and lays them out as arrays."""
        per_shard = self.config.model.answers_per_shard
        stage = self._stage(
            "activations",
            self._model_identity,
            self.keys["pairs"],
            self.keys["sae"],
            self.limit(),
            per_shard,
            *(["final states"] if self.is_classifier else []),
        )
        shards, arrays = self.folder / "shards" / stage.key, self.folder / "arrays" / stage.key

        def compute(folder: Path) -> None:
            files = extract(
                self.groups,
                self.backbone,
                self.sae,
                shards,
                tokens_per_batch=self.config.model.tokens_per_batch,
                answers_per_shard=per_shard,
                progress=self.progress,
            )
            made = arrays_from_shards(files, len(self.pairs.responses), self.sae.latents)
            if self.is_classifier:
                model = self.config.model
                classifier = load_classifier(self.model_path, dtype=model.dtype, device=str(self.device))
                final = final_states(self.groups, classifier, self.progress, model.tokens_per_batch)
                made = replace(made, final=final)
                save_reward_head(folder / HEAD_FILE, classifier.head)
            save_arrays(arrays, made)

        self._run(stage, compute)
        self.arrays: RunArrays = load_arrays(arrays)
        self.reward_head = load_reward_head(stage.folder / HEAD_FILE) if self.is_classifier else None

    def _head(self) -> None:
        """Fits the Bradley-Terry head on the training pairs, or takes that of a SARM model."""
        config = self.config.head
        stage = self._stage("head", config.model_dump(mode="json"), list(L2_GRID), self.keys["activations"])

        def compute(folder: Path) -> None:
            if self.is_sarm:
                build_sarm.take_head(self.model_path, folder / "head.safetensors")
                return
            comparisons = all_comparisons(self.table.response_pair, self.table.chosen).of(self.table.train)
            pooled = self.arrays.pooled(config.pooling)
            if config.l2 is None:
                fit = choose_l2(
                    pooled,
                    comparisons,
                    self.table.prompt,
                    validation_fraction=config.validation_fraction,
                    seed=config.seed,
                    tolerance=config.tolerance,
                )
            else:
                fit = fit_head(pooled, comparisons, l2=config.l2, tolerance=config.tolerance)
            save_head(folder / "head.safetensors", head_of(fit, config.pooling))

        self._run(stage, compute)
        self.head = load_head(stage.folder / "head.safetensors")
        self.rewards = model_rewards(self.arrays, self.head.weights, self.head.pooling)
        """Rewards of the head on features: sums of contributions."""
        self.model_rewards = self.rewards
        """Rewards of the reward model: the same, or those of the ordinary model the SAE stands beside."""
        if self.reward_head is not None and self.arrays.final is not None:
            self.model_rewards = self.reward_head.rewards(self.arrays.final)

    def _features(self) -> None:
        """Statistics, contexts, neighbours, map and offline labels of every feature."""
        config, config_head = self.config.features, self.config.head
        pairs, responses = self.pairs.pairs, self.responses
        stage = self._stage("features", config.model_dump(mode="json"), self.keys["activations"], self.keys["head"])

        def compute(folder: Path) -> None:
            decoder = self.sae.decoder.weight.detach().float().cpu().numpy()
            pieces = token_pieces(self.arrays, responses)
            with self.progress.task("features", 6, "tables") as task:
                feature = feature_table(self.arrays, pairs, responses, self.head.weights, config_head.pooling)
                tables = {"feature": feature}
                task.advance()
                tables["histogram"] = histogram_table(self.arrays)
                task.advance()
                tables["neighbour"] = neighbour_table(decoder, self.arrays, config.neighbours)
                task.advance()
                tables["context"], tables["band"] = context_tables(self.arrays, pieces, tables["neighbour"], config)
                task.advance()
                tables["label"] = label_table(self.arrays, pairs, responses, pieces, config.seed)
                task.advance()
                tables["layout"], tables["cluster"] = layout_tables(decoder, self.arrays, tables["label"], config)
                task.advance()
            for name, frame in tables.items():
                frame.write_parquet(folder / f"{name}.parquet")

        self.tables = self._run(stage, compute).frames()

    def _salience(self) -> None:
        """Which features separate chosen from rejected answers, over all pairs and by slice."""
        config = self.config.salience
        stage = self._stage("salience", config.model_dump(mode="json"), self.keys["activations"])

        def compute(folder: Path) -> None:
            tables = salience_tables(self.arrays, self.pairs.pairs, self.responses, config, self.progress)
            for name, frame in tables.items():
                frame.write_parquet(folder / f"{name}.parquet")

        self.tables |= self._run(stage, compute).frames()

    def _impact(self) -> None:
        """What changed training pairs would do, for the default set; and what taking each feature away does."""
        config = self.config.impact
        stage = self._stage("impact", config.model_dump(mode="json"), self.keys["head"], self.keys["salience"])

        def compute(folder: Path) -> None:
            salience, pairs, responses = self.tables["salience"], self.pairs.pairs, self.responses
            train = salience.filter(slice=DEFAULT_SLICE)
            own = default_set(train, sae=file_sha256(self.sae_file), size=config.set_size) if len(train) else None
            inputs = ImpactInputs.of(
                self.arrays,
                pairs,
                responses,
                self.head.weights,
                l2=self.head.metadata["l2"],
                pooling=self.head.pooling,
                kind=self.config.reward_model.kind,
                margin=pair_outcome(self.model_rewards, self.table.response_pair, self.table.chosen)[1],
                sae=file_sha256(self.sae_file),
                settings=self.config.head,
                impact=config,
            )
            tables = impact_tables(inputs, own, config, self.progress)
            if (
                not self.is_classifier
            ):  # an ordinary reward model's features are checked by running it: `rewardscope ablate`
                here = salience.filter(slice="all", pooling=self.head.pooling)
                weights, pooling = self.head.weights, self.head.pooling
                tables |= causal_tables(self.arrays, pairs, responses, weights, pooling, here, self.progress)
            for name, frame in tables.items():
                frame.write_parquet(folder / f"{name}.parquet")

        self.tables |= self._run(stage, compute).frames()

    def _evaluation(self) -> None:
        """Accuracies, baselines, what the SAE loses, and the health of the extraction."""
        config = self.config.head
        stage = self._stage("evaluation", config.model_dump(mode="json"), self.keys["activations"], self.keys["head"])

        def compute(folder: Path) -> None:
            n_tokens = np.diff(self.arrays.token_start)
            with self.progress.task("evaluation", 4, "parts") as task:
                rows = accuracy_rows(self.rewards, self.table, config)
                task.advance()
                if self.is_classifier:
                    rows += accuracy_rows(self.model_rewards, self.table, config, prefix="reward-model ")
                rows += baseline_rows(n_tokens, self.table, config)
                rows += probe_rows(self.arrays, self.table, config)
                task.advance()
                rows += batch_spread_rows(
                    self.groups,
                    self.backbone,
                    self.sae,
                    self.head.weights,
                    self.head.pooling,
                    self.config.model.tokens_per_batch,
                    self.rewards,
                )
                task.advance()
                rows += [
                    figure_row("sae", name, value, self.sae_quality["n"], "on vectors the SAE was not trained on")
                    for name, value in self.sae_quality.items()
                    if name != "n" and isinstance(value, int | float)
                ]
                rows += storage_rows(self.arrays, self.sae)
                task.advance()
            evaluation_frame(rows).write_parquet(folder / "evaluation.parquet")

        self.tables |= self._run(stage, compute).frames()

    # ------------------------------------------------------- what stages share

    @cached_property
    def resolved(self) -> ResolvedModel:
        model = self.config.model
        return resolve_model(model.name, model.revision, model.weights)

    @property
    def model_path(self) -> Path:
        """The model that is opened: the given one, or the reward model trained from it."""
        return self.trained or self.resolved.path

    @cached_property
    def weights_sha256(self) -> str:
        return weights_sha256(self.model_path)

    @property
    def is_classifier(self) -> bool:
        return self.config.reward_model.kind == "classifier"

    @property
    def is_sarm(self) -> bool:
        return self.config.reward_model.kind == "sarm"

    @cached_property
    def device(self) -> torch.device:
        return pick_device(self.config.model.device)

    @property
    def _model_identity(self) -> list[Any]:
        return [self.weights_sha256, self.config.model.layer, self.config.model.dtype, self.device.type]

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.resolved.path)

    @cached_property
    def backbone(self) -> Backbone:
        model = self.config.model
        return load_backbone(self.model_path, model.layer, dtype=model.dtype, device=str(self.device))

    def _base(self) -> Backbone:
        """The causal model from which a SARM model is trained."""
        model = self.config.model
        return load_backbone(self.resolved.path, model.layer, dtype=model.dtype, device=str(self.device))

    @cached_property
    def groups(self) -> list[list[Answer]]:
        """All answers, tokenised, grouped by prompt."""
        return group_answers(self.pairs, self.encoded)

    @cached_property
    def encoded(self) -> list[EncodedAnswer]:
        """Every answer tokenised, in response order."""
        texts = self.pairs.responses.group_by("pair_index", maintain_order=True).agg("text")["text"].to_list()
        conversations = list(zip(self.pairs.pairs["messages"].to_list(), texts, strict=True))
        return [
            answer for pair in encode_pairs(self.tokenizer, conversations, max_length=self.limit()) for answer in pair
        ]

    @property
    def responses(self) -> pl.DataFrame:
        """The answers with what extraction found out about their length."""
        start = self.arrays.token_start
        boundary = np.add.reduceat(self.arrays.token_boundary.astype(np.int64), start[:-1])
        return self.pairs.responses.with_columns(
            pl.Series("n_tokens", np.diff(start).astype(np.uint32)),
            pl.Series("n_boundary", boundary.astype(np.uint32)),
            pl.Series("token_start", start[:-1].astype(np.uint64)),
            pl.Series("truncated", np.asarray(self.arrays.truncated)),
        )

    def _train_ids(self) -> list[list[int]]:
        """Token ids of the training conversations, where the SAE is to see them."""
        if not self.config.sae.use_pairs:
            return []
        return [answer.encoded.ids for group in self.groups for answer in group if self._trains(answer)]

    def _trains(self, answer: Answer) -> bool:
        return bool(self.table.train[self.table.response_pair[answer.response_id]])

    def _fit_sae(self, folder: Path, backbone: Backbone) -> None:
        budget = self.config.model.tokens_per_batch
        fit_sae(self.config.sae, backbone, self._train_ids(), folder, self.progress, tokens_per_batch=budget)

    def _sae_stage(self, name: str, model_identity: list[Any]) -> Stage:
        config = self.config.sae
        inputs = self.keys["pairs"] if config.use_pairs else None
        return self._stage(name, config.model_dump(mode="json"), model_identity, inputs, training_inputs_hash(config))

    def limit(self) -> int:
        return self.config.model.max_length or context_length(self.resolved.path)

    def _stage(self, name: str, *inputs: Any) -> Stage:
        version = STAGE_VERSIONS.get(name, 1)
        key = fingerprint(STAGE_VERSION, name, *([] if version == 1 else [version]), *inputs)
        self.keys[name] = key
        return open_stage(self.folder, name, key)

    def _run(self, stage: Stage, compute: Any) -> Stage:
        stage.run(compute)
        if stage.seconds is not None:
            self.seconds[stage.name] = stage.seconds
        return stage
