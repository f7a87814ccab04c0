"""The rows behind plot, table and download: what is tested, significant, listed, drawn and written."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pytest

from core.store.reader import RunReader
from core.store.sets import FeatureSet
from dashboard.parts.salience_card import forest_html, in_order, value_of
from dashboard.parts.salience_rows import (
    LEVEL,
    NOTHING_KNOWN,
    Listing,
    Rows,
    counts,
    csv_text,
    listed,
    members,
    rows_of,
)
from dashboard.parts.salience_table import fixed, table_frame
from dashboard.parts.sign_changes import changes_frame
from dashboard.parts.volcano import HIGHEST, at_smallest_q, caption, cloud_of
from dashboard.state import AppState
from tests.dashboard.conftest import assert_harmless


def rows_from(reader: RunReader, length_control: bool = False, slice: str = "all") -> Rows:
    return rows_of(reader.salience(slice, "mean"), NOTHING_KNOWN, length_control)


def test_a_feature_without_q_is_not_tested_and_never_significant(plain: RunReader) -> None:
    rows = rows_from(plain)
    stored = plain.salience("all", "mean")
    assert 0 < rows.tested.sum() < len(rows)
    assert (rows.tested == stored["q"].is_not_null().to_numpy()).all()
    expected = np.nan_to_num(stored["q"].cast(pl.Float64).to_numpy(), nan=1.0) <= LEVEL
    assert ((rows.direction != 0) == expected).all()
    assert (np.sign(rows.column("effect"))[rows.direction != 0] == rows.direction[rows.direction != 0]).all()


def test_length_control_takes_the_adjusted_figures_and_keeps_the_unit_of_the_effect_size(plain: RunReader) -> None:
    stored, rows = plain.salience("all", "mean"), rows_from(plain, length_control=True)
    assert rows.frame["effect"].to_list() == stored["effect_length_adjusted"].to_list()
    assert rows.frame["q"].to_list() == stored["q_adjusted"].to_list()
    assert rows.frame["low"].to_list() == stored["adjusted_low"].to_list()
    moved = stored.with_columns(size=rows.frame["size"]).filter(pl.col("effect_size") != 0, pl.col("q").is_not_null())
    deviation = moved["effect"] / moved["effect_size"]
    assert np.allclose(moved["effect_length_adjusted"] / deviation, moved["size"])
    assert rows.frame.filter(stored["effect"] == 0)["size"].null_count() == (stored["effect"] == 0).sum()
    plainly, equally = counts(rows_from(plain)), counts(rows)
    assert equally["significant"] < plainly["significant"], "a quarter of the effects vanishes at equal length"


def test_what_others_know_is_joined_and_what_nobody_knows_stays_missing(plain: RunReader) -> None:
    stored = plain.salience("all", "mean")
    a, b = (int(stored["feature_id"][i]) for i in (0, 1))
    known = pl.DataFrame(
        {"feature_id": [a], "text": ["by a reviewer"], "rating": [5], "detection": [0.9], "causal": ["verified"]},
        schema=NOTHING_KNOWN.schema,
    )
    frame = rows_of(stored, known, False).frame
    row, other = frame.row(0, named=True), frame.row(1, named=True)
    assert (row["label"], row["rating"], row["detection"], row["causal"]) == ("by a reviewer", 5, 0.9, "verified")
    assert other["feature_id"] == b
    assert (other["label"], other["rating"], other["causal"]) == (stored["label"][1], None, "not checked")
    assert frame["rating"].null_count() == len(frame) - 1
    untested = rows_of(stored, known.with_columns(detection=pl.lit(None, dtype=pl.Float64)), False).frame
    assert untested["detection"][0] is None, "the score of another label is not this one's"


def test_the_default_order_is_certain_first_then_large_then_untested(plain: RunReader) -> None:
    rows = rows_from(plain)
    at = listed(rows, np.zeros(len(rows), np.int64), Listing())
    q, size = rows.column("q")[at], np.abs(rows.column("size")[at])
    assert len(at) == len(rows)
    known = q[~np.isnan(q)]
    assert (np.diff(known) >= 0).all()
    assert np.isnan(q[len(known) :]).all()
    ties = np.flatnonzero(np.diff(known) == 0)
    assert (size[ties] >= size[ties + 1]).all()


@pytest.mark.parametrize("column", ["effect", "size", "s", "auc", "detection", "label", "member", "causal"])
@pytest.mark.parametrize("descending", [False, True])
def test_every_heading_sorts_with_missing_figures_last(plain: RunReader, column: str, descending: bool) -> None:
    rows = rows_from(plain)
    signs = members(rows, FeatureSet("x", (int(rows.ids[3]),), (int(rows.ids[5]),), "h"))
    at = listed(rows, signs, Listing(sort=column, descending=descending))
    assert sorted(at) == list(range(len(rows)))
    if column == "member":
        assert signs[at][:2].tolist() == ([1, -1] if descending else [-1, 1])
    elif column not in ("label", "causal"):
        values = rows.column(column)[at]
        there = values[~np.isnan(values)]
        assert (np.diff(there) <= 0).all() if descending else (np.diff(there) >= 0).all()
        assert np.isnan(values[len(there) :]).all()


def test_filters_narrow_the_list_and_combine_with_the_region(plain: RunReader) -> None:
    rows = rows_from(plain)
    nobody = np.zeros(len(rows), np.int64)
    significant = listed(rows, nobody, Listing(significant=True))
    assert (rows.direction[significant] != 0).all()
    assert len(significant) == counts(rows)["significant"]
    region = np.zeros(len(rows), bool)
    region[significant[:3]] = True
    assert set(listed(rows, nobody, Listing(), region)) == set(significant[:3])
    by_id = listed(rows, nobody, Listing(search=f"#{rows.ids[7]}"))
    assert rows.ids[by_id].tolist() == [rows.ids[7]]
    word = listed(rows, nobody, Listing(search="GARDEN"))
    assert len(word)
    assert all("garden" in label.lower() for label in rows.frame["label"][word])
    one = FeatureSet("x", (int(rows.ids[1]),), (), "h")
    assert rows.ids[listed(rows, members(rows, one), Listing(members=True))].tolist() == [rows.ids[1]]


def test_the_plot_draws_tested_features_only_and_says_what_lies_beyond_its_axis(plain: RunReader) -> None:
    rows = rows_from(plain)
    for axis, column in (("effect_size", "size"), ("effect", "effect"), ("s", "s")):
        cloud = cloud_of(rows, axis)
        assert (np.isfinite(cloud.y) == rows.tested).all()
        assert np.allclose(cloud.x[rows.tested], rows.column(column)[rows.tested])
        beyond = rows.column("q") < 10**-HIGHEST
        assert beyond.any(), "the synthetic run has such features"
        assert (cloud.capped == beyond).all()
        assert (cloud.y[beyond] == HIGHEST).all()
        assert f"{beyond.sum()} with q below" in caption(rows, cloud, axis)
        left, right, bottom, top = cloud.whole
        inside = (cloud.x >= left) & (cloud.x <= right) & (cloud.y >= bottom) & (cloud.y <= top)
        assert (inside == rows.tested).all()


def test_q_of_exactly_zero_is_drawn_on_the_edge_not_lost(plain: RunReader) -> None:
    stored = plain.salience("all", "mean").with_columns(q=pl.when(pl.col("q").is_not_null()).then(pl.lit(0.0)))
    rows = rows_of(stored, NOTHING_KNOWN, False)
    cloud = cloud_of(rows, "effect_size")
    assert (cloud.y[rows.tested] == HIGHEST).all()
    assert np.isfinite(cloud.whole).all()
    assert at_smallest_q(rows) == int((rows.direction != 0).sum())


def test_without_any_tested_feature_the_plot_has_a_finite_frame_and_the_table_its_rows(plain: RunReader) -> None:
    nothing = [pl.lit(None, dtype=pl.Float64).alias(name) for name in ("q", "p", "effect_size", "ci_low", "ci_high")]
    rows = rows_of(plain.salience("all", "mean").with_columns(nothing), NOTHING_KNOWN, False)
    cloud = cloud_of(rows, "effect_size")
    assert np.isfinite(cloud.whole).all()
    assert caption(rows, cloud, "effect_size") == ""
    assert counts(rows)["tested"] == 0
    assert set(table_frame(rows, False)["q"]) == {"n/a"}


def test_no_rows_at_all(plain: RunReader) -> None:
    rows = rows_of(plain.salience("domain=nothing", "mean"), NOTHING_KNOWN, True)
    assert len(rows) == 0
    assert len(table_frame(rows, True)) == 0
    assert len(listed(rows, members(rows, None), Listing(search="x"))) == 0
    assert np.isfinite(cloud_of(rows, "s").whole).all()
    assert forest_html(plain.feature_salience(10**6), AppState(run="plain")).startswith("<section")


def test_the_table_writes_figures_of_a_kind_alike_and_missing_ones_as_missing(plain: RunReader) -> None:
    rows = rows_from(plain)
    frame = table_frame(rows, False)
    assert len({len(text.split(".")[1]) for text in frame["effect"] if text != "n/a"}) == 1
    untested = frame[~rows.tested]
    assert set(untested["q"]) == {"n/a"}
    assert set(untested["interval"]) == {"n/a"}
    assert not frame["effect"].str.contains("nan").any()
    assert set(frame["replication"]) == {"✓ yes", "✗ no", "n/a"}
    grey = frame["effect_colour"][rows.direction == 0].unique()
    assert len(grey) == 1, "what is not significant has no colour"
    assert set(frame["effect_colour"][rows.direction > 0]).isdisjoint(frame["effect_colour"][rows.direction < 0])


@pytest.mark.parametrize("decimals", [0, 2, 4])
def test_fixed_decimals_are_those_of_python(decimals: int) -> None:
    values = np.concatenate([np.random.default_rng(0).normal(0, 10.0 ** np.arange(-4, 4), (50, 8)).ravel(), [0.0]])
    expected = [f"{value:+.{decimals}f}".replace("-", "−") for value in values]
    expected = [text if float(text[1:]) else text[1:] for text in expected]
    assert fixed(values, decimals).to_list() == expected
    assert fixed(np.array([np.nan]), decimals).to_list() == [None]


def test_the_download_is_exactly_what_is_listed(plain: RunReader) -> None:
    rows = rows_from(plain)
    one = FeatureSet("x", (int(rows.ids[2]),), (), "h")
    at = listed(rows, members(rows, one), Listing(sort="s", descending=True))[:20]
    text = csv_text(rows, members(rows, one), at, {"run": "r", "slice": "all"})
    back = pl.read_csv(io.StringIO(text))
    assert back["feature_id"].to_list() == rows.ids[at].tolist()
    assert np.allclose(back["s"].cast(pl.Float64), rows.column("s")[at])
    assert back["q"].null_count() == int(np.isnan(rows.column("q")[at]).sum())
    assert set(back["slice"]) == {"all"}


def test_a_label_that_is_a_formula_is_written_as_text(plain: RunReader) -> None:
    rows = rows_from(plain)
    evil = rows.frame.with_columns(label=pl.lit('=HYPERLINK("http://x")'))
    text = csv_text(Rows(evil, 1, 1, False), np.zeros(len(rows), np.int64), np.array([0]), {})
    assert pl.read_csv(io.StringIO(text))["label"][0].startswith("'=")


def test_slices_are_grouped_and_those_with_several_equals_keep_their_value(plain: RunReader) -> None:
    assert in_order(["z=1", "domain=b", "all", "a=2", "split=test", "category=c"]) == [
        "all", "split=test", "domain=b", "category=c", "a=2", "z=1",
    ]  # fmt: skip
    assert value_of("note=a=b") == "a=b"
    assert value_of("all") == "all pairs"


def test_the_forest_shows_every_slice_and_says_where_nothing_was_tested(plain: RunReader) -> None:
    changing = int(plain.sign_changes("mean")["feature_id"][0])
    rows = plain.feature_salience(changing).filter(pooling="mean")
    html = forest_html(rows, AppState(run="plain", slice="split=train"))
    assert html.count("<svg") == rows["q"].is_not_null().sum()
    assert html.count("not tested") == rows["q"].is_null().sum()
    assert 'class="up"' in html
    assert 'class="down"' in html
    assert html.count('aria-current="true"') == 1


def test_sign_changes_are_listed_with_both_slices(plain: RunReader, hostile: RunReader) -> None:
    changes = plain.sign_changes("mean")
    frame = changes_frame(changes)
    assert len(frame) == len(changes) > 0
    assert (frame["size_up"] > 0).all()
    assert (frame["size_down"] < 0).all()
    assert not frame["up"].str.startswith("domain=").any()
    assert len(changes_frame(pl.DataFrame())) == 0
    assert len(changes_frame(hostile.sign_changes("mean"))) > 0


def test_hostile_slice_names_are_text(hostile: RunReader) -> None:
    changing = int(hostile.sign_changes("mean")["feature_id"][0])
    rows = hostile.feature_salience(changing).filter(pooling="mean")
    assert any("<img" in name for name in rows["slice"])
    assert_harmless(forest_html(rows, AppState(run="hostile")))
