"""Scores a benchmark with a run's model, a SARM checkpoint or an ordinary reward model, and stores the result.

Every different answer is computed once, in packed forward passes; so two answers that are the same text have exactly the
same reward, and no reward depends on what else is in a batch beyond float32 rounding. Parts that are done are kept beside
the result until it is whole: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.config import fingerprint
from core.evaluate.benchmark_model import BenchmarkModel, Weights
from core.evaluate.items import BenchmarkItems
from core.evaluate.score_items import RULES, benchmark_figures, with_results
from core.features.extract import Answer
from core.progress import Progress
from core.rewards.score import UniqueAnswers, unique_answers
from core.store.benchmarks import (
    Activations,
    BenchmarkResult,
    read_activations,
    read_benchmarks,
    read_items,
    result_folder,
    write_benchmark,
)

PART = 256
"""Different answers in one part: what an interruption can lose."""


# --- scoring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Computed:
    """What the model says of every different answer.

    Attributes:
        activations: their pooled features; None without an SAE.
        rewards: float64 [n], an ordinary reward model's own; None where the head gives them.
        truncated: bool [n]; n_tokens: int64 [n], of the answer.
        seconds: spent in this call.
    """

    activations: Activations | None
    rewards: np.ndarray | None
    truncated: np.ndarray
    n_tokens: np.ndarray
    seconds: float


def compute(model: BenchmarkModel, unique: UniqueAnswers, partial: Path, progress: Progress) -> Computed:
    """Runs the model over every different answer, part by part; parts that are there already are read.

    Args:
        partial: folder of the parts; the caller removes it once the result is stored.
    """
    partial.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    total = sum(len(group) for group in unique.groups)
    files = []
    with progress.task("answers", total, "answers") as task:
        for number, groups in enumerate(_parts(unique.groups)):
            path = partial / f"part-{number:05d}.npz"
            if not path.is_file():
                aside = partial / "writing.npz"
                np.savez(aside, allow_pickle=False, **_part(model, groups))
                aside.replace(path)
            files.append(path)
            task.advance(sum(len(group) for group in groups))
    return _joined(files, total, int(model.facts["latents"]), time.monotonic() - begin)


def _parts(groups: Sequence[Sequence[Answer]]) -> Iterator[list[Sequence[Answer]]]:
    part: list[Sequence[Answer]] = []
    for group in groups:
        part.append(group)
        if sum(map(len, part)) >= PART:
            yield part
            part = []
    if part:
        yield part


def _part(model: BenchmarkModel, groups: Sequence[Sequence[Answer]]) -> dict[str, np.ndarray]:
    """One part as arrays; answers in the order of `ids`."""
    flat = [answer for group in groups for answer in group]
    ids = [answer.response_id for answer in flat]
    made: dict[str, np.ndarray] = {
        "ids": np.array(ids, np.int64),
        "truncated": np.array([answer.encoded.truncated for answer in flat]),
        "n_tokens": np.array([len(answer.encoded.ids) - answer.encoded.answer_start for answer in flat], np.int64),
    }
    if model.scorer is not None:
        found = {
            at: (one.features.astype(np.uint32), one.pooled.astype(np.float32))
            for at, one in model.scorer.score_unique(groups)
        }
        made["lengths"] = np.array([len(found[at][0]) for at in ids], np.int64)
        made["features"], made["values"] = (np.concatenate([found[at][which] for at in ids]) for which in (0, 1))
    if model.own is not None:
        budget = model.scorer.tokens_per_batch if model.scorer else 2048
        made["rewards"] = model.own.answer_rewards([[answer.encoded for answer in group] for group in groups], budget)
    return made


def _joined(files: Sequence[Path], total: int, latents: int, seconds: float) -> Computed:
    parts = []
    for path in files:
        with np.load(path, allow_pickle=False) as arrays:
            parts.append({name: arrays[name] for name in arrays.files})
    order = np.argsort(np.concatenate([part["ids"] for part in parts]), kind="stable")
    assert len(order) == total

    def column(name: str) -> np.ndarray:
        return np.concatenate([part[name] for part in parts])[order]

    activations = None
    if "features" in parts[0]:
        lengths = np.concatenate([part["lengths"] for part in parts])
        start = np.concatenate([[0], np.cumsum(lengths)])
        rows = [slice(start[at], start[at + 1]) for at in order]
        features, values = (np.concatenate([part[name] for part in parts]) for name in ("features", "values"))
        activations = Activations(
            ptr=np.concatenate([[0], np.cumsum(lengths[order])]),
            features=np.concatenate([features[row] for row in rows]),
            values=np.concatenate([values[row] for row in rows]),
            latents=latents,
        )
    rewards = column("rewards") if "rewards" in parts[0] else None
    return Computed(activations, rewards, column("truncated"), column("n_tokens"), seconds)


# --- the whole job -------------------------------------------------------------------------------------------------


def evaluate(
    benchmark: BenchmarkItems,
    model: BenchmarkModel,
    runs: Path,
    run_id: str,
    progress: Progress,
    *,
    title: str,
    tag: str = "",
    weights: Weights | None = None,
) -> BenchmarkResult:
    """Scores a benchmark and stores the result under `<runs>/benchmarks/<run_id>`.

    Activations that an earlier result of the same model on the same data holds are used again, so that a steered head
    is scored in a second.

    Args:
        title: what the row is called: the run's name or the model folder's.
        weights: from `chosen_weights`; None = the model's own rewards.
    """
    folder = result_folder(runs, run_id, benchmark.benchmark, tag)
    tokenizer = (model.scorer or model.own).backbone.tokenizer  # type: ignore[union-attr]
    conversations = [(item.messages, item.answers) for item in benchmark.items]
    unique = unique_answers(tokenizer, conversations, int(model.facts["max_length"]))
    key = fingerprint(model.identity, _tokens_hash(unique))
    partial = folder.parent / f".partial-{key[:16]}"
    computed = _kept(runs, run_id, key) or compute(model, unique, partial, progress)
    items = items_frame(benchmark, unique, computed)
    flat = _rewards(computed, weights)
    each = [flat[vectors] for vectors in items["vectors"].to_list()]
    items = with_results(benchmark.benchmark, items, each)
    figures = benchmark_figures(benchmark.benchmark, items, each)
    facts: dict[str, Any] = {
        "benchmark": benchmark.benchmark,
        "tag": tag,
        "title": title,
        "run_id": run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rules": RULES,
        "key": key,
        "data": dict(benchmark.origin),
        "model": model.facts,
        "changed": (weights.facts if weights else None) or {},
        "offset": weights.offset if weights else 0.0,
        "counts": {
            "items": len(items),
            "answers": int(sum(len(own) for own in each)),
            "different_answers": len(flat),
            "answer_tokens": int(computed.n_tokens.sum()),
            "truncated": int(computed.truncated.sum()),
            "prompt_cut": sum(a.encoded.prompt_dropped > 0 for group in unique.groups for a in group),
        },
        "seconds": round(computed.seconds, 1),
        "skipped": [{"row": bad.row, "reason": bad.reason} for bad in benchmark.skipped[:50]],
        "figures": [one.as_dict() for one in figures],
    }
    own = None if weights is None else weights.weights
    result = write_benchmark(folder, facts, items, computed.activations, own)
    shutil.rmtree(partial, ignore_errors=True)
    return result


def _tokens_hash(unique: UniqueAnswers) -> str:
    """Of everything the model is given."""
    digest = hashlib.sha256()
    for group in unique.groups:
        for answer in group:
            ids = [answer.response_id, answer.encoded.answer_start, *answer.encoded.ids]
            digest.update(np.array(ids, np.int64).tobytes())
    return digest.hexdigest()


def _rewards(computed: Computed, weights: Weights | None) -> np.ndarray:
    """float64 [different answers]."""
    if computed.rewards is not None:
        return computed.rewards
    assert computed.activations is not None
    assert weights is not None
    return computed.activations.rewards(weights.weights) + weights.offset


def _kept(runs: Path, run_id: str, key: str) -> Computed | None:
    """What an earlier result with the same key holds."""
    for result in read_benchmarks(runs, run_id):
        if result.facts.get("key") != key or not result.has_features or result.facts["model"]["kind"] == "classifier":
            continue
        activations = read_activations(result)
        items = read_items(result).select("vectors", "truncated").explode("vectors", "truncated").unique("vectors")
        truncated = items.sort("vectors")["truncated"].to_numpy()
        n_tokens = np.array([int(result.facts["counts"]["answer_tokens"])])
        return Computed(activations, None, truncated, n_tokens, float(result.facts["seconds"]))
    return None


def items_frame(benchmark: BenchmarkItems, unique: UniqueAnswers, computed: Computed) -> pl.DataFrame:
    """The items as they are stored, without rewards and results yet (core/store/benchmarks ITEM_SCHEMA)."""
    items = benchmark.items
    ends = np.cumsum([len(item.answers) for item in items])
    vectors = np.split(unique.where, ends[:-1])
    return pl.DataFrame(
        {
            "item_index": np.arange(len(items), dtype=np.uint32),
            "item_id": [item.item_id for item in items],
            "subset": [item.subset for item in items],
            "group": [item.group for item in items],
            "prompt_id": [item.prompt for item in items],
            "messages": [json.dumps(list(item.messages), ensure_ascii=False) for item in items],
            "answers": pl.Series([list(item.answers) for item in items], dtype=pl.List(pl.String)),
            "n_correct": [item.n_correct for item in items],
            "styles": pl.Series([list(item.styles) for item in items], dtype=pl.List(pl.String)),
            "vectors": pl.Series([rows.tolist() for rows in vectors], dtype=pl.List(pl.UInt32)),
            "truncated": pl.Series([computed.truncated[rows].tolist() for rows in vectors], dtype=pl.List(pl.Boolean)),
        }
    )
