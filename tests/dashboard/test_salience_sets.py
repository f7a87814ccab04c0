"""The open set: default, drafts, saving, importing."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from core.errors import DataError, RunError
from core.store.reader import RunReader
from core.store.review import ReviewStore
from core.store.sets import FeatureSet, set_to_json
from dashboard import sets
from dashboard.parts.salience_evidence import causal_verdicts, evidence, slice_mask, strongest_pairs
from dashboard.parts.set_editor import SetEditor, list_html, summary_html
from dashboard.state import AppState
from tests.dashboard.conftest import assert_harmless
from tests.synthetic_run import HOSTILE


@pytest.fixture
def store(tmp_path: Path) -> ReviewStore:
    return ReviewStore(tmp_path)


@pytest.fixture
def state() -> AppState:
    return AppState(run="plain", view="salience")


def editor(state: AppState, reader: RunReader, store: ReviewStore, targets: list[int] | None = None) -> SetEditor:
    nothing = pl.DataFrame(schema={"feature_id": pl.Int64, "safety_rating": pl.Int64})
    return SetEditor(state, reader, store, lambda: targets or [], lambda: nothing)


def test_a_run_opens_with_the_highest_s_on_training_pairs(
    state: AppState, plain: RunReader, store: ReviewStore
) -> None:
    one = sets.open_set(state, plain, store)
    rows = plain.salience("split=train", "boundary_sum").filter(pl.col("s").is_not_null())
    top = rows.sort(pl.col("s").abs(), descending=True).head(32)
    assert set(one.features) == set(top["feature_id"])
    assert set(one.plus) == set(top.filter(pl.col("s") > 0)["feature_id"])
    assert not sets.is_unsaved(state)
    assert not store.path.exists(), "looking writes nothing"


def test_marking_makes_a_draft_that_outlives_the_opening_of_another_set(
    state: AppState, plain: RunReader, store: ReviewStore
) -> None:
    other = store.save_set(FeatureSet("other", (1,), (2,), sets.sae_of(plain)))
    feature = next(f for f in range(150) if sets.open_set(state, plain, store).sign(f) == 0)
    sets.mark(state, plain, store, [feature], -1)
    assert sets.is_unsaved(state)
    state.set_name = "other"
    assert sets.open_set(state, plain, store) == other
    assert not sets.is_unsaved(state)
    state.set_name = ""
    one = sets.open_set(state, plain, store)
    assert one.sign(feature) == -1
    assert one.how["method"] == "hand"
    assert one.how["from"]["method"] == "salience"
    sets.drop_draft(state)
    assert sets.open_set(state, plain, store).sign(feature) == 0


def test_marking_what_is_already_so_changes_nothing(state: AppState, plain: RunReader, store: ReviewStore) -> None:
    feature = sets.open_set(state, plain, store).plus[0]
    sets.mark(state, plain, store, [feature], 1)
    assert not sets.is_unsaved(state)


def test_saving_makes_versions_and_opens_what_was_saved(state: AppState, plain: RunReader, store: ReviewStore) -> None:
    sets.mark(state, plain, store, [1, 2], 1)
    first = sets.save_as(" mine ", state, plain, store)
    assert (first.name, first.version, state.set_name) == ("mine", 1, "mine")
    assert not state.drafts
    sets.mark(state, plain, store, [1], 0)
    second = sets.save_as("mine", state, plain, store)
    assert second.version == 2
    assert 1 not in second.features
    state.set_name = "mine@1"
    assert 1 in sets.open_set(state, plain, store).plus


def test_a_wrong_name_is_not_saved_and_loses_nothing(state: AppState, plain: RunReader, store: ReviewStore) -> None:
    sets.mark(state, plain, store, [sets.open_set(state, plain, store).plus[0]], 0)
    for name in ("", "   ", "x" * 81):
        with pytest.raises(DataError, match="1 to 80"):
            sets.save_as(name, state, plain, store)
    assert sets.is_unsaved(state)


def test_a_link_to_an_unknown_set_says_which_there_are(state: AppState, plain: RunReader, store: ReviewStore) -> None:
    store.save_set(FeatureSet("known", (1,), (), sets.sae_of(plain)))
    state.set_name = "nothing"
    with pytest.raises(RunError, match="known"):
        sets.open_set(state, plain, store)
    shown = editor(state, plain, store)
    assert shown.show() is None
    assert "known" in shown.layout()[1].object
    assert shown.to_plus.disabled


def test_buttons_act_on_their_targets(state: AppState, plain: RunReader, store: ReviewStore) -> None:
    one = editor(state, plain, store, [4, 5])
    one.mark(1)
    assert {4, 5} <= set(sets.open_set(state, plain, store).plus)
    one.mark(0)
    assert not {4, 5} & set(sets.open_set(state, plain, store).features)


def test_thresholds_make_a_draft_and_say_how(state: AppState, plain: RunReader, store: ReviewStore) -> None:
    one = editor(state, plain, store)
    one._size.value, one._order.value, one._max_q.value, one._equal.value = 5, "effect_size", 0.05, True
    one._try(one._by_salience)
    made = sets.open_set(state, plain, store)
    rows = plain.salience("split=train", "boundary_sum")
    passing = rows.filter(pl.col("q_adjusted") <= 0.05).sort(pl.col("effect_size").abs(), descending=True).head(5)
    assert set(made.features) == set(passing["feature_id"])
    assert "at equal length" in sets.made_by(made.how)
    assert sets.is_unsaved(state)


def test_ratings_that_are_missing_make_no_set(state: AppState, plain: RunReader, store: ReviewStore) -> None:
    one = editor(state, plain, store)
    one._try(one._by_rating)
    assert not sets.is_unsaved(state)
    assert len(state.notices) == 1
    assert "rewardscope label" in state.notices[0]


def test_import_checks_the_sae_and_keeps_the_file_name_harmless(
    state: AppState, plain: RunReader, store: ReviewStore
) -> None:
    one = editor(state, plain, store)
    good = FeatureSet("theirs", (3,), (7,), sets.sae_of(plain))
    one._import(set_to_json(good).encode(), "../../\x00evil/<b>set.json")
    made = sets.open_set(state, plain, store)
    assert (made.plus, made.minus, made.how["method"]) == ((3,), (7,), "import")
    assert "/" not in made.how["file"]
    sets.drop_draft(state)
    facts = json.loads(set_to_json(good))
    wrongs: tuple[object, ...] = ({**facts, "sae_sha256": "other"}, {**facts, "s_plus": [10**6]}, {"s_plus": "x"}, [])
    for wrong in wrongs:
        with pytest.raises(DataError):
            one._import(json.dumps(wrong).encode(), "set.json")
    assert not sets.is_unsaved(state)
    exported = json.loads(one._json().read())
    assert exported["sae_sha256"] == sets.sae_of(plain)


def test_names_from_people_are_text(state: AppState, plain: RunReader, store: ReviewStore) -> None:
    evil = store.save_set(FeatureSet(HOSTILE[:80], (1,), (), sets.sae_of(plain), {"method": "import", "file": HOSTILE}))
    assert_harmless(list_html([evil], state))
    assert_harmless(summary_html(evil, True, ""))
    assert_harmless(summary_html(None, False, HOSTILE))


def test_causal_checks_made_later_count_more(plain: RunReader, store: ReviewStore) -> None:
    base = {"run_id": plain.manifest.run_id, "n_pairs": 40, "n_prompts": 20, "n_random": 10}
    rows = [("head", 1, "verified"), ("head", 2, "verified"), ("residual", 2, "correlated only")]
    store.save_causal([{**base, "method": m, "feature_id": f, "verdict": v} for m, f, v in rows])
    found = dict(causal_verdicts(plain, store).iter_rows())
    assert found == {1: "verified", 2: "correlated only"}
    known = evidence(plain, store)
    assert known.filter(feature_id=1)["causal"].to_list() == ["verified"]
    assert known["feature_id"].is_unique().all()


def test_pairs_where_a_feature_differs_most_are_of_the_slice(plain: RunReader) -> None:
    feature = int(plain.features.frame.sort("n_responses")["feature_id"][-1])
    difference = (
        plain.arrays.pooled("mean")[0::2, feature].toarray() - plain.arrays.pooled("mean")[1::2, feature].toarray()
    ).ravel()
    pairs = plain.table("pair").sort("pair_index")
    for part, mask in (("all", [True] * len(pairs)), ("split=test", (pairs["split"] == "test").to_list())):
        assert slice_mask(plain, part).tolist() == mask
        found = strongest_pairs(plain, feature, part, "mean")
        inside = {pairs["pair_id"][i]: difference[i] for i in range(len(pairs)) if mask[i]}
        assert found["difference"][0] == pytest.approx(max(inside.values()))
        assert found["difference"][-1] == pytest.approx(min(inside.values()))
        for pair, value in found.select("pair_id", "difference").iter_rows():
            assert value == pytest.approx(inside[pair])
