"""The main job: from a configuration to a published run, stage by stage.

pairs -> [reward model] -> sae -> activations -> head -> features -> salience -> impact -> causal -> evaluation -> database

Each stage keeps its result under the hash of what it depends on. A stage whose inputs have not changed is skipped;
a build that was interrupted goes on where it stopped; the published run changes only at the very end, by replacing
the manifest. (The SAE comes before the activations because what is extracted are its features.)
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml

from core import __version__
from core.config import RunConfig, fingerprint
from core.data.chat import EncodedAnswer, encode_pairs
from core.data.load import check_prompt_lengths, load_pairs, source_hash
from core.data.schema import BadRow, PreferencePairs
from core.errors import RunError, disk_full_is_said
from core.evaluate.run_quality import (
    PairTable,
    accuracy_rows,
    baseline_rows,
    batch_spread_rows,
    evaluation_frame,
    figure_row,
    probe_rows,
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
from core.models.resolve import ResolvedModel, file_sha256, resolve_model, weights_sha256
from core.progress import Progress
from core.rewards.ablation import causal_tables
from core.rewards.accuracy import pair_outcome
from core.rewards.decomposition import check_sums, model_rewards
from core.rewards.head import L2_GRID, all_comparisons, choose_l2, fit_head
from core.rewards.head_file import Head, load_head, save_head
from core.rewards.train import train_reward_model
from core.sae.checkpoint import load_sae
from core.sae.fit import fit_sae, training_inputs_hash
from core.salience.sets import DEFAULT_SLICE, default_set
from core.salience.table import salience_tables
from core.store.arrays import RunArrays, load_arrays, save_arrays
from core.store.manifest import Manifest, read_manifest, write_manifest
from core.store.pooling import arrays_from_shards
from core.store.stages import Stage, open_stage, prune, write_json
from core.store.writer import new_database

STAGE_VERSION = 1
"""Raise it when the meaning of every stage's result changes, so that old results are not reused."""
STAGE_VERSIONS = {"features": 2}
"""The same for one stage (and what depends on it); 1 where nothing is said."""


@dataclass(frozen=True)
class BuildResult:
    """What a build ended with."""

    folder: Path
    manifest: Manifest
    unchanged: bool


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

    def run(self) -> BuildResult:
        with disk_full_is_said(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._pairs()
            self._reward_model()
            self._sae()
            self._activations()
            self._head()
            self._features()
            self._salience()
            self._impact()
            self._evaluation()
            return self._publish()

    # ------------------------------------------------------------------ stages

    def _pairs(self) -> None:
        """Reads, checks and splits the preference pairs."""
        config = self.config.pairs
        stage = self._stage(
            "pairs", config.model_dump(mode="json", exclude={"source"}), source_hash(config), self._limit()
        )

        def compute(folder: Path) -> None:
            pairs = load_pairs(config, skipped_to=folder / "skipped.jsonl")
            pairs = check_prompt_lengths(
                pairs,
                self.tokenizer,
                config.max_prompt_tokens or self._limit(),
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
        """Trains an ordinary reward model from the given causal model, when the configuration asks for one."""
        config = self.config.reward_model.train
        if config is None:
            return
        base = weights_sha256(self.resolved.path)
        dtype, device = self.config.model.dtype, self._device.type
        inputs = (config.model_dump(mode="json"), base, self.keys["pairs"], self._limit(), dtype, device)
        stage = self._stage("reward_model", *inputs)

        def compute(folder: Path) -> None:
            facts = train_reward_model(
                config,
                self.resolved.path,
                self.pairs,
                folder / "model",
                self.progress,
                max_length=self._limit(),
                dtype=self.config.model.dtype,
                device=str(self._device),
            )
            write_json(folder / "training.json", facts)

        self._run(stage, compute)
        self.trained = stage.folder / "model"

    def _sae(self) -> None:
        """Trains the SAE, or takes the given checkpoint."""
        config = self.config.sae
        inputs = self.keys["pairs"] if config.use_pairs else None
        stage = self._stage(
            "sae", config.model_dump(mode="json"), self._model_identity, inputs, training_inputs_hash(config)
        )

        def compute(folder: Path) -> None:
            train = [answer.encoded.ids for group in self.groups for answer in group if self._trains(answer)]
            budget = self.config.model.tokens_per_batch
            fit_sae(
                config, self.backbone, train if config.use_pairs else [], folder, self.progress, tokens_per_batch=budget
            )

        self._run(stage, compute)
        self.sae_file = stage.folder / "sae.safetensors"
        self.sae, self.sae_metadata = load_sae(self.sae_file, device=self._device)
        self.sae_quality = json.loads((stage.folder / "quality.json").read_text(encoding="utf-8"))

    def _activations(self) -> None:
        """Extracts the features of every answer into shards, and lays them out as arrays."""
        per_shard = self.config.model.answers_per_shard
        stage = self._stage(
            "activations",
            self._model_identity,
            self.keys["pairs"],
            self.keys["sae"],
            self._limit(),
            per_shard,
            *(["final states"] if self._classifier else []),
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
            if self._classifier:
                model = self.config.model
                classifier = load_classifier(self.model_path, dtype=model.dtype, device=str(self._device))
                final = final_states(self.groups, classifier, self.progress, model.tokens_per_batch)
                made = replace(made, final=final)
                save_reward_head(folder / HEAD_FILE, classifier.head)
            save_arrays(arrays, made)

        self._run(stage, compute)
        self.arrays: RunArrays = load_arrays(arrays)
        self.reward_head = load_reward_head(stage.folder / HEAD_FILE) if self._classifier else None

    def _head(self) -> None:
        """Fits the Bradley-Terry head on the training pairs."""
        config = self.config.head
        stage = self._stage("head", config.model_dump(mode="json"), list(L2_GRID), self.keys["activations"])

        def compute(folder: Path) -> None:
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
            save_head(folder / "head.safetensors", Head.of(fit, config.pooling))

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
                l2=float(self.head.metadata["l2"]),
                pooling=self.head.pooling,
                kind=self.config.reward_model.kind,
                margin=pair_outcome(self.model_rewards, self.table.response_pair, self.table.chosen)[1],
                sae=file_sha256(self.sae_file),
                settings=self.config.head,
                impact=config,
            )
            tables = impact_tables(inputs, own, config, self.progress)
            if (
                not self._classifier
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
                if self._classifier:
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
                task.advance()
            evaluation_frame(rows).write_parquet(folder / "evaluation.parquet")

        self.tables |= self._run(stage, compute).frames()

    # ----------------------------------------------------------------- publish

    def _publish(self) -> BuildResult:
        """Writes the database aside, checks it, and switches the manifest to it."""
        run_id = fingerprint(self.keys)[:12]
        database = self.folder / f"run-{run_id}.duckdb"
        if (current := self._current()) is not None and current.run_id == run_id and database.exists():
            return BuildResult(self.folder, current, unchanged=True)
        with self.progress.task("database", 4, "steps") as task, new_database(database) as db:
            db.insert_all(self._run_tables())
            task.advance()
            db.insert_activations(self.arrays)
            task.advance()
            # Read back what was stored: the sums must be the rewards, for every answer.
            check = check_sums(db.rewards(), db.contribution_sums(self.head.pooling))
            health = figure_row(
                "health",
                "sum_error",
                check.relative_error,
                check.n,
                f"largest |reward - sum of contributions|, unit: standard deviation of the reward ({check.scale:.4g})",
            )
            db.insert("evaluation", evaluation_frame([health]))
            task.advance()
        self._copy_aside("sae", "sae.safetensors")
        self._copy_aside("head", "head.safetensors")
        if self._classifier:
            self._copy_aside("activations", HEAD_FILE)
        skipped = self.folder / "stages" / f"pairs-{self.keys['pairs']}" / "skipped.jsonl"
        self._write_config()
        if self.pairs.skipped:
            shutil.copyfile(skipped, self.folder / "skipped.jsonl")
        manifest = self._manifest(run_id, database.name, {"sum_error": check.relative_error, "sum_checked": check.n})
        write_manifest(self.folder, manifest)
        prune(self.folder, self.keys)
        for old in self.folder.glob("run-*.duckdb"):
            if old != database:
                old.unlink()
        return BuildResult(self.folder, manifest, unchanged=False)

    def _run_tables(self) -> dict[str, pl.DataFrame]:
        _, margin = pair_outcome(self.rewards, self.table.response_pair, self.table.chosen)
        best = (
            pl.DataFrame({"pair_index": self.table.response_pair, "chosen": self.table.chosen, "reward": self.rewards})
            .group_by("pair_index")
            .agg(
                pl.col("reward").filter(pl.col("chosen")).max().alias("chosen_reward"),
                pl.col("reward").filter(~pl.col("chosen")).max().alias("rejected_reward"),
            )
            .with_columns(pl.col("pair_index").cast(pl.UInt32))
        )
        messages = [json.dumps(turns, ensure_ascii=False) for turns in self.pairs.pairs["messages"].to_list()]
        pairs = self.pairs.pairs.with_columns(pl.Series("messages", messages), pl.Series("margin", margin)).join(
            best, on="pair_index", how="left", maintain_order="left"
        )
        return {
            "pair": pairs,
            "response": self.responses.with_columns(
                pl.Series("reward", self.rewards),
                pl.Series(
                    "model_reward", self.model_rewards if self._classifier else [None] * len(self.rewards), pl.Float64
                ),
            ),
            **self.tables,
        }

    def _manifest(self, run_id: str, database: str, health: dict[str, Any]) -> Manifest:
        evaluation = self.tables["evaluation"]
        held = evaluation.filter(
            (pl.col("benchmark") == "held-out") & (pl.col("metric") == "accuracy") & (pl.col("subset") == "all")
        )
        model = self.resolved
        return Manifest(
            name=self.config.name,
            run_id=run_id,
            code_version=__version__,
            database=database,
            shards=f"shards/{self.keys['activations']}",
            arrays=f"arrays/{self.keys['activations']}",
            config=self.config.model_dump(mode="json", exclude={"runs"}),
            model={
                "name": model.name,
                "source": model.source,
                "revision": model.revision,
                "weights_sha256": self._weights_sha256,
                "layer": self.config.model.layer,
                "d_model": self.sae.d_model,
                "dtype": self.config.model.dtype,
                "device": str(self._device),
                "kind": self.config.reward_model.kind,
                **({"checkpoint": str(self.trained.relative_to(self.folder))} if self.trained else {}),
            },
            data={
                **self.pairs.origin,
                "n_pairs": len(self.pairs.pairs),
                "n_train_pairs": int(self.table.train.sum()),
                "n_prompts": int(self.pairs.pairs["prompt_id"].n_unique()),
                "n_responses": len(self.pairs.responses),
                "n_tokens": int(self.arrays.token_start[-1]),
                "n_skipped": len(self.pairs.skipped),
            },
            sae={
                **self.sae_metadata,
                "sha256": file_sha256(self.folder / "sae.safetensors"),
                "quality": self.sae_quality,
            },
            head={
                **self.head.metadata,
                "sha256": file_sha256(self.folder / "head.safetensors"),
                "held_out": held.to_dicts()[0],
            },
            health={
                **health,
                **{
                    row["metric"]: row["value"] for row in evaluation.filter(pl.col("benchmark") == "health").to_dicts()
                },
            },
            stages={name: {"key": key, "seconds": self.seconds.get(name)} for name, key in self.keys.items()},
            seeds={"sae": self.config.sae.seed, "head": self.config.head.seed, "features": self.config.features.seed},
            versions={name: metadata.version(name) for name in ("torch", "transformers", "duckdb", "polars", "numpy")},
        )

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
    def _weights_sha256(self) -> str:
        return weights_sha256(self.model_path)

    @property
    def _classifier(self) -> bool:
        return self.config.reward_model.kind == "classifier"

    @cached_property
    def _device(self) -> torch.device:
        return pick_device(self.config.model.device)

    @property
    def _model_identity(self) -> list[Any]:
        return [self._weights_sha256, self.config.model.layer, self.config.model.dtype, self._device.type]

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.resolved.path)

    @cached_property
    def backbone(self) -> Backbone:
        model = self.config.model
        return load_backbone(self.model_path, model.layer, dtype=model.dtype, device=str(self._device))

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
            answer for pair in encode_pairs(self.tokenizer, conversations, max_length=self._limit()) for answer in pair
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

    def _trains(self, answer: Answer) -> bool:
        return bool(self.table.train[self.table.response_pair[answer.response_id]])

    def _limit(self) -> int:
        return self.config.model.max_length or context_length(self.resolved.path)

    def _current(self) -> Manifest | None:
        try:
            return read_manifest(self.folder)
        except RunError:
            return None

    def _copy_aside(self, stage: str, name: str) -> None:
        target = self.folder / name
        aside = target.with_name(name + ".tmp")
        shutil.copyfile(self.folder / "stages" / f"{stage}-{self.keys[stage]}" / name, aside)
        aside.replace(target)

    def _write_config(self) -> None:
        """The configuration as it was used, every default spelled out: what to give `rewardscope build` to make this again."""
        config = self.config.model_dump(mode="json", exclude={"runs"})
        (self.folder / "config.yaml").write_text(
            yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )

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
