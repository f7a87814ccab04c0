"""Feature sets: S+ (safe) and S- (unsafe) features, named, versioned, with how they were made (SAFER section 3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import DataError

FORMAT = "rewardscope-set-1"
UNSAVED = 0


@dataclass(frozen=True)
class FeatureSet:
    """A safety set.

    Attributes:
        name: what people call it.
        plus: S+, features counted as good, ascending.
        minus: S-, features counted as bad, ascending.
        sae: sha256 of the SAE whose features these are; a set means nothing beside another SAE.
        how: how it was made: {"method": "salience" | "rating" | "hand" | "import", ...what was chosen}.
        version: 1.. once stored, UNSAVED before.
        created: ISO time it was stored, '' before.
    """

    name: str
    plus: tuple[int, ...]
    minus: tuple[int, ...]
    sae: str
    how: dict[str, Any] = field(default_factory=dict)
    version: int = UNSAVED
    created: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "plus", tuple(sorted(set(map(int, self.plus)))))
        object.__setattr__(self, "minus", tuple(sorted(set(map(int, self.minus)))))
        both = sorted(set(self.plus) & set(self.minus))
        if both:
            raise DataError(f"Feature {both[0]} is in S+ and in S- of the set {self.name!r}; a feature has one sign.")
        if not self.name.strip() or len(self.name) > 80:
            raise DataError("A set needs a name of 1 to 80 characters.")

    def __len__(self) -> int:
        return len(self.plus) + len(self.minus)

    @property
    def features(self) -> tuple[int, ...]:
        """All members, ascending."""
        return tuple(sorted((*self.plus, *self.minus)))

    def signs(self, latents: int) -> np.ndarray:
        """+1 for S+, -1 for S-, 0 elsewhere: float64 [latents].

        Raises:
            DataError: a member is not a feature of this SAE.
        """
        if self.features and self.features[-1] >= latents:
            raise DataError(
                f"The set {self.name!r} has feature {self.features[-1]}, the run only {latents:,}: it was made for another SAE."
            )
        signs = np.zeros(latents)
        signs[list(self.plus)], signs[list(self.minus)] = 1.0, -1.0
        return signs

    def sign(self, feature: int) -> int:
        """+1, -1 or 0 (not a member)."""
        return int(feature in self.plus) - int(feature in self.minus)

    def with_feature(self, feature: int, sign: int) -> FeatureSet:
        """The same set with one feature's sign set by hand (0 takes it out); unsaved."""
        plus, minus = set(self.plus) - {feature}, set(self.minus) - {feature}
        if sign:
            (plus if sign > 0 else minus).add(feature)
        how = {"method": "hand", "from": self.how} if self.how.get("method") != "hand" else self.how
        return replace(self, plus=tuple(plus), minus=tuple(minus), how=how, version=UNSAVED, created="")


def set_to_json(one: FeatureSet) -> str:
    """The set as the text of a small file."""
    facts = {
        "format": FORMAT,
        "name": one.name,
        "version": one.version,
        "sae_sha256": one.sae,
        "s_plus": list(one.plus),
        "s_minus": list(one.minus),
        "how": one.how,
        "created": one.created,
    }
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def read_set(path: Path, *, sae: str, latents: int) -> FeatureSet:
    """Imports a set from a file that `set_to_json` wrote, or one with just `s_plus` and `s_minus`.

    Raises:
        DataError: it cannot be read, is not a set, or is of another SAE.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        plus, minus = _ids(facts["s_plus"]), _ids(facts["s_minus"])
    except OSError as error:
        raise DataError(f"The set {path} cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a feature set: it needs the lists s_plus and s_minus of feature ids ({error})."
        ) from None
    given = facts.get("sae_sha256")
    if given not in (None, sae):
        raise DataError(
            f"{path} was made for the SAE {str(given)[:12]}, this run has {sae[:12]}; its ids mean other features."
        )
    how = {"method": "import", "file": path.name, "from": facts.get("how", {})}
    one = FeatureSet(str(facts.get("name") or path.stem), plus, minus, sae, how)
    one.signs(latents)
    return one


def _ids(values: Sequence[Any]) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(
        isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values
    ):
        raise ValueError("ids are whole numbers from 0")
    return tuple(values)
