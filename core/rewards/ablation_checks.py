"""Causal checks of a safety set by running the model again, and how they go on after a stop.

Features are measured pair by pair: a pair's states are computed once for all features that want it. Every measurement is
kept in a journal of the run, so the same command goes on where it was stopped, and another set, or more pairs for the same
set, measures only what is new.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.data.chat import EncodedAnswer, encode_pairs
from core.errors import ModelError, RunError, disk_full_is_said
from core.progress import Progress
from core.rewards.ablation import (
    CAUSAL_SCHEMA,
    Effects,
    Sides,
    causal_row,
    mean_effects,
)
from core.rewards.ablation_plan import CheckPlan, is_classifier
from core.rewards.ablation_rerun import AnswerEffects, HeadRerun, Rerun, load_classifier_rerun
from core.rewards.score import load_scorer, run_model
from core.sae.checkpoint import load_sae
from core.store.reader import RunReader
from core.store.sets import FeatureSet

ESTIMATE_AFTER = 5
"""Pairs after which the time left is estimated."""


Figures = tuple[float, float, float, int]
"""Of one feature on one pair: change of margin, attribution to it, sum of its answers' reward changes, active answers."""


@dataclass
class Measurements:
    """What has been measured so far: for each feature its pairs' figures."""

    done: dict[int, dict[int, Figures]] = field(default_factory=dict)

    def add(self, pair: int, rows: Mapping[int, Figures]) -> None:
        """Adds one pair's figures by feature."""
        for feature, figures in rows.items():
            self.done.setdefault(feature, {})[pair] = figures

    def missing(self, sampled: Mapping[int, np.ndarray]) -> dict[int, list[int]]:
        """For each pair, ascending, the features that are still to be measured on it, ascending."""
        left: dict[int, list[int]] = {}
        for feature, pairs in sorted(sampled.items()):
            for pair in pairs.tolist():
                if pair not in self.done.get(feature, {}):
                    left.setdefault(pair, []).append(feature)
        return dict(sorted(left.items()))

    def effects(self, features: Sequence[int], sampled: Mapping[int, np.ndarray], prompt: np.ndarray) -> Effects:
        """The effects of features on their sampled pairs, in the order given.

        Args:
            prompt: int [n_pairs], the prompt of each pair.
        """
        columns = []
        for feature in features:
            pairs, own = sampled[feature], self.done.get(feature, {})
            rows = np.array([own[pair] for pair in pairs.tolist()], dtype=np.float64).reshape(-1, 4)
            n_prompts, attribution, effect, low, high = mean_effects(prompt[pairs], rows[:, 0], rows[:, 1])
            answers = rows[:, 3].sum()
            on_reward = rows[:, 2].sum() / answers if answers else np.nan
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
    load: Callable[[], Rerun],
    *,
    journal: Path,
    progress: Progress,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
    on_estimate: Callable[[float], None] = lambda seconds: None,
) -> CheckResult:
    """Measures what is not yet measured and judges every member as soon as it and its random features are done.

    Args:
        load: gives the model; not called when there is nothing to measure.
        journal: file of what is measured, one line a pair, of this run only.
        on_row: called with each member's row of the table `causal`.
        on_estimate: called once, after a few pairs, with the seconds that the rest should take.

    Raises:
        RunError: the text, tokenizer or model is not what the run was made with.
    """
    table = Sides.of(reader.table("pair"), reader.table("response"))
    margin, measured = table.margin, Measurements()
    for pair, before in _read_journal(journal):
        measured.add(pair, before)
    wanted = measured.missing(plan.sampled)
    left = Counter(feature for features in wanted.values() for feature in features)
    rows: dict[int, dict[str, Any]] = {}

    def judge() -> None:
        for member in plan.members.tolist():
            others = plan.matched[member].tolist()
            if member in rows or left[member] or any(left[other] for other in others):
                continue
            own = measured.effects([member], plan.sampled, table.prompt)
            random = measured.effects(others, plan.sampled, table.prompt).effect
            rows[member] = causal_row("residual", member, own, 0, random, one.sign(member))
            on_row(rows[member])

    judge()
    if wanted:
        rerun, begin = load(), time.monotonic()
        with progress.task("ablation", left.total(), "checks") as task:
            for number, (pair, answers) in enumerate(encoded_pairs(reader, rerun, list(wanted)), start=1):
                figures = _figures(rerun.ablate(answers, wanted[pair]), wanted[pair], margin[pair].data)
                measured.add(pair, figures)
                _append(journal, pair, figures)
                left.subtract(wanted[pair])
                task.advance(len(figures))
                judge()
                if number == ESTIMATE_AFTER:
                    did = sum(map(len, wanted.values())) - left.total()
                    on_estimate((time.monotonic() - begin) / did * left.total())
    beside = measured.effects(plan.pool.tolist(), plan.sampled, table.prompt)
    random = {"feature_id": plan.pool, "attribution": beside.attribution, "effect": beside.effect}
    ordered = [rows[member] for member in plan.members.tolist()]
    return CheckResult(pl.DataFrame(ordered, schema=CAUSAL_SCHEMA, orient="row"), pl.DataFrame(random))


def load_rerun(reader: RunReader, device: str = "auto") -> Rerun:
    """The run's reward model, ready to have features taken away: its head on features, or its classifier.

    Raises:
        RunError: what is found is not what the run was made with.
        ModelError: the model cannot be loaded or divided.
    """
    if is_classifier(reader):
        manifest, path = run_model(reader.folder)
        sae, _ = load_sae(reader.folder / "sae.safetensors")
        return load_classifier_rerun(path, sae, int(manifest.model["layer"]), device=device)
    scorer = load_scorer(reader.folder, device)
    return HeadRerun(scorer.backbone, scorer.sae, scorer.head.weights, scorer.head.pooling)


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


def _figures(found: Sequence[AnswerEffects], features: Sequence[int], share: np.ndarray) -> dict[int, Figures]:
    """A pair's figures by feature from its answers' effects.

    Args:
        share: float64, what each answer counts in the margin, in stored order (Sides.margin).

    Raises:
        ModelError: a reward is not a number.
    """
    change = np.array([effects.change for effects in found])
    attribution = np.array([effects.attribution for effects in found])
    active = np.array([effects.active for effects in found]).sum(axis=0)
    if not (np.isfinite(change).all() and np.isfinite(attribution).all()):
        raise ModelError("The reward model gave a reward that is not a number; check its weights.")
    columns = zip(share @ change, share @ attribution, change.sum(axis=0), active, strict=True)
    return {f: (float(a), float(b), float(c), int(n)) for f, (a, b, c, n) in zip(features, columns, strict=True)}


def _read_journal(path: Path) -> Iterator[tuple[int, dict[int, Figures]]]:
    """What was measured before; a line that a kill left half-written is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        yield int(entry["pair"]), {int(feature): tuple(values) for feature, values in entry["features"].items()}


def _append(path: Path, pair: int, figures: Mapping[int, Figures]) -> None:
    with disk_full_is_said(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            # The newline comes first: it ends a line that a kill left half-written.
            file.write("\n" + json.dumps({"pair": pair, "features": figures}))
