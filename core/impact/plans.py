"""A plan: which training pairs are flipped or dropped, as a small file tied to the data it was made for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from core.errors import ConfigError, DataError, RunError, disk_full_is_said
from core.impact.inputs import ImpactInputs
from core.impact.strategies import STRATEGIES, Direction, rank_pairs
from core.store.review import now
from core.store.sets import FeatureSet

FORMAT = "rewardscope-plan-1"
ACTIONS = ("flip", "drop")
BY_HAND = "hand"
"""Strategy of a plan that a person wrote."""


@dataclass(frozen=True)
class Plan:
    """Edits of training pairs.

    Attributes:
        run, run_id: the run it was made for.
        data_sha256: hash of the pairs (core.impact.inputs.data_hash).
        strategy: how the pairs were chosen: one of STRATEGIES, or 'hand'.
        direction: 'poison' or 'denoise'.
        action: 'flip', 'drop', or 'mixed' where the file says different things of different pairs.
        ratio: share of the training pairs that is changed; floor(N ratio) pairs are (SAFER section 3.7).
        seed: of the strategy 'random'.
        n_train: N, the training pairs.
        edits: pair_id -> 'flip' or 'drop', in the order of the ranking.
        feature_set: name, version, sae, s_plus, s_minus of the set; None for strategies that use none.
        created: ISO time.
    """

    run: str
    run_id: str
    data_sha256: str
    strategy: str
    direction: str
    action: str
    ratio: float
    seed: int
    n_train: int
    edits: Mapping[str, str]
    feature_set: Mapping[str, Any] | None = None
    created: str = field(default_factory=now, compare=False)

    @property
    def id(self) -> str:
        """16 hex digits: the same for the same edits of the same data made in the same way, whenever they were made.

        What a set is called and which run it was made for do not matter: the build, the page and the command line give
        one plan one id.
        """
        found = self.__dict__.get("_id")
        if found is None:
            members = None
            if self.feature_set is not None:
                members = {name: self.feature_set.get(name) for name in ("sae", "s_plus", "s_minus")}
            facts = {**self._facts(), "set": members}
            del facts["run"], facts["run_id"]
            text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
            found = self.__dict__["_id"] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return str(found)

    def _facts(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "run": self.run,
            "run_id": self.run_id,
            "data_sha256": self.data_sha256,
            "strategy": self.strategy,
            "direction": self.direction,
            "action": self.action,
            "ratio": self.ratio,
            "seed": self.seed,
            "n_train": self.n_train,
            "set": None if self.feature_set is None else dict(self.feature_set),
            "pairs": [{"pair_id": pair_id, "action": action} for pair_id, action in self.edits.items()],
        }

    def signs(self, inputs: ImpactInputs) -> np.ndarray:
        """What becomes of each pair: 1 kept, -1 flipped, 0 dropped; int8 [n_pairs]."""
        signs = np.ones(len(inputs.pair_ids), np.int8)
        for pair_id, action in self.edits.items():
            signs[inputs.index_of[pair_id]] = -1 if action == "flip" else 0
        return signs


def make_plan(
    inputs: ImpactInputs,
    *,
    strategy: str,
    direction: str,
    action: str,
    ratio: float,
    seed: int = 0,
    feature_set: FeatureSet | None = None,
) -> Plan:
    """The first floor(N ratio) training pairs of a strategy's ranking.

    Raises:
        ConfigError: an unknown strategy, direction or action, or a ratio outside 0..1.
        DataError: fewer pairs have a score than the ratio asks for.
    """
    ranked = rank_pairs(inputs, strategy, feature_set=feature_set, direction=direction, seed=seed).pair_index
    return plan_from_ranking(inputs, ranked, strategy, direction, action, ratio, seed, feature_set)


def plan_from_ranking(
    inputs: ImpactInputs,
    ranked: np.ndarray,
    strategy: str,
    direction: str,
    action: str,
    ratio: float,
    seed: int,
    feature_set: FeatureSet | None,
) -> Plan:
    """`make_plan` with the ranking at hand (int64, first changed first): curves rank once for all ratios."""
    if action not in ACTIONS:
        raise ConfigError(f"Action {action!r} is not known; use flip or drop.")
    if not 0 <= ratio <= 1:
        raise ConfigError(f"The ratio {ratio:g} is not a share of the training pairs; give a number from 0 to 1.")
    n_train = int(inputs.train.sum())
    count = math.floor(n_train * ratio + 1e-9)  # 0.29 * 100 is 28.999...: 29 are meant
    if count > len(ranked):
        raise DataError(
            f"{count} pairs are to be changed, but only {len(ranked)} of {n_train} training pairs have a score by "
            f"{strategy}; lower the ratio."
        )
    edits = {inputs.pair_ids[i]: action for i in ranked[:count]}
    chosen_set = feature_set if strategy == "set" else None
    return Plan(
        run=inputs.run,
        run_id=inputs.run_id,
        data_sha256=inputs.data_sha256,
        strategy=strategy,
        direction=direction,
        action=action,
        ratio=float(ratio),
        seed=int(seed) if strategy == "random" else 0,
        n_train=n_train,
        edits=edits,
        feature_set=None if chosen_set is None else set_facts(chosen_set),
    )


def set_facts(one: FeatureSet) -> dict[str, Any]:
    """What a plan says of the set it was made with."""
    return {
        "name": one.name,
        "version": one.version,
        "sae": one.sae,
        "s_plus": list(one.plus),
        "s_minus": list(one.minus),
    }


def plan_to_json(plan: Plan) -> str:
    """The plan's file: the facts behind its id, the id, the time."""
    facts = plan._facts()
    pairs = facts.pop("pairs")
    head = json.dumps({**facts, "id": plan.id, "created": plan.created}, indent=2, ensure_ascii=False)
    lines = ",\n".join("    " + json.dumps(entry, ensure_ascii=False) for entry in pairs)
    return head[:-2] + ',\n  "pairs": [' + (f"\n{lines}\n  " if lines else "") + "]\n}\n"


def save_plan(plan: Plan, path: Path) -> None:
    """Writes a plan.

    Raises:
        RunError: the file is there already, or cannot be written.
    """
    try:
        with disk_full_is_said(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(plan_to_json(plan))
    except FileExistsError:
        raise RunError(f"{path} is there already; give another name or remove it first.") from None
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}).") from None


def load_plan(path: Path, inputs: ImpactInputs) -> Plan:
    """Reads a plan and insists that it fits the run's pairs.

    A plan written by hand needs `format`, `data_sha256`, `direction` and `pairs`; without an `id` it is taken as it is.

    Raises:
        DataError: it cannot be read, was made for other data, names an unknown or held-out pair, or was changed.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"The plan {path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise DataError(f"{path} is not a plan: it is not JSON ({error}).") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise DataError(f"{path} is not a plan: its format is not {FORMAT!r}.")
    if facts.get("data_sha256") != inputs.data_sha256:
        raise DataError(
            f"{path} was made for other pairs (data {str(facts.get('data_sha256'))[:12]}, this run has "
            f"{inputs.data_sha256[:12]}); make the plan again with `rewardscope plan`."
        )
    edits = _edits(path, facts.get("pairs"), inputs)
    direction = facts.get("direction")
    if direction not in get_args(Direction):
        raise DataError(f"{path}: direction must be poison or denoise, not {direction!r}.")
    strategy = facts.get("strategy", BY_HAND)
    if strategy not in (*STRATEGIES, BY_HAND):
        raise DataError(f"{path}: the strategy {strategy!r} is not known; use {BY_HAND} for a plan made by hand.")
    n_train = int(inputs.train.sum())
    kinds = set(edits.values())
    try:
        plan = Plan(
            run=str(facts.get("run", inputs.run)),
            run_id=str(facts.get("run_id", inputs.run_id)),
            data_sha256=inputs.data_sha256,
            strategy=strategy,
            direction=str(direction),
            action=str(facts.get("action") or (kinds.pop() if len(kinds) == 1 else "mixed")),
            ratio=float(facts.get("ratio", len(edits) / n_train)),
            seed=int(facts.get("seed", 0)),
            n_train=n_train,
            edits=edits,
            feature_set=facts.get("set"),
            created=str(facts.get("created") or now()),
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} is not a plan: {error}.") from None
    if facts.get("id") not in (None, plan.id):
        raise DataError(f"{path} was changed after it was made: its id no longer fits; remove the id to use it anyway.")
    return plan


def _edits(path: Path, entries: Any, inputs: ImpactInputs) -> dict[str, str]:
    edits: dict[str, str] = {}
    if not isinstance(entries, list):
        raise DataError(f"{path} is not a plan: it needs the list pairs of {{pair_id, action}}.")
    for number, entry in enumerate(entries, start=1):
        pair_id, action = (entry.get("pair_id"), entry.get("action")) if isinstance(entry, dict) else (None, None)
        if not isinstance(pair_id, str) or action not in ACTIONS:
            raise DataError(f"{path}: entry {number} of pairs needs a pair_id and the action flip or drop.")
        if pair_id not in inputs.index_of:
            raise DataError(f"{path}: there is no pair {pair_id!r} in this run.")
        if not inputs.train[inputs.index_of[pair_id]]:
            raise DataError(f"{path}: the pair {pair_id!r} is held out; a plan changes training pairs only.")
        if pair_id in edits:
            raise DataError(f"{path}: the pair {pair_id!r} is listed twice.")
        edits[pair_id] = action
    return edits
