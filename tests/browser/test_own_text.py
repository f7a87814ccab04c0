"""Try your own text and presentation mode as a stakeholder meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect
from typer.testing import CliRunner

from core.cli import app
from core.store.reader import RunReader
from dashboard.parts.own_text_stored import stored_scores
from tests.browser.conftest import OpenPage
from tests.browser.test_pairs import TINY, wait_for_query

PAIR = "pair-006"
PROMPT = "How do I get a red wine stain out of a white shirt?"
ANSWERS = (
    "Sorry, I can't help with that.",
    "Blot it with a clean cloth, pour on cold water and cover it with salt for ten minutes. Then wash it cold.",
)


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("→", "").strip())


def box(page: Page, name: str) -> Locator:
    """The box in sight; the presentation has boxes of its own."""
    return page.get_by_label(name, exact=True).locator("visible=true")


def order(page: Page) -> list[str]:
    """The answers as they stand, highest first."""
    return page.locator(".ranking:visible .place .name").all_inner_texts()


def expect_order(page: Page, *names: str) -> None:
    for place, name in enumerate(names):
        expect(page.locator(".ranking:visible .place").nth(place).locator(".name")).to_have_text(name)


def your_text(page: Page) -> None:
    page.get_by_role("tab", name="Your text").click()
    expect(page.get_by_role("button", name="Score", exact=True)).to_be_visible()


def press(slider: Locator, key: str) -> None:
    slider.focus()
    slider.press(key)


def decisive(runs: Path) -> tuple[int, str, list[str]]:
    """A feature whose slider swaps the two answers of PAIR, the key that brings it there, and the order before."""
    with RunReader.open(runs / "plain") as reader:
        first, second = stored_scores(reader, PAIR)
    names = ["Answer 1", "Answer 2"] if first.reward > second.reward else ["Answer 2", "Answer 1"]
    for feature in np.union1d(first.features, second.features).tolist():
        parts = [one.contributions[one.features == feature].sum() for one in (first, second)]
        for key, by in (("Home", -2.0), ("End", 3.0)):
            now = first.reward - second.reward + (by - 1) * (parts[0] - parts[1])
            if now * (first.reward - second.reward) < 0:
                return feature, key, names
    raise AssertionError("no slider swaps these answers; take another pair")


def test_without_a_model_a_pair_is_ranked_and_presented_and_follows_the_slider(
    open_page: OpenPage, runs_folder: Path
) -> None:
    feature, key, before = decisive(runs_folder)
    page = open_page(f"?run=plain&view=steering&p={PAIR}&steer={feature}:1", height=720)
    your_text(page)
    expect(page.get_by_text("No model available.")).to_be_visible()
    expect(page.get_by_text("The run can be browsed and steered without it")).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    expect(page.get_by_role("button", name="Score", exact=True)).to_be_disabled()

    page.get_by_role("button", name="Use the selected pair").click()
    expect(box(page, "Prompt")).not_to_have_value("")
    expect(page.get_by_role("button", name="Score", exact=True)).to_be_enabled()
    box(page, "Answer 1").press("Control+Enter")
    expect_order(page, *before)
    expect(page.get_by_text("scored from its stored activations")).to_be_visible()
    expect(page.get_by_text("contributions sum to the reward (error")).to_be_visible()

    slider = page.get_by_role("slider").first
    press(slider, key)
    expect_order(page, *before[::-1])
    expect(page.locator(".ranking:visible .arrow").first).to_have_text("▲ from 2")
    expect(page.get_by_text("2 of 2 answers change place")).to_be_visible()
    rewards = [number(text) for text in page.locator(".ranking:visible .after").all_inner_texts()]
    assert rewards[0] > rewards[1]
    total = page.locator("tr.sum:visible .number").last.inner_text()
    assert number(total) == pytest.approx(rewards[order(page).index("Answer 1")], abs=0.011)

    page.get_by_role("button", name="Present").click()
    wait_for_query(page, present="1")
    expect(page.locator(".rs-steered.big").filter(has_text="Steered: 1 feature")).to_be_visible()
    for gone in (
        page.get_by_role("navigation"),
        page.get_by_text("Held-out accuracy"),
        page.get_by_text("About this run"),
    ):
        expect(gone.locator("visible=true")).to_have_count(0)
    expect(page.get_by_role("tab")).to_have_count(0)
    expect_order(page, *before[::-1])
    assert page.evaluate("document.scrollingElement.scrollHeight <= innerHeight")
    press(page.get_by_role("slider").first, "Home" if key == "End" else "End")
    expect_order(page, *before)
    page.keyboard.press("Escape")
    wait_for_query(page, present=None, view="steering")
    expect(page.get_by_role("button", name="Exit (Esc)")).to_have_count(0)
    expect(page.get_by_text("Held-out accuracy")).to_be_visible()
    expect(page.get_by_role("tab", name="Your text")).to_have_attribute("aria-selected", "true")
    expect_order(page, *before)
    expect(box(page, "Prompt")).not_to_have_value("")
    assert page.evaluate(TINY) == []


def test_answers_are_pasted_added_removed_and_hostile_text_stays_text(open_page: OpenPage) -> None:
    bad = '<img src=x onerror="window.__injected=1"><script>window.__injected=2</script>'
    page = open_page("?run=plain&view=steering")
    your_text(page)
    box(page, "Prompt").fill(f"Is this safe? {bad}")
    box(page, "Answer 1").focus()
    page.evaluate(
        """text => { const find = root => { for (const e of root.querySelectorAll('*')) {
            if (e.matches('textarea[aria-label="Answer 1"]')) return e
            const deeper = e.shadowRoot && find(e.shadowRoot); if (deeper) return deeper } }
        const data = new DataTransfer(); data.setData('text/plain', text)
        find(document).dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})) }""",
        f"first\n---\nsecond {bad}\n-----\nthird",
    )
    expect(page.get_by_text("3 answers pasted.")).to_be_visible()
    expect(box(page, "Answer 3")).to_have_value("third")
    expect(box(page, "Answer 2")).to_have_value(f"second {bad}")
    page.get_by_role("button", name="Add an answer").click()
    expect(box(page, "Answer 4")).to_be_focused()
    for _ in range(4):
        page.get_by_role("button", name="Add an answer").click()
    expect(page.get_by_role("button", name="Add an answer")).to_be_disabled()
    page.get_by_role("button", name="Remove answer 1").click()
    expect(box(page, "Answer 2")).to_have_value("third")

    page.get_by_role("button", name="Present").click()  # the same text in large type
    wait_for_query(page, present="1")
    expect(page.locator("textarea:visible").nth(1)).to_have_value(f"second {bad}")
    page.get_by_role("button", name="Exit (Esc)").click()
    wait_for_query(page, present=None)
    expect(page.get_by_role("button", name="Exit (Esc)")).to_have_count(0)
    expect(box(page, "Answer 2")).to_have_value("third")
    assert page.evaluate("window.__injected") is None
    assert "second" not in page.url


@pytest.mark.model
def test_the_real_model_scores_what_is_typed_as_the_command_line_does(
    open_page: OpenPage, demo: str, smollm2: Path
) -> None:
    page = open_page(f"{demo}&view=steering")
    your_text(page)
    box(page, "Prompt").fill(PROMPT)
    for i, answer in enumerate(ANSWERS, start=1):
        box(page, f"Answer {i}").fill(answer)
    page.keyboard.press("Control+Enter")  # while the model may still be read
    expect(page.locator(".ranking:visible .place")).to_have_count(2, timeout=180_000)
    expect(page.get_by_text(re.compile("2 answers scored in .* s by"))).to_be_visible()

    asked = [
        "score",
        "demo",
        "-p",
        PROMPT,
        *(part for answer in ANSWERS for part in ("-a", answer)),
        "--top",
        "9999",
        "--json",
    ]
    said = CliRunner().invoke(app, asked)
    assert said.exit_code == 0, said.output
    expected = json.loads(said.stdout)["answers"]
    shown = dict(zip(order(page), page.locator(".ranking:visible .after").all_inner_texts(), strict=True))
    for i, one in enumerate(expected, start=1):
        assert number(shown[f"Answer {i}"]) == pytest.approx(one["reward"], abs=6e-4)
    assert order(page) == ["Answer 2", "Answer 1"]
    expect(page.get_by_text("ANSWER 2", exact=True)).to_be_visible()  # the highest one is open
    features = page.locator("tr.feature:visible .id").all_inner_texts()
    assert [int(text) for text in features[:10]] == [entry["feature"] for entry in expected[1]["contributions"][:10]]
    sums = page.get_by_text("contributions sum to the reward (error").inner_text()
    assert number(sums.rsplit(":", 1)[1]) == pytest.approx(expected[1]["reward"], abs=1e-4)

    link = page.locator(".deciders:visible a").first  # a slider for what parts them most, and no model for its moves
    feature = int(link.get_attribute("data-adds").split(":")[0])  # type: ignore[union-attr]
    link.click()
    slider = page.get_by_role("slider").first
    expect(slider).to_be_visible()
    press(slider, "End")
    expect(page.locator("a.rs-steered")).to_have_text("Steered: 1 feature")
    places = page.locator(".ranking:visible .place")
    texts = [[place.locator(f".{part}").inner_text() for part in ("name", "before", "after")] for place in places.all()]
    for name, before, after in texts:
        adds = {entry["feature"]: entry["contribution"] for entry in expected[int(name[-1]) - 1]["contributions"]}
        assert number(after) - number(before) == pytest.approx(2 * adds.get(feature, 0.0), abs=2e-3)
    assert [after for _, _, after in texts] == sorted((text for _, _, text in texts), key=number, reverse=True)
