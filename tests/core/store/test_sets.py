"""Safety sets: what they are, what they refuse, and their way through a file."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from core.salience.sets import set_by_rating, set_by_salience
from core.store.sets import FeatureSet, read_set, set_to_json

SALIENCE = pl.DataFrame(
    {
        "feature_id": [0, 1, 2, 3, 4, 5],
        "s": [0.9, -0.8, 0.7, 0.0, None, -0.8],
        "effect": [1.0, -2.0, -0.5, 0.0, 3.0, -1.0],
        "effect_size": [0.5, -0.9, -0.1, 0.0, 0.4, -0.2],
        "q": [0.2, 0.001, None, 1.0, 0.01, 0.04],
        "effect_length_adjusted": [-1.0, -1.0, 1.0, 0.0, None, 0.5],
        "q_adjusted": [0.01, 0.01, 0.5, 1.0, None, 0.01],
    }
)
IDS = st.frozensets(st.integers(0, 99), max_size=12)


def made(**options: object) -> FeatureSet:
    return set_by_salience(SALIENCE, name="x", sae="a", **options)  # type: ignore[arg-type]


def test_saliences_largest_sizes_are_taken_before_their_signs_split_them() -> None:
    one = made(size=3)
    assert (one.plus, one.minus) == ((0,), (1, 5))  # |s| .9, .8, .8; a tie goes to the lower id, 0.0 and NULL never in
    assert one.how["order"] == "s"


def test_untested_features_never_pass_a_q() -> None:
    assert made(max_q=0.05).features == (1, 5)
    assert made(max_q=0.05, order="effect").features == (1, 4, 5)


def test_at_equal_length_sign_and_q_are_those_of_the_adjusted_effect() -> None:
    one = made(max_q=0.05, length_adjusted=True)
    assert (one.plus, one.minus) == ((5,), (0, 1))


def test_no_feature_left_is_said() -> None:
    with pytest.raises(DataError, match="loosen"):
        made(max_q=1e-9)


def test_a_missing_rating_is_never_a_rating() -> None:
    ratings = pl.DataFrame({"feature_id": [0, 1, 2, 5], "safety_rating": [None, 5, 4, 5]})
    one = set_by_rating(SALIENCE, ratings, name="x", sae="a")
    assert (one.plus, one.minus) == ((), (1, 5))
    assert set_by_rating(SALIENCE, ratings, name="x", sae="a", candidates=2).features == (1,)
    with pytest.raises(DataError, match="rate them"):
        set_by_rating(SALIENCE, ratings.filter(pl.col("safety_rating").is_null()), name="x", sae="a")


def test_one_feature_has_one_sign() -> None:
    with pytest.raises(DataError, match="Feature 3 is in S"):
        FeatureSet("x", (1, 3), (3,), "a")


@given(IDS, IDS)
def test_signs_and_files_keep_a_set_as_it_is(plus: frozenset[int], minus: frozenset[int]) -> None:
    import tempfile
    from pathlib import Path

    one = FeatureSet("x", tuple(plus), tuple(minus - plus), "a", {"method": "hand"})
    signs = one.signs(100)
    assert set(np.flatnonzero(signs > 0)) == plus
    assert set(np.flatnonzero(signs < 0)) == minus - plus
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.json"
        path.write_text(set_to_json(one), encoding="utf-8")
        back = read_set(path, sae="a", latents=100)
    assert (back.name, back.plus, back.minus) == (one.name, one.plus, one.minus)
    assert back.how["method"] == "import"


def test_a_pick_by_hand_remembers_where_it_began() -> None:
    one = made(size=3).with_feature(0, -1).with_feature(7, 1).with_feature(1, 0)
    assert (one.plus, one.minus) == ((7,), (0, 5))
    assert one.how == {"method": "hand", "from": made(size=3).how}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("not json", "not a feature set"),
        ('{"s_plus": [1]}', "s_minus"),
        ('{"s_plus": [1], "s_minus": ["2"]}', "whole numbers"),
        ('{"s_plus": [true], "s_minus": []}', "whole numbers"),
        ('{"s_plus": [1], "s_minus": [1]}', "one sign"),
        ('{"s_plus": [100], "s_minus": []}', "another SAE"),
        (json.dumps({"s_plus": [1], "s_minus": [], "sae_sha256": "other"}), "other features"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(tmp_path, content: str, says: str) -> None:
    path = tmp_path / "set.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        read_set(path, sae="a", latents=100)
