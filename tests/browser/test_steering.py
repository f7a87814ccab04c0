"""The Steering view as a reviewer uses it: sliders dragged and typed, what they do, presets, files, links."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import Locator, Page, expect

from core.evaluate.specificity import specificity
from core.store.reader import RunReader
from dashboard import steering
from tests.browser.conftest import OpenPage
from tests.browser.test_pairs import TINY, wait_for_query
from tests.synthetic_run import write_synthetic_run

STEER = "?run=steer&view=steering"


@pytest.fixture(scope="module", autouse=True)
def steered_runs(runs_folder: Path) -> None:
    """Runs with enough pairs for slices; older than the others, so that those stay the ones a page opens by itself."""
    for name, options in {
        "steer": {"features": 60, "pairs": 150},
        "steer-hostile": {"features": 40, "pairs": 90, "hostile": True},
    }.items():
        folder = write_synthetic_run(runs_folder / name, **options)  # type: ignore[arg-type]
        os.utime(folder / "manifest.json", (1e9, 1e9))


@pytest.fixture
def reader(runs_folder: Path) -> RunReader:
    return RunReader.open(runs_folder / "steer")


def open_steering(open_page: OpenPage, query: str = STEER, **size: Any) -> Page:
    page = open_page(query, **size)
    expect(page.locator(".effect[data-move] path.after")).to_have_count(2)
    return page


def add_salient(page: Page) -> None:
    page.get_by_role("button", name="Add most salient").click()
    expect(page.get_by_role("slider")).to_have_count(5)


def slider(page: Page, number: int = 0) -> Locator:
    return page.get_by_role("slider").nth(number)


def box_of(page: Page, number: int = 0) -> Locator:
    return page.locator(".row input[type='number']").nth(number)


def steered(page: Page) -> dict[int, float]:
    """The steering in the address bar."""
    text = parse_qs(urlparse(page.url).query).get("steer", [""])[0]
    return {int(one.split(":")[0]): float(one.split(":")[1]) for one in text.split(",") if one}


def settled(page: Page) -> None:
    """Waits until every move is answered, drawn and in the address bar."""
    page.wait_for_function(
        """() => { const find = (root, selector) => { const hit = root.querySelector(selector); if (hit) return hit
            for (const one of root.querySelectorAll('*')) if (one.shadowRoot) { const deep = find(one.shadowRoot, selector); if (deep) return deep }
            return null }
        const { sent, answered } = find(document, 'section.steer').dataset
        if ((sent ?? '0') !== (answered ?? '0')) return false
        const values = [...find(document, 'section.steer').querySelectorAll('.row')].map((row) => `${row.dataset.feature}:${row.querySelector('[type=number]').value}`)
        return (new URLSearchParams(location.search).get('steer') ?? '') === values.join(',') }"""
    )


def assert_shows(page: Page, reader: RunReader) -> None:
    """The figures on the page are the engine's for the steering in the address bar."""
    data = steering.of_run(reader)
    after = data.steered.another().rewards(steered(page))
    wanted = parse_qs(urlparse(page.url).query).get("target", [steering.concepts(reader)[0]])[0]
    result = specificity(data, data.rewards, after, wanted)
    expect(page.locator(".counts")).to_contain_text(f"{len(result.fixed)} fixed")
    expect(page.locator(".counts")).to_contain_text(f"{len(result.broken)} broken")
    expect(page.locator(".flips li")).to_have_count(len(result.fixed) + len(result.broken))
    assert result.accuracy.after is not None
    row = page.locator(".beside tr", has=page.get_by_role("rowheader", name="after", exact=True)).last
    expect(row.locator("b").last).to_have_text(f"{100 * result.accuracy.after:.1f} %")


def test_it_explains_itself_and_offers_features(open_page: OpenPage) -> None:
    page = open_steering(open_page)
    expect(page.get_by_text("Steering multiplies the head weight of a feature")).to_be_visible()
    expect(page.get_by_text(re.compile("Nothing steered is written into the run; other views"))).to_be_visible()
    offer = page.locator("button.offer").first
    feature = str(offer.locator(".id").text_content()).removeprefix("#")
    offer.click()
    expect(slider(page)).to_be_focused()
    wait_for_query(page, steer=f"{feature}:1")
    expect(page.get_by_text("Nothing moves")).to_be_visible()
    expect(page.locator(".rs-steered")).to_have_count(0)
    page.get_by_role("combobox", name="Add a feature by id or label").fill(feature)
    page.locator(".found [role=option]").first.click()
    expect(page.get_by_text("That is on the sliders already.")).to_be_visible()


def test_dragging_moves_everything_and_the_link_follows_at_rest(open_page: OpenPage, reader: RunReader) -> None:
    page = open_steering(open_page)
    add_salient(page)
    drawing = page.locator(".plots path.after").first
    before, share = drawing.get_attribute("d"), None
    for _ in range(6):  # a page that is still being laid out takes no drag
        box = slider(page).bounding_box()
        assert box
        y = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 8 + 0.6 * (box["width"] - 16), y)
        page.mouse.down()
        page.mouse.move(box["x"] + 8 + 0.3 * (box["width"] - 16), y, steps=8)
        page.mouse.move(box["x"] + 12, y, steps=8)
        page.mouse.up()
        settled(page)
        share = next(iter(steered(page).values()))
        if share != 1:
            break
    assert share is not None
    assert -2 <= share < -1
    expect(box_of(page)).to_have_value(f"{share:g}")
    expect(page.locator(".rs-steered")).to_have_text("Steered: 1 feature")
    assert drawing.get_attribute("d") != before
    assert_shows(page, reader)
    page.locator("body").press("1")
    expect(page.get_by_label("Search labels and contexts")).to_be_visible()
    expect(page.locator(".rs-steered")).to_be_visible()
    page.get_by_role("link", name="reset steering").click()
    expect(page.locator(".rs-steered")).to_have_count(0)


def test_moves_never_queue_the_newest_wins(open_page: OpenPage, reader: RunReader) -> None:
    page = open_steering(open_page)
    add_salient(page)
    settled(page)
    slider(page).evaluate(
        """(node) => { for (let i = 0; i < 200; i++) { node.value = String(-2 + 5 * i / 199); node.dispatchEvent(new Event('input', { bubbles: true })) } }"""
    )
    expect(page.locator(".steer[data-answered='2']")).to_have_count(1)  # the first, then the newest of 199
    expect(page.locator(".effect[data-move='2']")).to_have_count(1)
    settled(page)
    assert next(iter(steered(page).values())) == 3
    expect(page.locator(".steer")).to_have_attribute("data-sent", "2")
    assert_shows(page, reader)


def test_a_link_clicked_in_the_middle_of_a_move_takes_it_along(open_page: OpenPage) -> None:
    page = open_steering(open_page)
    add_salient(page)
    settled(page)
    feature = next(iter(steered(page)))
    slider(page).evaluate(
        """(node, href) => { node.value = "2.5"; node.dispatchEvent(new Event('input', { bubbles: true }))
        node.getRootNode().querySelector(`a[href*='f=${href}']`).click() }""",
        str(feature),
    )
    wait_for_query(page, view="features", f=str(feature))
    assert steered(page)[feature] == 2.5
    page.get_by_role("link", name="Steering").first.click()
    expect(box_of(page)).to_have_value("2.5")


def test_keys_numbers_reset_and_remove(open_page: OpenPage, reader: RunReader) -> None:
    page = open_steering(open_page)
    add_salient(page)
    first, second = slider(page), slider(page, 1)
    first.focus()
    for key, value in (("ArrowRight", "1.05"), ("PageUp", "1.55"), ("End", "3"), ("Home", "-2"), ("PageUp", "-1.5")):
        first.press(key)
        expect(box_of(page)).to_have_value(value)
    assert re.fullmatch(r"-1.5 times, weight [+−]\S+ → [+−]\S+", str(first.get_attribute("aria-valuetext")))
    settled(page)
    box_of(page, 1).fill("-40")
    settled(page)
    assert list(steered(page).values())[:2] == [-1.5, -40]
    expect(second).to_have_value("-2")
    expect(page.locator(".row").nth(1)).to_contain_text("beyond the slider")
    box_of(page, 1).fill("1000")
    expect(box_of(page, 1)).to_have_attribute("aria-invalid", "true")
    box_of(page, 1).blur()
    expect(box_of(page, 1)).to_have_value("-40")
    assert_shows(page, reader)
    first.focus()
    first.press("j")  # also from a slider: the first pair that changed sides
    pair = page.locator(".flips li").first.get_attribute("data-pair")
    expect(page.locator(".flips li.now")).to_have_attribute("data-pair", str(pair))
    wait_for_query(page, p=str(pair))
    page.get_by_role("button", name="Reset feature").first.click()
    expect(box_of(page)).to_have_value("1")
    gone = list(steered(page))[1]
    second.focus()
    second.press("Delete")
    expect(page.get_by_role("slider")).to_have_count(4)
    settled(page)
    assert gone not in steered(page)
    page.get_by_role("button", name="Remove all").click()
    expect(page.get_by_role("slider")).to_have_count(0)
    wait_for_query(page, steer=None)


def test_presets_files_and_links_bring_the_same_steering_back(open_page: OpenPage, reader: RunReader) -> None:
    page = open_steering(open_page, f"{STEER}&steer=1:2.5,4:0,7:-1")
    headline = page.locator(".headline").text_content()
    page.get_by_role("textbox", name="Name of the preset").fill("strict")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Saved “strict”, version 1.")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="SARM file").click()
    assert json.loads(download.value.path().read_text()) == {"1": ["*", 2.5], "4": ["*", 0], "7": ["*", -1]}
    page.get_by_role("button", name="Remove all").click()
    expect(page.get_by_text("Nothing moves")).to_be_visible()
    page.get_by_role("combobox", name="Open a preset").select_option(index=1)
    expect(page.locator(".headline")).to_have_text(str(headline))
    wait_for_query(page, steer="1:2.5,4:0,7:-1")
    assert_shows(page, reader)
    again = open_steering(open_page, "?" + urlparse(page.url).query)
    expect(again.locator(".headline")).to_have_text(str(headline))
    mixed = {"name": "mixed.json", "mimeType": "application/json", "buffer": b'{"3": ["*", 0.25], "5": ["+", 2]}'}
    again.get_by_label("Import a steering (JSON)").set_input_files(mixed)  # type: ignore[arg-type]
    wait_for_query(again, steer="3:0.25")
    expect(again.get_by_text("cannot change any ranking")).to_be_visible()
    again.get_by_label("Import a steering (JSON)").set_input_files({**mixed, "buffer": b"[1]"})  # type: ignore[arg-type]
    expect(again.get_by_text("is not a steering")).to_be_visible()
    assert steered(again) == {3: 0.25}


def test_features_are_steered_from_anywhere(open_page: OpenPage) -> None:
    page = open_page("?run=steer&f=4&steer=1:2.5")
    page.get_by_role("article", name="Feature 4", exact=True).get_by_role("link", name="Steer").click()
    expect(page.get_by_role("slider")).to_have_count(2)
    settled(page)
    assert steered(page) == {1: 2.5, 4: 1}
    page.locator(".row").first.get_by_role("button", name="Remove").click()
    settled(page)
    page.locator("body").press("3")
    salience = page.get_by_role("article", name="Salience of feature 4", exact=True)
    expect(salience.get_by_role("link", name="Steer")).to_be_visible()
    page.locator("body").press("2")
    page.locator(
        "tr.feature a.open", has_text="steer"
    ).first.click()  # drawn when feature 1 was steered: it must not return
    expect(page.get_by_role("slider")).to_have_count(2)
    settled(page)
    assert 1 not in steered(page)
    assert steered(page)[4] == 1


def test_another_target_and_a_suggestion(open_page: OpenPage, reader: RunReader) -> None:
    page = open_steering(open_page)
    other = steering.concepts(reader)[1]
    page.get_by_role("combobox", name="Target").click()
    page.get_by_role("menuitem").nth(1).click()
    wait_for_query(page, target=other)
    expect(page.locator(".plots .title").first).to_have_text(f"Target: chosen answers of {other}")
    page.get_by_role("button", name="Suggest").click()
    expect(page.get_by_text(f"Suggested for {other}")).to_be_visible()
    settled(page)
    assert steered(page)
    assert_shows(page, reader)


def test_no_text_of_the_run_can_inject(open_page: OpenPage) -> None:
    page = open_steering(open_page, "?run=steer-hostile&view=steering")
    add_salient(page)
    expect(page.locator(".name .label", has_text="onerror").first).to_be_visible()
    expect(page.locator(".plots .title").first).to_contain_text("onerror")
    box_of(page).fill("-60")
    expect(page.locator(".flips li").first).to_contain_text("onerror")
    page.get_by_role("combobox", name="Add a feature by id or label").fill("onerror")
    expect(page.locator(".found [role=option]").first).to_contain_text("onerror")
    page.get_by_role("textbox", name="Name of the preset").fill("<img src=x onerror=window.__injected=1>")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Saved “<img")).to_be_visible()
    settled(page)
    assert page.evaluate("() => window.__injected") is None
    assert page.locator("img[src='x']").count() == 0


@pytest.mark.parametrize(("width", "height"), [(1024, 768), (1280, 800), (2560, 1440)])
def test_it_fits_small_and_large_screens(open_page: OpenPage, width: int, height: int) -> None:
    page = open_steering(open_page, f"{STEER}&steer=1:2.5,4:0", width=width, height=height)
    for part in (
        slider(page),
        page.locator(".plots"),
        page.locator(".headline"),
        page.get_by_role("button", name="Copy link"),
    ):
        expect(part).to_be_in_viewport()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    for role in ("button", "textbox", "combobox", "slider", "spinbutton", "img", "tab"):
        for control in page.get_by_role(role).all():
            if control.is_visible():
                assert '"' in control.aria_snapshot(), control.aria_snapshot()
    assert page.evaluate(TINY) == []


def test_dragging_leaves_no_models_behind(open_page: OpenPage) -> None:
    page = open_steering(open_page, f"{STEER}&steer=1:1,4:1")
    count = "() => Bokeh.documents[0]._all_models.size"
    slider(page).focus()
    slider(page).press("ArrowRight")
    settled(page)
    before = page.evaluate(count)
    for _ in range(12):
        slider(page).press("PageDown")
        slider(page).press("ArrowRight")
    settled(page)
    assert page.evaluate(count) == before
