"""The end of a build: the database written aside and checked, the files beside it, and the manifest switched to them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import yaml

from core import __version__
from core.config import fingerprint
from core.errors import RunError
from core.evaluate.run_quality import evaluation_frame, figure_row
from core.models.classifier import HEAD_FILE
from core.models.resolve import file_sha256
from core.rewards.accuracy import pair_outcome
from core.rewards.decomposition import check_sums
from core.store.manifest import Manifest, read_manifest, write_manifest
from core.store.stages import prune
from core.store.writer import new_database

if TYPE_CHECKING:
    from core.build import Build


@dataclass(frozen=True)
class BuildResult:
    """What a build ended with."""

    folder: Path
    manifest: Manifest
    unchanged: bool


def publish(build: Build) -> BuildResult:
    """Writes the database aside, checks it, and switches the manifest to it.

    Args:
        build: all its stages done.
    """
    run_id = fingerprint(build.keys)[:12]
    database = build.folder / f"run-{run_id}.duckdb"
    if (current := _current(build.folder)) is not None and current.run_id == run_id and database.exists():
        return BuildResult(build.folder, current, unchanged=True)
    with build.progress.task("database", 4, "steps") as task, new_database(database) as db:
        db.insert_all(_run_tables(build))
        task.advance()
        db.insert_activations(build.arrays)
        task.advance()
        # Read back what was stored: the sums must be the rewards, for every answer.
        check = check_sums(db.rewards(), db.contribution_sums(build.head.pooling))
        health = figure_row(
            "health",
            "sum_error",
            check.relative_error,
            check.n,
            f"largest |reward - sum of contributions|, unit: standard deviation of the reward ({check.scale:.4g})",
        )
        db.insert("evaluation", evaluation_frame([health]))
        task.advance()
    _copy_aside(build, "sae", "sae.safetensors")
    _copy_aside(build, "head", "head.safetensors")
    if build.is_classifier:
        _copy_aside(build, "activations", HEAD_FILE)
    skipped = build.folder / "stages" / f"pairs-{build.keys['pairs']}" / "skipped.jsonl"
    _write_config(build)
    if build.pairs.skipped:
        shutil.copyfile(skipped, build.folder / "skipped.jsonl")
    manifest = _manifest(build, run_id, database.name, {"sum_error": check.relative_error, "sum_checked": check.n})
    write_manifest(build.folder, manifest)
    prune(build.folder, build.keys)
    for old in build.folder.glob("run-*.duckdb"):
        if old != database:
            old.unlink()
    return BuildResult(build.folder, manifest, unchanged=False)


def _run_tables(build: Build) -> dict[str, pl.DataFrame]:
    table = build.table
    _, margin = pair_outcome(build.rewards, table.response_pair, table.chosen)
    best = (
        pl.DataFrame({"pair_index": table.response_pair, "chosen": table.chosen, "reward": build.rewards})
        .group_by("pair_index")
        .agg(
            pl.col("reward").filter(pl.col("chosen")).max().alias("chosen_reward"),
            pl.col("reward").filter(~pl.col("chosen")).max().alias("rejected_reward"),
        )
        .with_columns(pl.col("pair_index").cast(pl.UInt32))
    )
    messages = [json.dumps(turns, ensure_ascii=False) for turns in build.pairs.pairs["messages"].to_list()]
    pairs = build.pairs.pairs.with_columns(pl.Series("messages", messages), pl.Series("margin", margin)).join(
        best, on="pair_index", how="left", maintain_order="left"
    )
    own = build.model_rewards if build.is_classifier else [None] * len(build.rewards)
    return {
        "pair": pairs,
        "response": build.responses.with_columns(
            pl.Series("reward", build.rewards), pl.Series("model_reward", own, pl.Float64)
        ),
        **build.tables,
    }


def _manifest(build: Build, run_id: str, database: str, health: dict[str, Any]) -> Manifest:
    config, model, evaluation = build.config, build.resolved, build.tables["evaluation"]
    held = evaluation.filter(
        (pl.col("benchmark") == "held-out") & (pl.col("metric") == "accuracy") & (pl.col("subset") == "all")
    )
    return Manifest(
        name=config.name,
        run_id=run_id,
        code_version=__version__,
        database=database,
        shards=f"shards/{build.keys['activations']}",
        arrays=f"arrays/{build.keys['activations']}",
        config=config.model_dump(mode="json", exclude={"runs"}),
        model={
            "name": model.name,
            "source": model.source,
            "revision": model.revision,
            "weights_sha256": build.weights_sha256,
            "layer": config.model.layer,
            "d_model": build.sae.d_model,
            "dtype": config.model.dtype,
            "device": str(build.device),
            "kind": config.reward_model.kind,
            **({"checkpoint": str(build.trained.relative_to(build.folder))} if build.trained else {}),
        },
        data={
            **build.pairs.origin,
            "n_pairs": len(build.pairs.pairs),
            "n_train_pairs": int(build.table.train.sum()),
            "n_prompts": int(build.pairs.pairs["prompt_id"].n_unique()),
            "n_responses": len(build.pairs.responses),
            "n_tokens": int(build.arrays.token_start[-1]),
            "n_skipped": len(build.pairs.skipped),
        },
        sae={
            **build.sae_metadata,
            "sha256": file_sha256(build.folder / "sae.safetensors"),
            "quality": build.sae_quality,
        },
        head={
            **build.head.metadata,
            "sha256": file_sha256(build.folder / "head.safetensors"),
            "held_out": held.to_dicts()[0],
        },
        health={
            **health,
            **{row["metric"]: row["value"] for row in evaluation.filter(pl.col("benchmark") == "health").to_dicts()},
        },
        stages={name: {"key": key, "seconds": build.seconds.get(name)} for name, key in build.keys.items()},
        seeds={"sae": config.sae.seed, "head": config.head.seed, "features": config.features.seed},
        versions={name: metadata.version(name) for name in ("torch", "transformers", "duckdb", "polars", "numpy")},
    )


def _current(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except RunError:
        return None


def _copy_aside(build: Build, stage: str, name: str) -> None:
    target = build.folder / name
    aside = target.with_name(name + ".tmp")
    shutil.copyfile(build.folder / "stages" / f"{stage}-{build.keys[stage]}" / name, aside)
    aside.replace(target)


def _write_config(build: Build) -> None:
    """The configuration as it was used, every default spelled out: what to give `rewardscope build` to make this again."""
    config = build.config.model_dump(mode="json", exclude={"runs"})
    (build.folder / "config.yaml").write_text(
        yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
