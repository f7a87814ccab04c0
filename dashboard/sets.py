"""Safety sets as the views share them: which one is open, with the changes of this session that are not saved yet.

An edit never touches a stored set: it makes a draft, kept in `state.drafts` under the name the set was opened by, and
every view works with the draft until it is saved as a new version or dropped.
"""

from __future__ import annotations

from typing import Any

from core.salience.sets import default_set_of
from core.store.reader import RunReader
from core.store.review import ReviewStore
from core.store.sets import UNSAVED, FeatureSet
from dashboard import runs
from dashboard.state import AppState

DEFAULT_SIZE = 32


def review_store() -> ReviewStore:
    """The review store beside the runs the page shows; nothing is created by opening it."""
    return ReviewStore(runs.folder())


def default_set(reader: RunReader) -> FeatureSet:
    """The set a run opens with, the same as in its build and on the command line.

    Raises:
        DataError: the run stores no salience of its training pairs.
    """
    return default_set_of(reader)


def stored_set(name: str, reader: RunReader, store: ReviewStore) -> FeatureSet:
    """The set of that name ('name' or 'name@version') as it is stored; '' is the run's default.

    Raises:
        RunError: there is no such set; the message lists what there is.
        DataError: it has features this run does not have, or a default is asked for and the run stores no salience.
    """
    one = store.find_set(sae_of(reader), name) if name else default_set(reader)
    one.signs(len(reader.features))
    return one


def open_set(state: AppState, reader: RunReader, store: ReviewStore) -> FeatureSet:
    """The set the page works with: `state.set_name` with this session's unsaved changes.

    `is_unsaved` tells whether there are any. Watch `set_name` and `drafts` to follow it.

    Raises:
        RunError, DataError: as `stored_set`.
    """
    return state.drafts.get(state.set_name) or stored_set(state.set_name, reader, store)


def is_unsaved(state: AppState) -> bool:
    """Whether the open set has changes that are not stored."""
    return state.set_name in state.drafts


def put_draft(state: AppState, one: FeatureSet) -> None:
    """Makes `one` the open set's unsaved state."""
    state.drafts = {**state.drafts, state.set_name: one}


def drop_draft(state: AppState) -> None:
    """Back to the open set as it is stored."""
    state.drafts = {name: one for name, one in state.drafts.items() if name != state.set_name}


def mark(state: AppState, reader: RunReader, store: ReviewStore, features: list[int], sign: int) -> FeatureSet:
    """Puts features into S+ (sign 1) or S- (-1) of the open set or takes them out (0), as a draft."""
    before = open_set(state, reader, store)
    one = before
    for feature in features:
        if one.sign(feature) != sign:
            one = one.with_feature(feature, sign)
    if one is not before:
        put_draft(state, one)
    return one


def save_as(name: str, state: AppState, reader: RunReader, store: ReviewStore) -> FeatureSet:
    """Stores the open set as the next version of `name`, opens that, and lets the draft go.

    Raises:
        DataError: the name is empty or too long.
        RunError: the store cannot be written; the draft stays.
    """
    one = open_set(state, reader, store)
    saved = store.save_set(FeatureSet(name.strip(), one.plus, one.minus, one.sae, one.how))
    kept = {key: draft for key, draft in state.drafts.items() if key not in (state.set_name, saved.name)}
    state.param.update(drafts=kept, set_name=saved.name)
    return saved


def sae_of(reader: RunReader) -> str:
    """The hash of the run's SAE, which says whose feature ids a set's are."""
    return str(reader.manifest.sae["sha256"])


def made_by(how: dict[str, Any]) -> str:
    """How a set was made, in words."""
    method = how.get("method")
    if method == "salience":
        size = f"top {how['size']}" if how.get("size") else "all"
        parts = [f"{size} by |{how.get('order', 's')}|", f"{how.get('slice')}, {how.get('pooling')}"]
        if how.get("max_q") is not None:
            parts.append(f"q ≤ {how['max_q']:g}")
        if how.get("min_effect_size") is not None:
            parts.append(f"|effect size| ≥ {how['min_effect_size']:g}")
        if how.get("length_adjusted"):
            parts.append("at equal length")
        return "salience: " + ", ".join(parts)
    if method == "rating":
        limit = f", first {how['size']}" if how.get("size") else ""
        return f"ratings of {how.get('min_rating')} or more among the top {how.get('candidates')} by |s|{limit}"
    if method == "hand":
        start = how.get("from") or {}
        return "by hand" + (f", from {made_by(start)}" if start.get("method") else "")
    if method == "import":
        return f"imported from {how.get('file', 'a file')}"
    return "not recorded"


def title(one: FeatureSet) -> str:
    """'name, version 2', or without the version while it is unsaved."""
    return f"{one.name}, version {one.version}" if one.version != UNSAVED else one.name
