"""The compact form of a run: what ships in `assets/`, opened on first use into the cache.

A bundle holds the manifest, the SAE and head, the shards (the record of truth) and the small tables as Parquet; of the
contexts only where they stand. The arrays, the histograms, the passages, salience and the database are made from them in
half a minute, once for each version, and checked like any other run.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

import polars as pl

from core.config import SalienceConfig
from core.errors import RunError, disk_full_is_said
from core.features.contexts import read_passages
from core.features.pieces import token_pieces
from core.features.statistics import histogram_table
from core.progress import Silent
from core.rewards.decomposition import check_sums
from core.salience.table import salience_tables
from core.store.arrays import save_arrays
from core.store.manifest import Manifest, read_manifest, write_manifest
from core.store.pooling import arrays_from_shards
from core.store.reader import RunReader
from core.store.writer import new_database

TABLES = (
    *("pair", "response", "feature", "context", "band", "neighbour", "layout", "cluster", "label", "evaluation"),
    *("impact", "causal"),
)
FILES = ("sae.safetensors", "head.safetensors", "reward_head.safetensors", "config.yaml", "skipped.jsonl")

log = logging.getLogger(__name__)


def write_bundle(run: Path, target: Path) -> Path:
    """Packs a finished run into `target` (which must not exist or be empty).

    Raises:
        RunError: the run is not finished, or the target is in use.
    """
    manifest = read_manifest(run)
    if target.exists() and any(target.iterdir()):
        raise RunError(f"{target} is not empty; give a new folder.")
    with disk_full_is_said(target):
        (target / "tables").mkdir(parents=True, exist_ok=True)
        with RunReader.open(run) as reader:
            for table in TABLES:
                frame = reader.table(table)
                if table == "context":
                    frame = frame.with_columns(length=pl.col("tokens").list.len()).drop("tokens", "values")
                frame.write_parquet(target / "tables" / f"{table}.parquet", compression="zstd", compression_level=12)
        shards = target / manifest.shards
        shards.mkdir(parents=True)
        for file in sorted((run / manifest.shards).glob("activations-*.parquet")):
            shutil.copyfile(file, shards / file.name)
        for name in FILES:
            if (run / name).exists():
                shutil.copyfile(run / name, target / name)
        write_manifest(target, manifest)
    return target


def is_bundle(folder: Path) -> bool:
    """A folder with a manifest and tables, but no database yet."""
    return (folder / "manifest.json").is_file() and (folder / "tables").is_dir()


def open_bundle(bundle: Path, cache: Path) -> Path:
    """The run folder made from a bundle, building it in `cache` the first time.

    Returns:
        `<cache>/<name>-<run id>`, a complete run folder.

    Raises:
        RunError: the bundle is damaged, or its contributions do not sum to its rewards.
        DiskFullError: no room in the cache.
    """
    manifest = read_manifest(bundle)
    target = cache / f"{manifest.name}-{manifest.run_id}"
    if (target / "manifest.json").exists():
        return target
    log.warning("Opening the run %s for the first time; this takes about half a minute.", manifest.name)
    cache.mkdir(parents=True, exist_ok=True)
    with disk_full_is_said(cache), tempfile.TemporaryDirectory(dir=cache, prefix=".opening-") as scratch:
        made = Path(scratch) / "run"
        _unpack(bundle, made, manifest)
        try:
            made.rename(target)
        except OSError:  # another process was first
            if not (target / "manifest.json").exists():
                raise
    return target


def _unpack(bundle: Path, folder: Path, manifest: Manifest) -> None:
    try:
        tables = {name: pl.read_parquet(bundle / "tables" / f"{name}.parquet") for name in TABLES}
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(
            f"The run in {bundle} is damaged ({error}); install again, or rebuild it with `rewardscope demo`."
        ) from None
    files = sorted((bundle / manifest.shards).glob("activations-*.parquet"))
    arrays = arrays_from_shards(files, len(tables["response"]), int(manifest.sae["latents"]))
    save_arrays(folder / manifest.arrays, arrays)
    tables["context"] = read_passages(arrays, token_pieces(arrays, tables["response"]), tables["context"])
    tables["histogram"] = histogram_table(arrays)
    settings = SalienceConfig.model_validate(manifest.config["salience"])
    tables |= salience_tables(arrays, tables["pair"], tables["response"], settings, Silent())
    with new_database(folder / manifest.database) as db:
        db.insert_all(tables)
        db.insert_activations(arrays)
        check_sums(db.rewards(), db.contribution_sums(manifest.head["pooling"]))
    shutil.copytree(bundle / manifest.shards, folder / manifest.shards)
    for name in FILES:
        if (bundle / name).exists():
            shutil.copyfile(bundle / name, folder / name)
    write_manifest(folder, manifest)
