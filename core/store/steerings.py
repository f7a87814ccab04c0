"""Steerings as they are kept: what is done to the head weights of a few features, and the files and notes that carry it.

The arithmetic is in core/rewards/steering.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.errors import DataError
from core.store.sets import UNSAVED

FORMAT = "rewardscope-steering-1"

Op = Literal["scale", "set", "add"]
SYMBOLS: dict[str, Op] = {"*": "scale", "=": "set", "+": "add"}
"""How the changes are written in files; "*" and "+" are SARM's."""


@dataclass(frozen=True)
class Change:
    """What is done to one feature.

    Attributes:
        op: 'scale' (weight times value), 'set' (weight becomes value), or 'add' (activation plus value, `Steering.note`).
        value: finite.

    Raises:
        DataError: an op that is not known or a value that is not a finite number.
    """

    op: Op
    value: float

    def __post_init__(self) -> None:
        if self.op not in SYMBOLS.values():
            raise DataError(f"A change of kind {self.op!r} is not known; use scale, set or add.")
        number = isinstance(self.value, int | float | np.number) and not isinstance(self.value, bool)
        if not number or not math.isfinite(self.value):
            raise DataError(f"A weight cannot be changed by {self.value!r}; give a finite number.")
        object.__setattr__(self, "value", float(self.value))

    @property
    def symbol(self) -> str:
        return next(symbol for symbol, op in SYMBOLS.items() if op == self.op)


@dataclass(frozen=True)
class Steering:
    """Changed head weights of a few features.

    Attributes:
        changes: what is done to each feature, by feature id.
        name: what people call it; needed only to store it.
        sae: sha256 of the SAE whose features these are, '' = not known.
        how: how it was made: everything needed to make it again.
        version: 1.. once stored, UNSAVED before.
        created: ISO time it was stored, '' before.

    Raises:
        DataError: a feature id that is no whole number from 0.
    """

    changes: Mapping[int, Change]
    name: str = ""
    sae: str = ""
    how: dict[str, Any] = field(default_factory=dict)
    version: int = UNSAVED
    created: str = ""

    def __post_init__(self) -> None:
        for feature in self.changes:
            if isinstance(feature, bool) or not isinstance(feature, int | np.integer) or feature < 0:
                raise DataError(f"{feature!r} is not a feature; ids are whole numbers from 0.")
        ordered = {int(feature): self.changes[feature] for feature in sorted(self.changes)}
        object.__setattr__(self, "changes", ordered)

    def __len__(self) -> int:
        return len(self.changes)

    @classmethod
    def of_multipliers(
        cls, multipliers: Mapping[int, float], name: str = "", sae: str = "", how: dict[str, Any] | None = None
    ) -> Steering:
        """A steering that scales weights; 1 leaves a feature as it is, 0 takes it out."""
        return cls({one: Change("scale", by) for one, by in multipliers.items()}, name, sae, how or {})

    @property
    def features(self) -> tuple[int, ...]:
        """The features it names, ascending."""
        return tuple(self.changes)

    @property
    def note(self) -> str:
        """What a reader must be told about it; '' when there is nothing."""
        added = [str(feature) for feature, change in self.changes.items() if change.op == "add"]
        if not added:
            return ""
        which = f"feature {added[0]}" if len(added) == 1 else f"features {', '.join(added)}"
        return (
            f'The additive change ("+") of {which} adds the same number to the reward of every answer: it cannot change any '
            "ranking, margin or accuracy."
        )

    def deltas(self, weights: np.ndarray) -> dict[int, float]:
        """d_i = new minus old weight of each feature whose weight changes ("add" changes none).

        Args:
            weights: float64 [M], the head's.

        Raises:
            DataError: a feature is none of the M.
        """
        self.check(len(weights))
        found = {}
        for feature, change in self.changes.items():
            weight = float(weights[feature])
            if change.op == "scale":
                found[feature] = (change.value - 1.0) * weight
            elif change.op == "set":
                found[feature] = change.value - weight
        return found

    def offset(self, weights: np.ndarray) -> float:
        """sum_i w_i v_i of the additive changes, reward units: what every reward is shifted by."""
        self.check(len(weights))
        added = (float(weights[i]) * change.value for i, change in self.changes.items() if change.op == "add")
        return math.fsum(added)

    def weights(self, weights: np.ndarray) -> np.ndarray:
        """The steered head, float64 [M]. Additive changes are no weights: they are `offset`."""
        steered = np.array(weights, np.float64)
        for feature, delta in self.deltas(weights).items():
            steered[feature] = (
                self.changes[feature].value if self.changes[feature].op == "set" else steered[feature] + delta
            )
        return steered

    def multipliers(self, weights: np.ndarray) -> dict[int, float]:
        """The factor of each feature's weight, for sliders; additive changes have none and are left out.

        Raises:
            DataError: a feature is none of the M, or its weight is 0 and to be set to something else.
        """
        self.check(len(weights))
        found = {}
        for feature, change in self.changes.items():
            weight = float(weights[feature])
            if change.op == "scale":
                found[feature] = change.value
            elif change.op == "set" and weight != 0:
                found[feature] = change.value / weight
            elif change.op == "set" and change.value == 0:
                found[feature] = 1.0
            elif change.op == "set":
                raise DataError(
                    f"Feature {feature} has the head weight 0; setting it to {change.value:g} is no multiple of that, so it has "
                    "no slider."
                )
        return found

    def check(self, latents: int) -> None:
        """Raises DataError when a feature is not one of an SAE with `latents` features."""
        if self.changes and max(self.changes) >= latents:
            raise DataError(
                f"{f'The steering {self.name!r}' if self.name else 'The steering'} changes feature {max(self.changes)}, the run has only {latents:,}: it was made "
                "for another SAE."
            )


def steering_to_json(one: Steering) -> str:
    """The steering as the text of a small file; `read_steering` reads it back."""
    facts = {
        "format": FORMAT,
        "name": one.name,
        "version": one.version,
        "sae_sha256": one.sae,
        "changes": changes_to_json(one),
        "how": one.how,
        "created": one.created,
    }
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def changes_to_json(one: Steering) -> dict[str, list[Any]]:
    """{"feature": [symbol, value]}: SARM's notation, with "=" for 'set'."""
    return {str(feature): [change.symbol, change.value] for feature, change in one.changes.items()}


def changes_of_json(facts: Any) -> dict[int, Change]:
    """The reverse of `changes_to_json`; ValueError or DataError says what is wrong."""
    if not isinstance(facts, dict):
        raise ValueError("changes are an object {feature: [symbol, value]}")
    changes: dict[int, Change] = {}
    for key, entry in facts.items():
        if not (key.isascii() and key.isdigit()) or len(key) > 12:
            raise ValueError(f"{key[:40]!r} is not a feature id")
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in list(SYMBOLS):
            raise ValueError(f'feature {key} needs ["*", factor], ["=", weight] or ["+", activation]')
        if int(key) in changes:
            raise ValueError(f"feature {int(key)} stands there twice")
        changes[int(key)] = Change(SYMBOLS[entry[0]], entry[1])
    return changes


def read_steering(path: Path, *, sae: str, latents: int) -> Steering:
    """Reads a file that `steering_to_json` wrote, or one of SARM's: {"latent": ["*", 2], "other": ["+", 3]}.

    SARM's files do not say which SAE they belong to; only the range of their ids can be checked.

    Args:
        sae: sha256 of the run's SAE.
        latents: M, the run's number of features.

    Raises:
        DataError: it cannot be read, is no steering, or is one of another SAE.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
        own = isinstance(facts, dict) and facts.get("format") == FORMAT
        changes = changes_of_json(facts["changes"] if own else facts)
        if not changes:
            raise ValueError("it changes no feature")
    except OSError as error:
        raise DataError(f"The steering {path} cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, DataError) as error:
        raise DataError(
            f'{path} is not a steering: it needs {{"feature": ["*", factor], ...}} as SARM writes it, or a file that '
            f"rewardscope wrote ({error})."
        ) from None
    given = facts.get("sae_sha256") if own else None
    if given and given != sae:
        raise DataError(
            f"{path} was made for the SAE {str(given)[:12]}, this run has {sae[:12]}; its ids mean other features."
        )
    source = facts.get("how", {}) if own else {}
    how = {"method": "import", "file": path.name, "layout": "rewardscope" if own else "SARM", "from": source}
    one = Steering(changes, str((facts.get("name") if own else "") or path.stem)[:80], sae, how)
    one.check(latents)
    return one


def _without_repeats(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused when a key stands in it twice (json would keep the last silently)."""
    found = dict(entries)
    if len(found) != len(entries):
        raise ValueError("a key stands there twice")
    return found
