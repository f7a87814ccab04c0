"""Steering as the views share it: what of a run it is computed from, and the stored steerings.

`state.steering` is what the sliders say at rest (it is the link), `state.live_steering` the same under a moving hand.
Nothing here writes into a run: presets are kept in the review store beside the runs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
import polars as pl

from core.errors import DataError
from core.evaluate.specificity import SteeringData, targets
from core.rewards.steering import Steering, read_steering, steering_to_json
from core.salience.slices import ALL, TRAIN_DOMAIN
from core.store.feature_queries import FeatureFilter
from core.store.reader import RunReader
from dashboard.sets import sae_of
from dashboard.state import MOST_STEERED, STEERING_RANGE, AppState

OFFERED = 5
"""Features one click offers to add."""
LEVEL = 0.05
"""Largest q of a feature that counts as salient."""


_runs: WeakKeyDictionary[RunReader, SteeringData] = WeakKeyDictionary()
_lock = Lock()


def of_run(reader: RunReader) -> SteeringData:
    """What a run's steering is computed from, read once for every session; each works with `.steered.another()`.

    Raises:
        RunError: the run's arrays are missing or damaged.
    """
    with _lock:
        if reader not in _runs:
            _runs[reader] = SteeringData.of(reader)
        return _runs[reader]


def concepts(reader: RunReader) -> list[str]:
    """What can be steered at, 'column=value': slices with enough held-out pairs, or else any slice there is."""
    data = of_run(reader)
    return targets(data) or list(data.slices)


def target_of(state: AppState, reader: RunReader) -> str:
    """The concept steered at: what the link says where the run has it, else the run's first; '' without any."""
    names = concepts(reader)
    return state.target if state.target in names else next(iter(names), "")


def usable(multipliers: Mapping[int, float], reader: RunReader) -> dict[int, float]:
    """Multipliers as they may stand in a link: six digits.

    Raises:
        DataError: too many features, a feature that the run does not have, or a multiplier out of range.
    """
    if len(multipliers) > MOST_STEERED:
        raise DataError(f"The sliders hold at most {MOST_STEERED} features; this would make {len(multipliers)}.")
    low, high = STEERING_RANGE
    for feature, by in multipliers.items():
        if feature not in reader.features:
            raise DataError(f"This run has no feature {feature} to steer.")
        if not low <= by <= high:
            raise DataError(f"Feature {feature} would be multiplied by {by:g}; sliders take {low:g} to {high:g}.")
    return {int(feature): float(f"{by:.6g}") for feature, by in multipliers.items()}


def multipliers_of(one: Steering, reader: RunReader) -> tuple[dict[int, float], str]:
    """A stored or imported steering on the sliders, and what must be said about it.

    Raises:
        DataError: it has no feature with a multiplier, or one that the sliders cannot hold.
    """
    found = one.multipliers(of_run(reader).steered.weights)
    if not found:
        raise DataError(one.note or "This steering changes no feature.")
    return usable(found, reader), f"{one.note} Such a change has no slider." if one.note else ""


def read_upload(content: str, filename: str, reader: RunReader) -> Steering:
    """An uploaded file as a steering.

    Raises:
        DataError: it is no steering, or one of another SAE.
    """
    safe = "".join(c for c in filename if c.isalnum() or c in " -_.")[-80:].strip(" .") or "steering.json"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / safe
        path.write_text(content, encoding="utf-8")
        try:
            return read_steering(path, sae=sae_of(reader), latents=len(reader.features))
        except DataError as error:
            raise DataError(str(error).replace(str(path), f"“{safe}”")) from None


def to_steering(multipliers: Mapping[int, float], name: str, reader: RunReader) -> Steering:
    """What stands on the sliders, to be stored or downloaded."""
    how = {"method": "sliders", "run": reader.manifest.run_id}
    return Steering.of_multipliers(multipliers, name=name, sae=sae_of(reader), how=how)


def own_file(one: Steering) -> str:
    """The file that rewardscope reads and writes: with the SAE's hash, so that it cannot be used with another."""
    return steering_to_json(one)


def sarm_file(one: Steering) -> str:
    """The file that SARM's scripts read: {"feature": ["*", factor]}."""
    return json.dumps({str(feature): ["*", change.value] for feature, change in one.changes.items()}, indent=2) + "\n"


def salient(reader: RunReader, target: str, without: Mapping[int, float], most: int = OFFERED) -> pl.DataFrame:
    """The salient features that move the target's margins most.

    Salient: their activation, as the head pools it, differs between chosen and rejected answers (q <= LEVEL). Most: by
    |w x effect|, what that difference adds to the mean margin. Where nothing is salient, all features are ranked.

    Args:
        target: 'column=value'; of a domain its training pairs; a slice without stored salience falls back to all pairs.
        without: features that are not offered.

    Returns:
        feature_id, label, weight, margin (w x effect, reward units).
    """
    pooling = str(reader.manifest.head["pooling"])
    column, _, value = target.partition("=")
    wanted = [f"{TRAIN_DOMAIN}={value}"] if column == "domain" else []  # so that held-out pairs stay unseen
    for name in (*wanted, target, ALL):
        rows = reader.salience(name, pooling)
        if len(rows):
            break
    margin = pl.col("weight") * pl.col("effect")
    found = rows.with_columns(margin.alias("margin")).filter(
        pl.col("margin").is_not_null(), pl.col("margin") != 0, ~pl.col("feature_id").is_in(list(without))
    )
    sure = found.filter(pl.col("q") <= LEVEL)
    ranked = (sure if len(sure) else found).sort(pl.col("margin").abs(), pl.col("feature_id"), descending=[True, False])
    return ranked.select("feature_id", "label", "weight", "margin").head(most)


def find_features(reader: RunReader, text: str, most: int = 8) -> pl.DataFrame:
    """Features by id or words: the exact id, then those with the words in their label, then in their contexts.

    Returns:
        feature_id, label, weight; within each kind in the order of the Features view.
    """
    ids = reader.feature_ids(FeatureFilter(search=text, alive_only=False))
    named = reader.features.take(ids)["label"].fill_null("").str.to_lowercase()
    here = named.str.contains(text.strip().lower(), literal=True).to_numpy()
    ids = np.concatenate([ids[here], ids[~here]])
    digits = text.strip().removeprefix("#")
    if digits.isascii() and digits.isdigit() and len(digits) <= 9 and int(digits) in reader.features:
        ids = np.array([int(digits), *(i for i in ids if i != int(digits))])
    return reader.features.take(ids[:most]).select("feature_id", "label", "weight")
