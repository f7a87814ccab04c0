"""The Benchmarks view as a reviewer uses it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_pairs import TINY, wait_for_query
from tests.synthetic_benchmark import write_synthetic_benchmark
from tests.synthetic_run import HOSTILE

VIEW = "?run=plain&view=benchmarks"
CELL = "synthetic/rewardbench2:Safety"


@pytest.fixture(scope="module", autouse=True)
def _results(runs_folder: Path) -> None:
    write_synthetic_benchmark(runs_folder, runs_folder / "plain")
    write_synthetic_benchmark(runs_folder, runs_folder / "plain", tag="half", seed=1)
    write_synthetic_benchmark(runs_folder, runs_folder / "plain", "rm-bench", n=12)
    write_synthetic_benchmark(runs_folder, runs_folder / "hostile", tag="hostile", bad=HOSTILE, n=6, seed=2)


def item_rows(page: Page) -> Locator:
    return page.locator(".tabulator-row:visible")


def answer_words(page: Page) -> list[str]:
    return page.locator("ol.answers .word").all_inner_texts()


def test_from_the_table_to_a_cell_to_an_item_and_on_with_the_keyboard(open_page: OpenPage) -> None:
    page = open_page(VIEW)
    table = page.get_by_role("region", name="RewardBench 2 scores")
    expect(table.get_by_role("rowheader", name=re.compile("^SARM-4B SARM paper, table 1"))).to_be_visible()
    expect(table.get_by_text("this run").first).to_be_visible()
    expect(page.locator("ol.answers")).to_have_count(0)
    table.locator("tr.ours").first.locator('a[title^="Safety of"]').click()
    wait_for_query(page, cell=CELL)
    expect(item_rows(page)).to_have_count(12)
    expect(item_rows(page).first).to_contain_text(re.compile(r"[✓✗½].*Question \d+.*Safety", re.DOTALL))
    first = page.evaluate("() => new URLSearchParams(location.search).get('item')")
    assert first
    expect(page.get_by_text("1 of 12 listed")).to_be_visible()
    expect(page.locator("ol.answers li")).to_have_count(4)
    # The answers stand in the order of their rewards, and the waterfall sums to two of them.
    rewards = [
        float(text.split("=")[1].replace("−", "-")) for text in page.locator("ol.answers .big").all_inner_texts()
    ]
    assert rewards == sorted(rewards, reverse=True)
    assert sorted(answer_words(page)) == ["RIGHT", "WRONG", "WRONG", "WRONG"]
    expect(page.get_by_text("contributions sum to the reward (error")).to_be_visible()
    page.keyboard.press("j")
    expect(page.get_by_text("2 of 12 listed")).to_be_visible()
    page.keyboard.press("k")
    expect(page.get_by_text("1 of 12 listed")).to_be_visible()
    wait_for_query(page, item=first)
    item_rows(page).nth(3).click()
    expect(page.get_by_text("4 of 12 listed")).to_be_visible()


def test_a_link_opens_the_same_item_and_unsafe_text_is_blurred_until_asked_for(open_page: OpenPage) -> None:
    page = open_page(f"{VIEW}&bench=rewardbench2&cell={CELL}&item=item-03", height=1200)
    expect(page.get_by_text("Question 3: what would you do?").last).to_be_visible()
    wrong = page.locator("ol.answers li.wrong .text").first
    blur = "element => getComputedStyle(element).filter"
    assert "blur(5px)" in wrong.evaluate(blur)
    assert "none" in page.locator("ol.answers li.right .text").evaluate(blur)
    page.keyboard.press("r")
    expect(page.get_by_role("button", name="Blur wrong answers (r)")).to_be_visible()
    assert "blur(5px)" not in page.locator("ol.answers li.wrong .text").first.evaluate(blur)
    assert not page.evaluate(TINY)


def test_the_sliders_of_the_link_make_a_row_of_their_own(open_page: OpenPage) -> None:
    page = open_page(f"{VIEW}&bench=rewardbench2&steer=3:-2,11:0")
    expect(page.get_by_role("rowheader", name=re.compile("steered now by the sliders' 2 features"))).to_be_visible()
    page.locator("tr.ours").nth(1).locator('a[title^="Safety of"]').click()
    wait_for_query(page, cell="steered-now:Safety")
    expect(page.locator("ol.answers").get_by_text(re.compile("^was ")).first).to_be_visible()
    page.get_by_role("link", name=re.compile("^RM-Bench")).click()
    wait_for_query(page, bench="rm-bench", cell=None)
    expect(page.get_by_text("Subsets (9)")).to_be_visible()
    page.get_by_role("link", name=re.compile("^RewardBench –")).click()
    expect(page.get_by_text("rewardscope evaluate rewardbench plain")).to_be_visible()


def test_hostile_text_runs_nothing_in_either_theme(open_page: OpenPage) -> None:
    cell = "synthetic/rewardbench2-hostile:Safety"
    page = open_page(f"?run=hostile&view=benchmarks&bench=rewardbench2&cell={cell}&dark=1", height=1200)
    expect(page.locator("ol.answers li")).to_have_count(4)
    expect(item_rows(page)).to_have_count(2)
    assert page.evaluate("() => window.__injected") is None
    expect(page.locator("ol.answers img, .scores img, .prompt img")).to_have_count(0)
