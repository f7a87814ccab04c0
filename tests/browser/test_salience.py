"""The Salience view as a reviewer uses it."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import duckdb
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_features import SELECTED_ROW, cell, drag, query, wait_for_query
from tests.synthetic_run import write_synthetic_run

VOLCANO = """() => { for (const m of Bokeh.documents[0]._all_models.values())
    if (m.type === 'Figure' && m.name === 'volcano') return %s }"""
MARKED = VOLCANO % "m.renderers.map(r => r.data_source.data).find(d => d && 'says' in d).id.length"
VIEW = "?run=plain&view=salience"


def status(page: Page, words: str) -> str:
    return page.get_by_role("status").filter(has_text=words).first.inner_text()


def plot_box(page: Page) -> dict[str, float]:
    """Where the plot's frame is on the page."""
    page.wait_for_function(f"() => ({MARKED})() > 0")
    inner = page.evaluate(VOLCANO % "[m.inner_width, m.inner_height]")
    canvas = page.locator("div.bk-Canvas").first.bounding_box()
    assert canvas
    left = page.evaluate(VOLCANO % "Bokeh.index.find_one_by_id(m.id).frame.bbox.x")
    top = page.evaluate(VOLCANO % "Bokeh.index.find_one_by_id(m.id).frame.bbox.y")
    return {"x": canvas["x"] + left, "y": canvas["y"] + top, "width": inner[0], "height": inner[1]}


def pick(page: Page, menu: str, option: str) -> None:
    page.get_by_label(menu).first.click()
    page.get_by_role("menuitem").filter(has_text=option).first.click()


def test_it_opens_on_plot_counts_table_and_the_default_set(open_page: OpenPage) -> None:
    page = open_page(VIEW)
    assert page.evaluate(MARKED) > 50
    assert "significant at q ≤ 0.05" in status(page, "tested of")
    assert "in S+" in status(page, "in S+")
    assert cell(page, "q") != "n/a"
    expect(page.get_by_text("No feature selected", exact=True)).to_be_visible()


def test_a_row_shows_the_evidence_and_links_on_to_features_and_pairs(open_page: OpenPage) -> None:
    page = open_page(VIEW)
    feature = cell(page, "feature_id", 3)
    page.locator(".tabulator-row .tabulator-cell[tabulator-field='label']").nth(3).click()
    card = page.get_by_role("article", name=f"Salience of feature {feature}", exact=True)
    expect(card).to_contain_text("Effect size by slice")
    expect(card).to_contain_text("Pairs of this slice where it differs most")
    wait_for_query(page, f=feature)
    expect(page.locator(SELECTED_ROW)).to_contain_text(feature)
    card.locator(".pairs a").first.click()
    wait_for_query(page, view="pairs", f=feature)
    page.go_back()
    wait_for_query(page, view="salience")
    card.get_by_role("link", name="open its card").click()
    expect(page.get_by_role("article", name=f"Feature {feature}", exact=True)).to_be_visible()


def test_keys_step_through_the_list_and_change_views(open_page: OpenPage) -> None:
    page = open_page("?run=plain")
    page.keyboard.press("3")
    wait_for_query(page, view="salience")
    expect(page.get_by_text("tested of")).to_be_visible()
    page.keyboard.press("j")
    page.keyboard.press("j")
    wait_for_query(page, f=cell(page, "feature_id", 1))


def test_the_bootstrap_interval_comes_a_moment_later(open_page: OpenPage) -> None:
    page = open_page(VIEW + "&f=1")
    row = page.locator(".evidence dl div").filter(has_text="bootstrap")
    expect(row).to_contain_text("[")


def test_slices_and_poolings_change_the_plot_and_the_link(open_page: OpenPage) -> None:
    page = open_page(VIEW)
    before = status(page, "tested of")
    pick(page, "Slice", "domain: chat")
    wait_for_query(page, slice="domain=chat")
    page.wait_for_function("old => ![...document.querySelectorAll('*')].some(e => e.textContent === old)", arg=before)
    expect(page.get_by_role("link", name="slice domain: chat")).to_be_visible()
    pick(page, "Pooling", "boundary sum")
    pick(page, "Axis", "SAFER")
    wait_for_query(page, pool="boundary_sum", axis="s")
    page.wait_for_function(VOLCANO % "m.below[0].axis_label.includes('SAFER')")
    page.get_by_label("at equal length").first.click()
    wait_for_query(page, len="1")
    page.wait_for_function(VOLCANO % "m.left[0].axis_label.includes('equal length')")
    again = open_page("?" + urlparse(page.url).query)
    assert "at equal length" in status(again, "tested of")
    again.get_by_role("link", name="slice domain: chat").click()
    wait_for_query(again, slice=None)


def test_a_region_of_the_plot_filters_the_table_and_a_dot_opens_its_feature(open_page: OpenPage) -> None:
    page = open_page(VIEW)
    everything = status(page, "listed").split("\n")[0]
    box = plot_box(page)
    drag(page, box, [(0.55, 0.02), (0.98, 0.9)])
    page.get_by_text("in the region").wait_for()
    assert cell(page, "size").startswith("+")
    page.get_by_role("button", name="Clear region").click()
    expect(page.get_by_role("status").filter(has_text="listed").first).to_contain_text(everything)
    place = page.evaluate(
        VOLCANO
        % """(() => { const d = m.renderers.map(r => r.data_source.data).find(d => d && 'says' in d)
        const i = [...d.x].indexOf(Math.max(...d.x)), x = m.x_range, y = m.y_range
        return [d.id[i], (d.x[i] - x.start) / (x.end - x.start), (y.end - d.y[i]) / (y.end - y.start)] })()"""
    )
    page.mouse.click(box["x"] + place[1] * box["width"], box["y"] + place[2] * box["height"])
    wait_for_query(page, f=str(place[0]))


def test_a_set_is_picked_by_hand_saved_and_opened_again(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(VIEW)
    page.keyboard.press("j")
    feature = cell(page, "feature_id")
    expect(page.get_by_text(f"acts on feature {feature}")).to_be_visible()
    page.keyboard.press("0")
    page.keyboard.press("+")
    expect(page.get_by_text("unsaved changes", exact=True)).to_be_visible()
    expect(page.locator(SELECTED_ROW)).to_contain_text("S+")
    page.keyboard.press("1")
    wait_for_query(page, view=None)
    page.keyboard.press("3")
    expect(page.get_by_text("unsaved changes", exact=True)).to_be_visible()
    page.get_by_role("button", name="Make, save").click()
    page.get_by_label("Name", exact=True).fill("by hand")
    page.get_by_label("Name", exact=True).press("Tab")
    page.get_by_role("button", name="Save as a new version").click()
    expect(page.get_by_text("Saved as by hand, version 1.")).to_be_visible()
    wait_for_query(page, set="by hand")
    expect(page.get_by_text("unsaved changes", exact=True)).to_have_count(0)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export (JSON)").click()
    download.value.save_as(tmp_path / "set.json")
    facts = json.loads((tmp_path / "set.json").read_text(encoding="utf-8"))
    assert int(feature) in facts["s_plus"]
    assert (facts["name"], facts["version"], facts["how"]["method"]) == ("by hand", 1, "hand")
    again = open_page("?" + urlparse(page.url).query)
    expect(again.locator(SELECTED_ROW)).to_contain_text("S+")
    again.get_by_role("button", name="− to S−").click()
    expect(again.locator(SELECTED_ROW)).to_contain_text("S−")
    again.get_by_role("button", name="Drop changes").click()
    expect(again.locator(SELECTED_ROW)).to_contain_text("S+")


def test_thresholds_make_a_set_and_a_file_brings_one(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(VIEW)
    page.get_by_role("button", name="Make, save").click()
    page.get_by_role("button", name="Make from ratings").click()
    expect(page.get_by_role("alert").filter(has_text="rewardscope label")).to_be_visible()
    page.get_by_role("button", name="Make from thresholds").click()
    expect(page.get_by_text("not saved yet")).to_be_visible()
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps({"s_plus": [1, 2, 3], "s_minus": [4]}), encoding="utf-8")
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Import a set (JSON)").click()
    chooser.value.set_files(str(file))
    expect(page.get_by_text("3 features in S+ and 1 in S−, not saved yet.")).to_be_visible()


def test_sign_changes_and_the_download_of_what_is_listed(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(VIEW)
    everything = status(page, "listed").split(" of ")[0]
    page.get_by_label("significant", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="listed").first).not_to_contain_text(everything + " of")
    listed = int(status(page, "listed").split(" of ")[0].replace(",", ""))
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    download.value.save_as(tmp_path / "rows.csv")
    rows = list(csv.DictReader((tmp_path / "rows.csv").open(encoding="utf-8")))
    assert len(rows) == listed
    assert all(float(row["q"]) <= 0.05 for row in rows)
    page.get_by_role("button", name="Sign changes").click()
    page.get_by_text("more in chosen where").wait_for()
    page.locator(".tabulator-row .tabulator-cell[tabulator-field='size_up']:visible").first.click()
    page.wait_for_function("() => new URLSearchParams(location.search).has('f')")
    expect(page.locator(".forest svg.up").first).to_be_visible()
    expect(page.locator(".forest svg.down").first).to_be_visible()


@pytest.fixture
def without_salience(runs_folder: Path) -> Iterator[str]:
    """A run as an older version would have built it."""
    folder = write_synthetic_run(runs_folder / "older", features=30, pairs=10)
    with duckdb.connect(str(folder / "run-synthetic.duckdb")) as db:
        db.execute("DELETE FROM salience")
    os.utime(folder / "manifest.json", (1, 1))
    yield "older"
    shutil.rmtree(folder)


def test_a_run_without_salience_says_what_to_do(open_page: OpenPage, without_salience: str) -> None:
    page = open_page(f"?run={without_salience}&view=salience&dark=1")
    expect(page.get_by_text("Salience was not computed for this run")).to_be_visible()
    expect(page.get_by_text("rewardscope build CONFIG.yaml")).to_be_visible()


def test_hostile_text_in_slices_labels_and_sets_runs_nowhere(open_page: OpenPage) -> None:
    page = open_page("?run=hostile&view=salience&f=1")
    pick(page, "Slice", "<img")
    page.wait_for_function("() => (new URLSearchParams(location.search).get('slice') ?? '').includes('<img')")
    box = plot_box(page)
    for share in (0.2, 0.4, 0.6, 0.8):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.97 * box["height"])
    page.get_by_role("button", name="Sign changes").click()
    page.get_by_role("button", name="Make, save").click()
    page.get_by_label("Name", exact=True).fill('<img src=x onerror="window.__injected=5">')
    page.get_by_label("Name", exact=True).press("Tab")
    page.get_by_role("button", name="Save as a new version").click()
    page.get_by_text("Saved as <img").wait_for()
    assert page.evaluate("() => window.__injected") is None
    assert query(page)["set"].startswith("<img")


def test_it_fits_a_large_and_a_small_window(open_page: OpenPage) -> None:
    for width, height in ((1280, 800), (2560, 1440)):
        page = open_page(VIEW + "&f=1", width=width, height=height)
        page.wait_for_function(f"() => ({MARKED})() > 0")
        for part in (".tabulator-footer", "div.bk-Canvas", ".evidence"):
            box = page.locator(part).first.bounding_box()
            assert box
            assert box["x"] + box["width"] <= width + 1
            assert box["y"] < height
        assert page.evaluate("document.documentElement.scrollHeight <= window.innerHeight")
