"""Results of benchmarks, beside the runs: `<runs>/benchmarks/<run_id>/<benchmark>[-<tag>]/`. A run is never changed.

summary.json    the figures and everything they depend on
items.parquet   one row an item: prompt, answers, rewards, result (ITEM_SCHEMA)
weights.npy     float64 [M], the head the rewards were computed with
activations/    pooled activations of every different answer: ptr.npy, features.npy, values.npy (CSR rows)

The last two are absent for a reward model without features. A folder is written aside and moved into place whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp

from core.errors import ConfigError, RunError, disk_full_is_said

FORMAT = 1
FOLDER = "benchmarks"
ITEM_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "item_index": pl.UInt32,  # 0.. in file order
    "item_id": pl.String,
    "subset": pl.String,
    "group": pl.String,  # a finer class, '' = none
    "prompt_id": pl.String,
    "messages": pl.String,  # JSON [{"role", "content"}, ...]
    "answers": pl.List(pl.String),  # right ones first
    "n_correct": pl.UInt16,
    "styles": pl.List(pl.String),  # RM-Bench; empty otherwise
    "vectors": pl.List(pl.UInt32),  # row of `activations` of each answer
    "truncated": pl.List(pl.Boolean),
    "rewards": pl.List(pl.Float64),
    "result": pl.Float64,
    "margin": pl.Float64,
}
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_ARRAYS = {"ptr": np.int64, "features": np.uint32, "values": np.float32}


@dataclass(frozen=True)
class Activations:
    """Pooled activations of answers as CSR rows, memory-mapped when read.

    Attributes:
        ptr: int64 [n + 1]; features: uint32 [nnz], ascending in a row; values: float32 [nnz], as the head pools.
        latents: M.
    """

    ptr: np.ndarray
    features: np.ndarray
    values: np.ndarray
    latents: int

    def matrix(self) -> sp.csr_matrix:
        """float64 [n, M]."""
        values = np.asarray(self.values, np.float64)
        return sp.csr_matrix(
            (values, self.features.astype(np.int64), self.ptr), shape=(len(self.ptr) - 1, self.latents)
        )

    def rewards(self, weights: np.ndarray) -> np.ndarray:
        """sum_i w_i z_i of every row: float64 [n]."""
        return np.asarray(self.matrix() @ np.asarray(weights, np.float64))

    def row(self, at: int) -> tuple[np.ndarray, np.ndarray]:
        """Features (int64) and pooled activations (float64) of one answer."""
        part = slice(int(self.ptr[at]), int(self.ptr[at + 1]))
        return np.asarray(self.features[part], np.int64), np.asarray(self.values[part], np.float64)


@dataclass(frozen=True)
class BenchmarkResult:
    """One scored benchmark.

    Attributes:
        folder: where it lies.
        facts: summary.json: benchmark, tag, run, model, data, steering, counts, figures, created, ...
    """

    folder: Path
    facts: Mapping[str, Any]

    @property
    def benchmark(self) -> str:
        return str(self.facts["benchmark"])

    @property
    def tag(self) -> str:
        return str(self.facts["tag"])

    @property
    def run_id(self) -> str:
        return self.folder.parent.name

    @property
    def key(self) -> str:
        """Names it among all results: `<run_id>/<folder>`."""
        return f"{self.run_id}/{self.folder.name}"

    @property
    def figures(self) -> list[dict[str, Any]]:
        """core.evaluate.figures.Figure as dictionaries, in table order."""
        return list(self.facts["figures"])

    @property
    def has_features(self) -> bool:
        return (self.folder / "activations").is_dir()


def result_folder(runs: Path, run_id: str, benchmark: str, tag: str = "") -> Path:
    """Where a result belongs.

    Raises:
        ConfigError: the tag is no name for a folder.
    """
    if tag and not _TAG.fullmatch(tag):
        raise ConfigError(f"--tag {tag!r} is not usable; use letters, digits, '.', '_' and '-' (at most 60).")
    return runs / FOLDER / run_id / (f"{benchmark}-{tag}" if tag else benchmark)


def write_benchmark(
    folder: Path,
    facts: Mapping[str, Any],
    items: pl.DataFrame,
    activations: Activations | None,
    weights: np.ndarray | None,
) -> BenchmarkResult:
    """Writes a result aside and moves it into place; an earlier one of the same name is replaced.

    Args:
        items: ITEM_SCHEMA, with rewards and results.

    Raises:
        DiskFullError: nothing was changed.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    with disk_full_is_said(folder):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            items.select(pl.col(name).cast(dtype) for name, dtype in ITEM_SCHEMA.items()).write_parquet(
                aside / "items.parquet", compression="zstd"
            )
            if activations is not None:
                (aside / "activations").mkdir()
                for name, dtype in _ARRAYS.items():
                    np.save(aside / "activations" / f"{name}.npy", np.asarray(getattr(activations, name), dtype))
            if weights is not None:
                np.save(aside / "weights.npy", np.asarray(weights, np.float64))
            whole = {"format": FORMAT, **facts}
            (aside / "summary.json").write_text(
                json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            _move(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return BenchmarkResult(folder, whole)


def _move(aside: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.replace(old)
    aside.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_benchmarks(runs: Path, run_id: str | None = None) -> list[BenchmarkResult]:
    """The results of a run, or (None) of every run and model, ordered by folder. Damaged ones are left out."""
    found = []
    for path in sorted((runs / FOLDER).glob(f"{run_id or '*'}/*/summary.json")):
        if path.parent.name.startswith("."):
            continue
        try:
            found.append(read_benchmark(path.parent))
        except RunError:
            continue
    return found


def read_benchmark(folder: Path) -> BenchmarkResult:
    """One result.

    Raises:
        RunError: there is none, or it is damaged or of another version.
    """
    try:
        facts = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} holds no result of a benchmark ({error}); run `rewardscope evaluate` again."
        ) from None
    if (
        not isinstance(facts, dict)
        or facts.get("format") != FORMAT
        or not {"benchmark", "tag", "figures"} <= facts.keys()
    ):
        raise RunError(f"{folder} is damaged or of another version; run `rewardscope evaluate` again.")
    return BenchmarkResult(folder, facts)


def read_items(result: BenchmarkResult) -> pl.DataFrame:
    """Every item, ITEM_SCHEMA.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return pl.read_parquet(result.folder / "items.parquet").select(list(ITEM_SCHEMA))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{result.folder} has no readable items ({error}); run `rewardscope evaluate` again.") from None


def read_weights(result: BenchmarkResult) -> np.ndarray | None:
    """The head the rewards were computed with, float64 [M]; None for a model without features."""
    path = result.folder / "weights.npy"
    return np.load(path, allow_pickle=False) if path.is_file() else None


def read_activations(result: BenchmarkResult) -> Activations | None:
    """The pooled activations, memory-mapped; None for a model without features.

    Raises:
        RunError: an array is missing or does not fit.
    """
    if not result.has_features:
        return None
    folder = result.folder / "activations"
    try:
        ptr, features, values = (np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} cannot be read ({error}); run `rewardscope evaluate` again.") from None
    if len(features) != len(values) or int(ptr[-1]) != len(values):
        raise RunError(f"{folder} is damaged: its arrays do not fit; run `rewardscope evaluate` again.")
    return Activations(ptr, features, values, int(result.facts["model"]["latents"]))
