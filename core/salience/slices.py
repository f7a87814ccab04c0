"""The slices salience is computed on: every pair, and the pairs that share a value of some column."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from core.errors import DataError

ALL = "all"
OWN_COLUMNS = ("split", "domain", "category")
"""Columns of the pairs themselves; every other column is one of their labels."""
TRAIN_DOMAIN = "train domain"
"""The training pairs of one domain: where a set for this domain is taken from, so that held-out pairs stay unseen."""
MIN_PROMPTS = 10
"""Slices with fewer prompts are left out: nothing could be said about them."""
MAX_VALUES = 20
MAX_SHARE = 0.9
"""A label's slice that holds more of the pairs with that label than this is left out: it says what they all say."""


@dataclass(frozen=True)
class Slice:
    """Some of the pairs.

    Attributes:
        name: 'all' or 'column=value'.
        pairs: bool [n_pairs], in the order of the frame of pairs.
    """

    name: str
    pairs: np.ndarray


def slices_of(pairs: pl.DataFrame, columns: Sequence[str] | None = None) -> list[Slice]:
    """The slices of a run: 'all', by split, domain and category, then by label column, in order of first appearance.

    Args:
        pairs: PAIR_SCHEMA; `labels` may be JSON text or a struct.
        columns: the label columns to use; None takes those with 2 to 20 different plain values.

    Raises:
        DataError: a column that was asked for is not there.
    """
    n = len(pairs)
    prompt = pairs["prompt_id"].to_numpy()
    found = [Slice(ALL, np.ones(n, bool))]
    labels = label_columns(pairs)
    if columns is None:
        labels = {k: v for k, v in labels.items() if 2 <= len({x for x in v if x is not None}) <= MAX_VALUES}
    else:
        missing = [name for name in columns if name not in labels and name not in OWN_COLUMNS]
        if missing:
            known = ", ".join(sorted(labels)) or "none"
            raise DataError(
                f"The pairs have no label column {missing[0]!r} to make slices of (salience.columns); "
                f"those with plain values are: {known}."
            )
        labels = {name: labels[name] for name in columns if name in labels}
    for column, values in {**_own_columns(pairs), **labels}.items():
        for value in dict.fromkeys(v for v in values if v is not None):
            mask = np.fromiter((v == value for v in values), bool, n)
            too_much = column in labels and mask.sum() > MAX_SHARE * (n - values.count(None))
            if not too_much and len(np.unique(prompt[mask])) >= MIN_PROMPTS:
                found.append(Slice(f"{column}={value}", mask))
    return found


def find_slice(pairs: pl.DataFrame, name: str) -> Slice:
    """A slice by its name, of any size.

    Raises:
        DataError: no pair belongs to it.
    """
    if name == ALL:
        return Slice(ALL, np.ones(len(pairs), bool))
    for column, values in {**_own_columns(pairs), **label_columns(pairs)}.items():
        if name.startswith(f"{column}="):
            mask = np.fromiter((v == name[len(column) + 1 :] for v in values), bool, len(pairs))
            if mask.any():
                return Slice(name, mask)
    raise DataError(f"No pair belongs to the slice {name!r}; write 'all' or column=value.")


def label_columns(pairs: pl.DataFrame) -> dict[str, list[str | None]]:
    """The label columns of which every value is plain (text, number, yes/no or missing), as text [n_pairs]."""
    if "labels" not in pairs.columns:
        return {}
    rows = [json.loads(row) if isinstance(row, str) else row or {} for row in pairs["labels"].to_list()]
    names = dict.fromkeys(name for row in rows for name in row)
    columns: dict[str, list[str | None]] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if name not in (*OWN_COLUMNS, TRAIN_DOMAIN, ALL) and all(
            v is None or isinstance(v, str | int | float) for v in values
        ):
            columns[name] = [_text(value) for value in values]
    return columns


def _own_columns(pairs: pl.DataFrame) -> dict[str, list[str | None]]:
    """The pairs' own columns as text [n_pairs]; with several domains, also the domain of the training pairs alone."""
    own: dict[str, list[str | None]] = {name: pairs[name].cast(pl.String).to_list() for name in OWN_COLUMNS}
    if len(set(own["domain"])) > 1:
        own[TRAIN_DOMAIN] = [
            domain if split == "train" else None for domain, split in zip(own["domain"], own["split"], strict=True)
        ]
    return own


def _text(value: Any) -> str | None:
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
