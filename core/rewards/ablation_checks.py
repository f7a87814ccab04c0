"""Causal checks of a safety set by running the model again, and how they go on after a stop.

The features are measured pair by pair: a pair's states are computed once for all features that want it. What is done is
kept in a journal, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.data.chat import EncodedAnswer, encode_pairs
from core.errors import DataError, RunError
from core.progress import Progress
from core.rewards.ablation import (
    CAUSAL_SCHEMA,
    Effects,
    Sides,
    causal_row,
    mean_effects,
)
from core.rewards.ablation_plan import CheckPlan, is_classifier
from core.rewards.ablation_rerun import HeadRerun, Rerun, load_classifier_rerun
from core.sae.checkpoint import load_sae
from core.store.manifest import read_manifest
from core.store.reader import RunReader
from core.store.sets import FeatureSet


@dataclass
class Measurements:
    """What has been measured so far, feature by feature: (pair, change of margin, attribution, change of reward, answers)."""

    done: dict[int, list[tuple[int, float, float, float, int]]] = field(default_factory=dict)

    def add(self, pair: int, rows: Mapping[int, Sequence[float]]) -> None:
        """Adds one pair's figures: feature -> (margin, attribution, sum of reward changes, active answers)."""
        for feature, (margin, attribution, reward, answers) in rows.items():
            self.done.setdefault(feature, []).append((pair, margin, attribution, reward, int(answers)))

    def effects(self, features: Sequence[int], prompt: np.ndarray) -> Effects:
        """The effects of features, in the order given.

        Args:
            prompt: int [n_pairs], the prompt of each pair.
        """
        columns = []
        for feature in features:
            rows = np.array(sorted(self.done.get(feature, [])), dtype=np.float64).reshape(-1, 5)
            n_prompts, attribution, effect, low, high = mean_effects(
                prompt[rows[:, 0].astype(np.int64)], rows[:, 1], rows[:, 2]
            )
            answers = rows[:, 4].sum()
            on_reward = rows[:, 3].sum() / answers if answers else np.nan
            columns.append((len(rows), n_prompts, attribution, effect, low, high, on_reward))
        table = np.array(columns, dtype=np.float64).reshape(-1, 7).T
        return Effects(table[0].astype(np.int64), table[1].astype(np.int64), *table[2:])


@dataclass(frozen=True)
class CheckResult:
    """Finished checks.

    Attributes:
        rows: table `causal`, method 'residual', of the members.
        random: feature_id, attribution and effect of the random features measured beside them.
    """

    rows: pl.DataFrame
    random: pl.DataFrame


def run_checks(
    plan: CheckPlan,
    reader: RunReader,
    one: FeatureSet,
    rerun: Rerun,
    *,
    journal: Path,
    progress: Progress,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> CheckResult:
    """Measures what is left to measure and judges every member as soon as it and its random features are done.

    Args:
        journal: file of what is measured, one line a pair; kept when the work is stopped, removed at its end.
        on_row: called with each member's row of the table `causal`.

    Raises:
        RunError: the text or tokenizer is not what the run was made with.
    """
    table = Sides.of(reader.table("pair"), reader.table("response"))
    margin = table.margin
    measured, seen = Measurements(), set()
    for pair, figures in _read_journal(journal):
        measured.add(pair, figures)
        seen.add(pair)
    left = {feature: len(set(pairs.tolist()) - seen) for feature, pairs in plan.sampled.items()}
    waiting = set(plan.members.tolist())

    def judge() -> None:
        for member in sorted(waiting):
            if left[member] or any(left[other] for other in plan.matched[member].tolist()):
                continue
            waiting.discard(member)
            on_row(_row(member, plan, measured, table.prompt, one))

    encoded = encoded_pairs(reader, rerun, [pair for pair in plan.wanted if pair not in seen])
    with progress.task("ablation", plan.size, "checks") as task:
        task.advance(sum(len(plan.wanted[pair]) for pair in seen))
        judge()
        for pair, answers in encoded:
            features = plan.wanted[pair]
            found = rerun.ablate(answers, features)
            share = margin[pair].data  # of the pair's answers, in stored order
            rows: dict[int, tuple[float, ...]] = {
                feature: (
                    float(share @ [effect.change[i] for effect in found]),
                    float(share @ [effect.attribution[i] for effect in found]),
                    float(sum(effect.change[i] for effect in found)),
                    int(sum(effect.active[i] for effect in found)),
                )
                for i, feature in enumerate(features)
            }
            measured.add(pair, rows)
            _append(journal, pair, rows)
            for feature in features:
                left[feature] -= 1
            task.advance(len(features))
            judge()
    rows_of = [_row(member, plan, measured, table.prompt, one) for member in plan.members.tolist()]
    beside = measured.effects(plan.pool.tolist(), table.prompt)
    journal.unlink(missing_ok=True)
    random = {"feature_id": plan.pool, "attribution": beside.attribution, "effect": beside.effect}
    return CheckResult(pl.DataFrame(rows_of, schema=CAUSAL_SCHEMA, orient="row"), pl.DataFrame(random))


def load_rerun(reader: RunReader, device: str = "auto") -> Rerun:
    """The run's reward model, ready to have features taken away: its head on features, or its classifier.

    Raises:
        RunError: what is found is not what the run was made with.
        ModelError: the model cannot be loaded or divided.
    """
    if is_classifier(reader):
        sae, _ = load_sae(reader.folder / "sae.safetensors")
        return load_classifier_rerun(
            reward_model_path(reader.folder), sae, int(reader.manifest.model["layer"]), device=device
        )
    from core.rewards.score import load_scorer

    scorer = load_scorer(reader.folder, device)
    return HeadRerun(scorer.backbone, scorer.sae, scorer.head.weights, scorer.head.pooling)


def reward_model_path(run_folder: Path) -> Path:
    """The checkpoint folder of the ordinary reward model a run's SAE stands beside (`model.checkpoint` of the manifest,
    relative to the run or absolute).

    Raises:
        RunError: the run has none, or it is not there.
    """
    named = read_manifest(run_folder).model.get("checkpoint")
    if not named:
        raise RunError(f"{run_folder} names no reward model checkpoint; its reward is the head on features.")
    path = run_folder / str(named)  # an absolute path replaces the folder
    if not (path / "config.json").is_file():
        raise RunError(f"The reward model of {run_folder} is not at {path}; put it back or build the run again.")
    return path


def encoded_pairs(reader: RunReader, rerun: Rerun, wanted: Sequence[int]) -> Iterator[tuple[int, list[EncodedAnswer]]]:
    """The answers of pairs, tokenised as the run was, in stored order.

    Raises:
        RunError: the tokens are not those the run was made with.
    """
    arrays = reader.arrays
    pairs = reader.table("pair").select("pair_index", "messages").sort("pair_index")
    responses = reader.table("response").sort("response_id")
    texts = responses.group_by("pair_index", maintain_order=True).agg("response_id", "text").rows_by_key("pair_index")
    limit = reader.manifest.config["model"]["max_length"] or rerun.context_length
    for pair in wanted:
        ((ids, answers),) = texts[pair]
        messages = json.loads(pairs["messages"][pair])
        (encoded,) = encode_pairs(rerun.tokenizer, [(messages, answers)], max_length=limit)
        for response, answer in zip(ids, encoded, strict=True):
            if not np.array_equal(answer.ids[answer.answer_start :], arrays.token_ids[arrays.tokens_of(response)]):
                raise RunError(
                    f"Answer {response} of pair {pair} has other tokens now than when the run was made; "
                    "its tokenizer or chat template has changed. Build the run again."
                )
        yield pair, encoded


def _row(member: int, plan: CheckPlan, measured: Measurements, prompt: np.ndarray, one: FeatureSet) -> dict[str, Any]:
    own = measured.effects([member], prompt)
    random = measured.effects(plan.matched[member].tolist(), prompt).effect
    return causal_row("residual", member, own, 0, random, one.sign(member))


def _read_journal(path: Path) -> Iterator[tuple[int, dict[int, list[float]]]]:
    """What a stopped run had measured; a half-written last line is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        yield int(entry["pair"]), {int(feature): values for feature, values in entry["features"].items()}


def _append(path: Path, pair: int, rows: Mapping[int, Sequence[float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not all(np.isfinite(list(values)).all() for values in rows.values()):
        raise DataError(f"Pair {pair} gave a reward that is not a number; check the reward model's weights.")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"pair": pair, "features": rows}) + "\n")
