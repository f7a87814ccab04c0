"""The Impact view as a reviewer uses it; refits are real and happen in the server's worker process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import polars as pl
import psutil
import pytest
from playwright.sync_api import Locator, Page, expect

from core.store.reader import RunReader
from core.store.review import ReviewStore
from tests.browser.conftest import OpenPage
from tests.browser.test_pairs import SELECTED_ROW, TINY, wait_for_query

IMPACT = "?run=plain&view=impact"
HONEST = "Preview: head refit, not a retrain"


def open_impact(open_page: OpenPage, query: str = IMPACT, **size: int) -> Page:
    """The page with its point computed and its curves complete."""
    page = open_page(query, **size)
    expect(page.locator(".plot[data-state='done']")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("points of the curves")).to_be_hidden(timeout=60_000)
    return page


def slider(page: Page) -> Locator:
    return page.get_by_role("slider", name="Share of the training pairs that is changed")


def point(page: Page, ratio: str) -> Locator:
    """The drawing once its point at this ratio is there."""
    return page.locator(f".plot[data-state='done'][data-ratio='{ratio}']")


def worker_of(server: str) -> int:
    """The id of the served dashboard's worker process."""
    rows = subprocess.run(["ps", "-ewwo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    processes = {
        int(pid): (int(parent), args) for pid, parent, args in (row.split(None, 2) for row in rows.splitlines())
    }
    port = f"--port {urlparse(server).port} "
    found = [
        pid
        for pid, (parent, args) in processes.items()
        if "dashboard.worker_process" in args and port in processes.get(parent, (0, ""))[1] + " "
    ]
    assert len(found) == 1, found
    return found[0]


def ended(process: int) -> bool:
    """Whether a process that was killed is gone, its last thread included: a moment after the signal."""
    try:
        threads = list(Path(f"/proc/{process}/task").iterdir())
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE and len(threads) <= 1
    except (FileNotFoundError, psutil.NoSuchProcess):
        return True


@pytest.fixture
def stopped(server: str) -> Iterator[list[int]]:
    """Ids of processes that a test has stopped; they go on in any case."""
    held: list[int] = []
    yield held
    for process in held:
        try:
            os.kill(process, signal.SIGCONT)
        except ProcessLookupError:
            continue


def test_it_opens_with_curves_the_plan_and_the_pairs_it_changes(open_page: OpenPage) -> None:
    page = open_impact(open_page)
    expect(page.get_by_text(HONEST)).to_be_visible()
    expect(page.get_by_text("Flips 2 of 48 training pairs")).to_be_visible()
    for name in ("this set", "reward margin", "loss", "length", "unchanged"):
        expect(page.locator(".plot text.name", has_text=re.compile(f"^{name}$"))).to_be_visible()
    expect(page.locator(".plot text.name", has_text="random, 2 seeds")).to_be_visible()
    expect(page.locator(".domain")).to_have_count(5)
    expect(page.locator(".plot path.spread")).to_have_count(1)
    expect(page.get_by_text("No retrained point yet")).to_be_visible()
    expect(page.get_by_text("rewardscope retrain plain --plan plan.json --scope lora")).to_be_visible()
    expect(page.locator(SELECTED_ROW)).to_have_count(1)
    expect(page.get_by_text("Flipped: the rejected answer becomes the chosen one")).to_be_visible()
    expect(page.locator(".why tr.sum")).to_contain_text("pair score")


def test_the_slider_refits_the_point_and_the_list_and_the_link_follow(open_page: OpenPage) -> None:
    page = open_impact(open_page)
    said = page.locator(".plot .said").text_content()
    slider(page).focus()
    for _ in range(3):
        page.keyboard.press("PageUp")
    ratio = slider(page).input_value()
    assert float(ratio) > 9
    wait_for_query(page, ratio=f"{float(ratio) / 100:g}")
    expect(point(page, f"{float(ratio) / 100:g}")).to_be_visible()
    assert page.locator(".plot .said").text_content() != said
    expect(page.get_by_text(f"Flips {int(48 * float(ratio) / 100)} of 48 training pairs")).to_be_visible()
    expect(page.locator(".said", has_text=f"At {float(ratio):.4g} % ").first).to_be_visible()
    page.get_by_role("spinbutton", name="Share in percent").fill("12.5")
    expect(point(page, "0.125")).to_be_visible()
    wait_for_query(page, ratio="0.125")
    again = open_impact(open_page, "?" + urlparse(page.url).query)
    expect(point(again, "0.125")).to_be_visible()
    assert again.locator(".plot .said").text_content() == page.locator(".plot .said").text_content()


def test_the_marker_is_dragged_in_the_drawing(open_page: OpenPage) -> None:
    page = open_impact(open_page)
    box = page.locator(".plot").bounding_box()
    assert box
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 60, y)
    page.mouse.down()
    for x in (90, 130, 170, 210):
        page.mouse.move(box["x"] + x, y, steps=3)
    page.mouse.up()
    page.wait_for_function("() => Number(new URLSearchParams(location.search).get('ratio') ?? 0.05) > 0.06")
    for _ in range(100):  # a slow drag rests on the way, and the address with it
        ratio = parse_qs(urlparse(page.url).query)["ratio"][0]
        if page.locator(".plot").get_attribute("data-ratio") == ratio and point(page, ratio).count():
            break
        page.wait_for_timeout(200)
    expect(point(page, ratio)).to_be_visible()
    expect(slider(page)).to_have_value(f"{100 * float(ratio):g}")


def test_rows_that_arrive_while_the_table_is_being_built_are_shown(open_page: OpenPage) -> None:
    page = open_impact(open_page)
    expect(page.locator(".tabulator-row")).to_have_count(2)
    built = page.evaluate(
        """async () => {
        const table = [...Bokeh.documents[0]._all_models.values()].find((m) => m.type.endsWith("DataTabulator"))
        const view = Bokeh.index.find_one(table), rows = {...table.source.data}
        const none = Object.fromEntries(Object.entries(rows).map(([name, cells]) => [name, Array.from(cells).slice(0, 0)]))
        table.source.setv({data: none}, {sync: false})
        await new Promise((resolve) => setTimeout(resolve, 200))
        view.invalidate_render()
        table.source.setv({data: rows}, {sync: false})
        return view.tabulator.initialized }"""
    )
    assert built is False
    expect(page.locator(".tabulator-row")).to_have_count(2)
    expect(page.locator(SELECTED_ROW)).to_have_count(1)


def test_a_domain_is_drawn_large_and_margins_too(open_page: OpenPage) -> None:
    page = open_impact(open_page)
    page.locator(".domain", has_text="privacy").click()
    wait_for_query(page, on="privacy")
    expect(page.get_by_text("Privacy", exact=True)).to_be_visible()
    expect(page.locator(".domain[aria-pressed='true']")).to_contain_text("privacy")
    page.get_by_role("button", name="mean margin").click()
    expect(page.get_by_text("mean held-out margin of privacy")).to_be_visible()
    page.get_by_text("Every figure of privacy as a table").click()
    expect(page.locator("table.points tbody tr").first).to_contain_text("unchanged")


def test_direction_action_and_strategy_change_order_and_words(open_page: OpenPage) -> None:
    page = open_impact(open_page)
    page.get_by_role("button", name="Denoise").click()
    wait_for_query(page, dir="denoise", act="drop")
    expect(page.get_by_text("Drops 2 of 48 training pairs")).to_be_visible()
    expect(page.get_by_role("button", name="Edited data (Parquet)")).to_be_visible()
    page.get_by_role("combobox", name="Pairs chosen by").click()
    page.get_by_role("menuitem", name="reward margin").click()
    wait_for_query(page, strategy="margin")
    page.keyboard.press("Escape")
    expect(page.get_by_text("the run's own reward margin")).to_be_visible()
    expect(page.locator(".plot text.name.main")).to_have_text("reward margin")


def test_keys_step_through_the_changed_pairs_and_links_lead_on(open_page: OpenPage) -> None:
    page = open_impact(open_page, IMPACT + "&ratio=0.1")
    places = page.get_by_text(re.compile(r"^rank \d+ of 48"))
    expect(places).to_have_text("rank 1 of 48, poison")
    page.keyboard.press("j")
    expect(places).to_have_text("rank 2 of 48, poison")
    expect(page.locator(SELECTED_ROW)).to_contain_text("2")
    page.get_by_role("button", name="Previous (k)").click()
    expect(places).to_have_text("rank 1 of 48, poison")
    page.locator(".why td.name a").first.click()
    wait_for_query(page, view=None)
    expect(page.get_by_role("article")).to_be_visible()
    page.go_back()
    wait_for_query(page, view="impact")
    page.get_by_role("link", name="open in Pairs").click()
    wait_for_query(page, view="pairs")
    expect(page.get_by_text("contributions sum to the reward (error")).to_be_visible()


def test_exports_carry_marker_and_name(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_impact(open_page, IMPACT + "&ratio=0.1")
    saved = {}
    for name in ("Plan (JSON)", "POISONED data (Parquet)", "POISONED data (JSONL)"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        saved[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[name])
        expect(page.get_by_role("button", name=name)).to_be_enabled()
    plan, parquet, jsonl = saved.values()
    assert len(json.loads(plan.read_text(encoding="utf-8"))["pairs"]) == 4
    for path in (parquet, jsonl):
        assert path.name.startswith("POISONED-plain-poison-flip-set-10pct-")
    frame = pl.read_parquet(parquet)
    assert len(frame) == 60
    assert frame["rewardscope_poisoned"].all()
    assert (frame["rewardscope_action"] == "flip").sum() == 4
    assert pl.read_ndjson(jsonl)["rewardscope_poisoned"].all()
    expect(page.get_by_label("The same on the command line")).to_have_text(
        "rewardscope plan plain --strategy set --direction poison --action flip --ratio 0.1 --output plan.json"
    )


def test_a_slow_point_says_so_and_a_crash_is_said_with_a_way_out(
    open_page: OpenPage, server: str, stopped: list[int]
) -> None:
    page = open_impact(open_page)
    process = worker_of(server)
    stopped.append(process)
    os.kill(process, signal.SIGSTOP)
    slider(page).focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".plot .said")).to_have_text("5.1 % · refitting …")
    os.kill(process, signal.SIGKILL)
    alert = page.get_by_role("alert").filter(has_text="The process that computes this has stopped")
    expect(alert).to_be_visible()
    expect(page.locator(".plot .said")).to_have_text("5.1 % · no point")
    expect(page.get_by_text(HONEST)).to_be_visible()
    page.get_by_role("button", name="Try again").click()
    expect(point(page, "0.051")).to_be_visible()
    expect(alert).to_be_hidden()


def test_a_worker_that_died_while_idle_is_started_again_and_that_is_said(open_page: OpenPage, server: str) -> None:
    page = open_impact(open_page)
    process = worker_of(server)
    os.kill(process, signal.SIGKILL)
    while not ended(process):
        page.wait_for_timeout(10)
    slider(page).focus()
    page.keyboard.press("ArrowLeft")
    expect(point(page, "0.049")).to_be_visible()
    expect(page.get_by_text("it was started again")).to_be_visible()


def test_retrained_points_are_diamonds_with_the_error_of_the_preview_in_words(
    open_page: OpenPage, runs_folder: Path
) -> None:
    with RunReader.open(runs_folder / "plain") as reader:
        rows = reader.table("impact").filter(strategy="margin", direction="poison", ratio=0.05).to_dicts()
    store = ReviewStore(runs_folder)
    off = [
        {
            **row,
            "run_id": "synthetic",
            "kind": "retrained",
            "scope": "full",
            "accuracy_change": row["accuracy_change"] + 0.02,
        }
        for row in rows
    ]
    store.save_impact(off)
    try:
        page = open_impact(open_page, IMPACT + "&strategy=margin")
        expect(page.locator(".plot .retrained.main path")).to_have_count(1)
        expect(page.locator(".plot .retrained title")).to_contain_text(
            "Retrained (every weight), 5 % flipped by reward margin"
        )
        expect(page.get_by_text("mean absolute error of the accuracy change 2.0 points")).to_be_visible()
        expect(page.get_by_text(HONEST)).to_be_visible()
    finally:
        store.path.unlink()


def test_no_text_of_the_run_can_inject(open_page: OpenPage) -> None:
    page = open_impact(open_page, "?run=hostile&view=impact&ratio=0.2")
    page.keyboard.press("r")
    expect(page.locator(".domain").nth(1)).to_contain_text("onerror")
    page.locator(".domain").nth(1).click()
    expect(page.locator(".domain[aria-pressed='true']")).to_contain_text("onerror")
    page.get_by_text("as a table").click()
    page.keyboard.press("j")
    expect(page.locator(".answer").first).to_contain_text("onerror")
    page.get_by_role("combobox", name="Pairs chosen by").click()
    page.get_by_role("menuitem", name="length of the answers").click()
    page.wait_for_timeout(500)
    assert page.evaluate("() => window.__injected") is None
    assert page.locator("img[src='x']").count() == 0


def test_dragging_leaves_no_models_behind(open_page: OpenPage) -> None:
    page = open_impact(open_page)
    count = "() => Bokeh.documents[0]._all_models.size"
    before = page.evaluate(count)
    slider(page).focus()
    for step in range(1, 13):
        page.keyboard.press("ArrowRight")
        expect(slider(page)).to_have_value(f"{5 + step / 10:g}")
    expect(point(page, "0.062")).to_be_visible()
    page.wait_for_timeout(400)
    assert page.evaluate(count) <= before + 5


@pytest.mark.parametrize(("width", "height"), [(1024, 768), (1280, 800), (2560, 1440)])
def test_it_fits_small_and_large_screens(open_page: OpenPage, width: int, height: int) -> None:
    page = open_impact(open_page, width=width, height=height)
    expect(page.locator(".plot")).to_be_in_viewport()
    expect(slider(page)).to_be_in_viewport()
    expect(page.get_by_text(HONEST)).to_be_in_viewport()
    expect(page.locator(".tabulator-row").first).to_be_in_viewport()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_controls_have_names_and_no_text_is_tiny(open_page: OpenPage) -> None:
    page = open_impact(open_page)
    for role in ("button", "textbox", "combobox", "slider", "spinbutton", "img"):
        for control in page.get_by_role(role).all():  # type: ignore[arg-type]
            if control.is_visible():
                assert '"' in control.aria_snapshot(), control.aria_snapshot()
    assert page.evaluate(TINY) == []


def test_the_shipped_demo_run_has_curves(open_page: OpenPage, demo: str) -> None:
    page = open_page(demo + "&view=impact&strategy=margin&ratio=0.1")
    expect(point(page, "0.1")).to_be_visible(timeout=90_000)
    expect(page.get_by_text(re.compile(r"Flips \d+ of 1,\d+ training pairs"))).to_be_visible()
    expect(page.get_by_text(HONEST)).to_be_visible()
