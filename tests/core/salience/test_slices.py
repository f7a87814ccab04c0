"""Which slices a run has."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from core.errors import DataError
from core.salience.slices import find_slice, label_columns, slices_of
from tests.core.salience.synthetic import frames_of

N = 60


def pairs_with(**labels: list) -> pl.DataFrame:
    rows = [{name: values[i] for name, values in labels.items()} for i in range(N)]
    return frames_of(
        [f"prompt {i // 2}" for i in range(N)],
        labels=rows,
        split=["test" if i % 5 == 0 else "train" for i in range(N)],
        domain=["privacy" if i < 24 else "chat" for i in range(N)],
        category=["spying" if i < 20 else "tiny" if i < 24 else None for i in range(N)],
    )[0]


def names(pairs: pl.DataFrame, columns: tuple[str, ...] | None = None) -> list[str]:
    return [part.name for part in slices_of(pairs, columns)]


def test_a_slice_for_every_split_domain_and_category_of_ten_prompts() -> None:
    assert names(pairs_with()) == [
        "all", "split=test", "split=train", "domain=privacy", "domain=chat", "category=spying",
        "train domain=privacy", "train domain=chat",
    ]  # fmt: skip


def test_a_set_for_one_domain_can_be_taken_from_its_training_pairs_alone() -> None:
    pairs = pairs_with()
    wanted = ((pairs["domain"] == "privacy") & (pairs["split"] == "train")).to_numpy()
    np.testing.assert_array_equal(find_slice(pairs, "train domain=privacy").pairs, wanted)
    one_domain = pairs.with_columns(domain=pl.lit("privacy"))
    assert not any(name.startswith("train domain") for name in names(one_domain))


def test_label_columns_of_few_plain_values_make_slices() -> None:
    alternate = [i % 2 == 0 for i in range(N)]
    pairs = pairs_with(
        refuses=alternate,
        rating=[(1, 2.5, None)[i % 3] for i in range(N)],
        note=[f"text {i}" for i in range(N)],  # too many values
        same=["x"] * N,  # only one
        lists=[["a"] if i % 2 else [] for i in range(N)],  # not plain
        rare=[i < 3 for i in range(N)],  # 'false' says what all pairs say, 'true' has two prompts
    )
    found = [
        name for name in names(pairs) if not name.startswith(("all", "split", "domain", "category", "train domain"))
    ]
    assert found == ["refuses=true", "refuses=false", "rating=1", "rating=2.5"]
    by_name = {part.name: part.pairs for part in slices_of(pairs)}
    np.testing.assert_array_equal(by_name["refuses=true"], alternate)
    assert by_name["rating=2.5"].sum() == 20


def test_columns_can_be_chosen() -> None:
    pairs = pairs_with(refuses=[i % 2 == 0 for i in range(N)], other=[i % 3 == 0 for i in range(N)])
    assert [name for name in names(pairs, ("other",)) if "=" in name and name[0] in "ro"] == [
        "other=true",
        "other=false",
    ]
    with pytest.raises(DataError, match="no label column 'colour'"):
        slices_of(pairs, ("colour",))


def test_labels_may_be_a_struct_or_absent() -> None:
    pairs = pairs_with(refuses=[i % 2 == 0 for i in range(N)])
    struct = pairs.with_columns(pl.Series("labels", [{"refuses": i % 2 == 0} for i in range(N)]))
    assert names(struct) == names(pairs)
    assert label_columns(pairs.drop("labels")) == {}


def test_labels_named_like_own_columns_make_no_second_slice() -> None:
    pairs = pairs_with(domain=["x" if i % 2 else "y" for i in range(N)])
    assert "domain=x" not in names(pairs)


def test_a_slice_is_found_by_its_name() -> None:
    pairs = pairs_with(**{"a=b": ["c=d" if i % 2 else "e" for i in range(N)]})
    assert find_slice(pairs, "a=b=c=d").pairs.sum() == N // 2
    assert find_slice(pairs, "category=tiny").pairs.sum() == 4  # also those too small for the table
    assert find_slice(pairs, "all").pairs.all()
    with pytest.raises(DataError, match="No pair belongs to the slice 'domain=nothing'"):
        find_slice(pairs, "domain=nothing")
