"""The run's quality, in short and in full."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import polars as pl

from core.store.reader import RunReader
from dashboard.parts.chips import chips_html, notices_html, rail_html
from dashboard.parts.histogram import histogram_svg
from dashboard.parts.jump import find_anything
from dashboard.parts.run_quality import about_html, accuracy_figure, strip_html
from dashboard.state import AppState
from tests.dashboard.conftest import assert_harmless
from tests.synthetic_run import write_synthetic_run


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_the_strip_shows_accuracy_with_interval_baselines_and_health(plain: RunReader) -> None:
    text = words(strip_html(plain))
    for part in (
        "150 features",
        "40",
        "20 prompts",
        "66.4 %",
        "61.0–72.0 %",
        "n = 8",
        "43.5 %",
        "69.9 %",
        "0.310",
        "✓ sums exact",
    ):
        assert part in text


def test_an_ordinary_reward_models_accuracy_stands_first(tmp_path: Path) -> None:
    folder = write_synthetic_run(tmp_path / "run", features=60, pairs=40)
    with RunReader.open(folder) as reader:
        database = folder / reader.manifest.database
        assert "Reward model, held-out" not in words(strip_html(reader))
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            "INSERT INTO evaluation VALUES ('reward-model held-out', 'all', 'accuracy', 0.553, 0.51, 0.596, 8, 'its own rewards')"
        )
    with RunReader.open(folder) as reader:
        text = words(strip_html(reader))
    assert "Reward model, held-out 55.3 % 51.0–59.6 %; next: head on features Held-out accuracy 66.4 %" in text


def test_the_sheet_lists_every_figure_and_says_what_is_missing(plain: RunReader) -> None:
    html = about_html(plain)
    for row in plain.evaluation.iter_rows(named=True):
        assert row["metric"].replace("_", " ") in html
    assert "n/a" in words(html)


def test_accuracy_is_drawn_for_each_domain_with_an_interval_where_there_is_one(plain: RunReader) -> None:
    svg = accuracy_figure(plain.evaluation)
    assert svg.count("<circle") == 2
    assert svg.count('class="ci"') == 1
    assert "n/a" in accuracy_figure(plain.evaluation.head(0))
    unknown = plain.evaluation.with_columns(pl.lit(None, pl.Float64).alias("value"))
    assert "not computed" in accuracy_figure(unknown)


def test_hostile_text_stays_text(hostile: RunReader) -> None:
    state = AppState(
        run=hostile.name, feature=3, pair=hostile.table("pair")["pair_id"][0], search="<img src=x onerror=1>"
    )
    state.notice("<script>alert(1)</script>")
    for html in (
        strip_html(hostile),
        about_html(hostile),
        chips_html(state, hostile),
        notices_html(state),
        rail_html(state),
    ):
        assert_harmless(html)
    state.view = "pairs"
    state.domain = "<img src=x onerror=1>"
    assert_harmless(chips_html(state, hostile))


def test_the_jump_box_finds_features_by_id_and_label_and_pairs_by_id_and_text(plain: RunReader) -> None:
    state = AppState(run="plain")
    assert find_anything(plain, state, "#17")[0]["href"] == "?run=plain&view=features&f=17"
    kinds = {result["kind"].split()[0] for result in find_anything(plain, state, "bread")}
    assert "pair" in kinds
    assert find_anything(plain, state, "pair-003")[-1]["href"] == "?run=plain&view=pairs&p=pair-003"
    label = plain.labels()[12].split("”")[0].strip("“")
    assert any(result["kind"] == "#12" or label in result["text"] for result in find_anything(plain, state, label))
    assert find_anything(plain, state, "zzzzzz")[0]["href"] == ""


def test_histogram_marks_zero_and_cuts_inside_only() -> None:
    import numpy as np

    svg = histogram_svg(np.linspace(-1, 1, 5), np.array([1, 0, 3, 2]), what="test", cuts=(0.5, 3.0))
    assert svg.count("<rect") == 3
    assert svg.count('class="cut"') == 1
    assert svg.count('class="zero"') == 1
    assert "tallest bar 3" in svg
