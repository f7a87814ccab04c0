"""The page and the Features view as a reviewer uses them."""

from __future__ import annotations

import contextlib
import re
import time
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage

MAP = """() => { for (const m of Bokeh.documents[0]._all_models.values())
    if (m.type === 'Figure' && m.name === 'feature-map') return %s }"""
SELECTED_ROW = ".tabulator-row.tabulator-selected"


def query(page: Page) -> dict[str, str]:
    """The address's parameters."""
    return {key: values[0] for key, values in parse_qs(urlparse(page.url).query, keep_blank_values=True).items()}


def wait_for_query(page: Page, **expected: str | None) -> None:
    """Waits until the address says so; None = the key is absent."""
    page.wait_for_function(
        """expected => { const now = new URLSearchParams(location.search)
        return Object.entries(expected).every(([key, value]) => now.get(key) === value) }""",
        arg=expected,
    )


def cell(page: Page, field: str, row: int = 0) -> str:
    """Text of a cell of the table, by column."""
    return page.locator(f".tabulator-row .tabulator-cell[tabulator-field='{field}']").nth(row).inner_text()


def count(page: Page) -> int:
    """How many features the page says are listed."""
    text = page.get_by_role("status").filter(has_text="features").inner_text()
    found = re.search(r"([\d,]+) of [\d,]+ features", text)
    assert found, text
    return int(found[1].replace(",", ""))


def wait_for_count(page: Page, differs_from: int, seconds: float = 60) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (now := count(page)) != differs_from:
            return now
        page.wait_for_timeout(50)
    raise AssertionError(f"still {differs_from} features")


def drag(page: Page, selector_box: dict[str, float], points: list[tuple[float, float]]) -> None:
    """Drags over shares of a box."""
    places = [
        (selector_box["x"] + x * selector_box["width"], selector_box["y"] + y * selector_box["height"])
        for x, y in points
    ]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def drag_until(page: Page, selector: str, points: list[tuple[float, float]], before: int) -> int:
    """Drags over a part of the page, again while nothing came of it, as a person would: a figure that is still being laid
    out takes no drag. The new number of features listed."""
    for _ in range(6):
        box = page.locator(selector).first.bounding_box()
        assert box
        drag(page, dict(box), points)
        with contextlib.suppress(AssertionError):
            return wait_for_count(page, before, seconds=10)
    raise AssertionError(f"still {before} features after six drags")


def test_it_opens_on_the_table_the_map_and_the_runs_quality(open_page: OpenPage) -> None:
    page = open_page("")
    expect(page.get_by_role("group", name="Quality of this run")).to_contain_text("66.4 %")
    expect(page.get_by_text("No feature selected")).to_be_visible()
    assert query(page) == {"run": "plain"}
    assert page.locator(".tabulator-row").count() > 10
    assert page.evaluate(MAP % "m.renderers.length > 0")
    assert page.title() == "Rewardscope"


def test_a_row_opens_its_card_centres_the_map_and_makes_a_link(open_page: OpenPage) -> None:
    page = open_page()
    feature = cell(page, "feature_id", 2)
    whole = page.evaluate(MAP % "m.x_range.end - m.x_range.start")
    page.locator(".tabulator-row .tabulator-cell[tabulator-field='label']").nth(2).click()
    expect(page.get_by_role("article", name=f"Feature {feature}", exact=True)).to_be_visible()
    wait_for_query(page, f=feature)
    page.wait_for_function(f"whole => ({MAP % 'm.x_range.end - m.x_range.start'})() < whole / 2", arg=whole)
    expect(page.locator(SELECTED_ROW)).to_have_count(1)
    again = open_page("?" + urlparse(page.url).query)
    expect(again.get_by_role("article", name=f"Feature {feature}", exact=True)).to_be_visible()
    expect(again.locator(SELECTED_ROW)).to_contain_text(feature)


def test_search_looks_in_labels_and_contexts_and_the_link_keeps_it(open_page: OpenPage) -> None:
    page = open_page()
    before = count(page)
    page.get_by_label("Search labels and contexts").fill("garden")
    found = wait_for_count(page, before)
    assert 0 < found < before
    wait_for_query(page, q="garden")
    expect(page.get_by_role("link", name="has “garden”")).to_be_visible()
    again = open_page("?" + urlparse(page.url).query)
    assert count(again) == found
    assert again.get_by_label("Search labels and contexts").input_value() == "garden"
    again.get_by_role("link", name="has “garden”").click()
    assert wait_for_count(again, found) == before
    wait_for_query(again, q=None)
    expect(again.get_by_label("Search labels and contexts")).to_have_value("")


def test_no_match_is_a_state_with_a_way_out(open_page: OpenPage) -> None:
    page = open_page("?run=plain&q=nosuchwordatall&range=weight:0~")
    expect(page.get_by_text("No feature passes these filters")).to_be_visible()
    page.get_by_role("link", name="Clear them all").click()
    wait_for_query(page, q=None, range=None)
    expect(page.locator(".tabulator-row").first).to_be_visible()


def test_every_heading_sorts_both_ways(open_page: OpenPage) -> None:
    page = open_page()
    heading = page.locator(".tabulator-col[tabulator-field='weight']")
    heading.click()
    wait_for_query(page, sort="weight", desc="0")
    first = float(cell(page, "weight").replace("−", "-"))
    heading.click()
    wait_for_query(page, sort="weight", desc=None)
    page.wait_for_function(
        """first => { const seen = []; const walk = r => { for (const e of r.querySelectorAll('*')) {
        if (e.getAttribute('tabulator-field') === 'weight' && e.classList.contains('tabulator-cell')) seen.push(e.textContent)
        if (e.shadowRoot) walk(e.shadowRoot) } }; walk(document); return parseFloat(seen[0]) > first }""",
        arg=first,
    )


def test_ranges_are_dragged_or_typed_over_their_histograms(open_page: OpenPage) -> None:
    page = open_page()
    before = count(page)
    low = page.get_by_label("weight at least", exact=True)
    low.fill("0.2")
    low.press("Enter")
    typed = wait_for_count(page, before)
    wait_for_query(page, range="weight:0.2~")
    page.get_by_role("button", name="Clear the range of weight", exact=True).click()
    assert wait_for_count(page, typed) == before
    dragged = drag_until(page, ".column svg", [(0.1, 0.5), (0.5, 0.5)], before)
    assert 0 < dragged < before
    page.wait_for_function("() => /^weight:.+~.+$/.test(new URLSearchParams(location.search).get('range'))")


def test_a_lasso_lists_its_features_and_is_part_of_the_link(open_page: OpenPage) -> None:
    page = open_page()
    before = count(page)
    inside = drag_until(page, ".bk-Figure", [(0.15, 0.1), (0.5, 0.1), (0.5, 0.9), (0.15, 0.9), (0.15, 0.12)], before)
    assert 0 < inside < before
    assert "lasso" in query(page)
    again = open_page("?" + urlparse(page.url).query)
    assert count(again) == inside
    again.get_by_role("link", name="region of the map").click()
    assert wait_for_count(again, inside) == before


def test_contexts_open_their_pair_and_neighbours_their_card(open_page: OpenPage) -> None:
    page = open_page("?run=plain&f=12")
    card = page.get_by_role("article", name="Feature 12", exact=True)
    expect(card.get_by_text("Interval").first).to_be_visible()
    link = card.locator(".near a").first
    other = parse_qs(str(link.get_attribute("href"))[1:])["f"][0]
    link.click()
    expect(page.get_by_role("article", name=f"Feature {other}", exact=True)).to_be_visible()
    page.go_back()
    expect(card).to_be_visible()
    card.get_by_role("link", name="open pair").first.click()
    wait_for_query(page, view="pairs", f="12")
    assert query(page)["p"].startswith("pair-")
    page.go_back()
    expect(card).to_be_visible()
    wait_for_query(page, view=None, f="12")


def test_keys_step_search_help_and_clear(open_page: OpenPage) -> None:
    page = open_page()
    page.keyboard.press("j")
    first = cell(page, "feature_id", 0)
    wait_for_query(page, f=first)
    page.keyboard.press("ArrowDown")
    wait_for_query(page, f=cell(page, "feature_id", 1))
    page.keyboard.press("k")
    wait_for_query(page, f=first)
    page.keyboard.press("/")
    expect(page.get_by_label("Search labels and contexts")).to_be_focused()
    page.keyboard.type("jk")
    expect(page.get_by_label("Search labels and contexts")).to_have_value("jk")
    wait_for_query(page, q="jk", f=first)
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Keyboard")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Escape")
    wait_for_query(page, f=None)


def test_the_jump_box_goes_to_a_feature(open_page: OpenPage) -> None:
    page = open_page()
    box = page.get_by_role("combobox", name="Find a feature or a pair")
    box.fill("#33")
    expect(page.get_by_role("option").first).to_contain_text("#33")
    box.press("Enter")
    expect(page.get_by_role("article", name="Feature 33", exact=True)).to_be_visible()
    wait_for_query(page, f="33")


def test_blurred_text_is_shown_on_request_for_this_session_only(open_page: OpenPage) -> None:
    page = open_page("?run=plain&f=12")
    blurred = page.locator(".rs-blur").first
    expect(blurred).to_be_attached()
    assert "blur(5px)" in blurred.evaluate("node => getComputedStyle(node).filter")
    page.keyboard.press("r")
    page.wait_for_function("() => document.documentElement.classList.contains('rs-revealed')")
    assert blurred.evaluate("node => getComputedStyle(node).filter") == "blur(0px)"
    assert "reveal" not in page.url
    again = open_page("?run=plain&f=12")
    assert "blur(5px)" in again.locator(".rs-blur").first.evaluate("node => getComputedStyle(node).filter")


def test_dark_mode_changes_in_place_and_is_part_of_the_link(open_page: OpenPage) -> None:
    page = open_page("?run=plain&f=12")
    page.get_by_role("button", name="Toggle theme").click()
    wait_for_query(page, dark="1", f="12")
    page.wait_for_function("() => document.documentElement.classList.contains('rs-dark')")
    again = open_page("?run=plain&f=12&dark=1")
    colour = again.get_by_role("article", name="Feature 12", exact=True).evaluate(
        "node => getComputedStyle(node).color"
    )
    assert colour == "rgb(230, 234, 240)"


def test_another_run_opens_without_the_old_selection(open_page: OpenPage) -> None:
    page = open_page("?run=plain&f=12&q=garden")
    page.get_by_role("combobox", name="Run", exact=True).click()
    with page.expect_navigation():
        page.get_by_role("menuitem", name="hostile").click()
    page.wait_for_function("() => window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")
    wait_for_query(page, run="hostile", f=None, q=None)


@pytest.mark.parametrize(
    ("link", "says"),
    [
        ("?run=broken", "build the run again"),
        ("?run=nowhere", "There is no run “nowhere” here"),
        ("?run=plain&f=777777", "This run has no feature 777777"),
        ("?run=plain&range=weight:x~", "was ignored"),
    ],
)
def test_what_cannot_be_shown_is_said(open_page: OpenPage, link: str, says: str) -> None:
    expect(open_page(link).get_by_text(says)).to_be_visible()


def test_dead_features_and_missing_figures_are_their_own_states(open_page: OpenPage) -> None:
    page = open_page("?run=plain&f=9&dead=1")
    card = page.get_by_role("article", name="Feature 9", exact=True)
    expect(card).to_contain_text("never active in this run")
    expect(card).to_contain_text("No histogram: it was never active")
    assert card.locator(".rs-missing").count() >= 2


def injected(page: Page) -> object:
    return page.evaluate("() => window.__injected")


@pytest.mark.parametrize("view", ["features", "pairs"])
def test_no_text_field_of_a_run_can_inject(open_page: OpenPage, view: str) -> None:
    page = open_page(
        f"?run=hostile&view={view}&f=3&map=cluster&q=onerror&pq=onerror&domain=%3Cimg%20src=x%20onerror=1%3E"
    )
    page.get_by_role("button", name="About this run").click()
    expect(page.get_by_role("dialog")).to_contain_text("onerror")
    page.keyboard.press("Escape")
    page.get_by_role("combobox", name="Find a feature or a pair").fill("onerror")
    expect(page.get_by_role("option").first).to_be_visible()
    page.get_by_role("combobox", name="Find a feature or a pair").press("Escape")
    if view == "features":
        page.get_by_label("all contexts").click()
        page.get_by_role("combobox", name="Cluster", exact=True).click()
        expect(page.get_by_role("menuitem").nth(1)).to_contain_text("onerror")
        page.keyboard.press("Escape")
        box = page.locator(".bk-Figure").first.bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # the tooltip of a mark
    page.keyboard.press("r")
    page.wait_for_timeout(300)
    assert injected(page) is None
    assert page.locator("img[src='x']").count() == 0


def test_the_second_line_stops_what_escaping_would_miss(open_page: OpenPage) -> None:
    page = open_page()
    page.evaluate(
        """() => { const d = document.createElement('div'); document.body.append(d)
        d.innerHTML = '<img src="data:," onerror="window.__injected = 1">' }"""
    )
    page.wait_for_timeout(300)
    assert injected(page) is None
    blocked = page.evaluate("() => fetch('http://localhost:1/').then(() => 'went', () => 'blocked')")
    assert blocked == "blocked"
    open_page.problems.clear()  # type: ignore[attr-defined]  # the browser says what it stopped


@pytest.mark.parametrize("width", [1024, 2560])
def test_it_fits_small_and_large_screens(open_page: OpenPage, width: int) -> None:
    page = open_page("?run=plain&f=12", width=width, height=768 if width == 1024 else 1400)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    for name in ("Search labels and contexts", "weight at least"):
        expect(page.get_by_label(name, exact=True)).to_be_in_viewport()
    expect(page.get_by_role("article", name="Feature 12", exact=True)).to_be_in_viewport()
    expect(page.locator(".tabulator-row").nth(3)).to_be_in_viewport()


def test_every_input_and_button_has_a_name_and_no_text_is_tiny(open_page: OpenPage) -> None:
    page = open_page("?run=plain&f=12")
    for role in ("button", "textbox", "combobox", "checkbox", "searchbox"):
        for control in page.get_by_role(role).all():  # type: ignore[arg-type]
            if control.is_visible():
                snapshot = control.aria_snapshot()
                assert '"' in snapshot or snapshot.strip() in ("- combobox",), snapshot
    tiny = page.evaluate(
        """() => { const found = []; const walk = root => { for (const e of root.querySelectorAll('*')) {
            if (e.shadowRoot) walk(e.shadowRoot)
            const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
            if (own && e.getClientRects().length && parseFloat(getComputedStyle(e).fontSize) < 11.9
                && !e.matches('style, script, legend, legend *, .arrow')) found.push(e.tagName + ' ' + e.textContent.slice(0, 30))
        } }; walk(document.body); return found }"""
    )
    assert tiny == []


def test_the_shipped_demo_run_opens_searches_and_shows_a_card(open_page: OpenPage, demo: str) -> None:
    page = open_page(demo)
    before = count(page)
    assert before > 1000
    page.keyboard.press("j")
    expect(page.get_by_role("article")).to_contain_text("Strongest")
    page.get_by_label("Search labels and contexts").fill("sorry")
    assert 0 < wait_for_count(page, before) < before
    expect(page.get_by_role("group", name="Quality of this run")).to_contain_text("sums exact")
