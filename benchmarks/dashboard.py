"""What a reviewer waits for, in a real Chromium on the served demo run: cold start, feature card, filters, pairs, impact.

Every time runs from the key press or click to the change in the page, measured inside the page frame by frame.

    python -m benchmarks.dashboard [--runs DIR] [--rounds 15]
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from core.paths import ROOT
from tests.ensure_chromium import find_chromium

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost"]
ROWS = ".tabulator-row .tabulator-cell[tabulator-field='label']"


def serve(runs: Path | None) -> tuple[subprocess.Popen[bytes], str]:
    """Starts the dashboard as users do and waits until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = dict(os.environ) | ({"REWARDSCOPE_RUNS": str(runs)} if runs else {})
    command = [str(Path(sys.executable).with_name("panel")), "serve", "dashboard", "--address", "localhost"]
    process = subprocess.Popen([*command, "--port", str(port), "--liveness"], cwd=ROOT, env=environment)
    while True:
        try:
            urllib.request.urlopen(f"http://localhost:{port}/liveness", timeout=1)
            return process, f"http://localhost:{port}/dashboard"
        except OSError:
            time.sleep(0.05)


def until_changed(page: Page, selector: str, act: str) -> float:
    """Does `act` (JavaScript on the page) and returns the milliseconds until the selector's text differs."""
    return float(
        page.evaluate(
            """([selector, act]) => new Promise((resolve, reject) => {
                const find = root => { const hit = root.querySelector(selector); if (hit) return hit
                    for (const e of root.querySelectorAll('*')) if (e.shadowRoot) { const deep = find(e.shadowRoot); if (deep) return deep }
                    return null }
                const text = () => find(document)?.textContent ?? ''
                const before = text(), begin = performance.now()
                eval(act)
                const look = () => { if (text() !== before) resolve(performance.now() - begin)
                    else if (performance.now() - begin > 10000) reject(new Error('no change in 10 s'))
                    else requestAnimationFrame(look) }
                look()
            })""",
            [selector, act],
        )
    )


def click_row(field: str, number: int) -> str:
    """JavaScript that clicks the number-th row's cell of a Tabulator inside shadow roots."""
    return f"""
        const all = []; const walk = root => {{ for (const e of root.querySelectorAll('*')) {{
            if (e.matches(".tabulator-row .tabulator-cell[tabulator-field='{field}']")) all.push(e)
            if (e.shadowRoot) walk(e.shadowRoot) }} }}; walk(document); all[{number}].click()"""


def until_point(page: Page, percent: float) -> float:
    """Moves the Impact view's slider to `percent` and returns the milliseconds until the point there is drawn."""
    return float(
        page.evaluate(
            """percent => new Promise((resolve, reject) => {
                const find = (root, selector) => { const hit = root.querySelector(selector); if (hit) return hit
                    for (const e of root.querySelectorAll('*')) if (e.shadowRoot) { const deep = find(e.shadowRoot, selector); if (deep) return deep }
                    return null }
                const slider = find(document, 'input[type=range]'), plot = find(document, '.plot'), begin = performance.now()
                slider.value = String(percent)
                slider.dispatchEvent(new Event('input', {bubbles: true}))
                const look = () => { if (plot.dataset.state === 'done' && Math.abs(Number(plot.dataset.ratio) - percent / 100) < 1e-6) resolve(performance.now() - begin)
                    else if (performance.now() - begin > 20000) reject(new Error('no point in 20 s'))
                    else requestAnimationFrame(look) }
                look()
            })""",
            percent,
        )
    )


def impact(page: Page, url: str, rounds: range) -> None:
    """The Impact view: its first picture, every curve, and a point of a ratio that was never asked for."""
    begin = time.perf_counter()
    page.goto(url + "?view=impact&ratio=0.051")
    page.locator(".plot[data-state='done']").wait_for(timeout=120_000)
    print(f"  {'impact: first refitted point, process started for it':<52} {time.perf_counter() - begin:.1f} s")
    page.get_by_text("points of the curves").wait_for(state="hidden", timeout=120_000)
    print(f"  {'impact: every curve':<52} {time.perf_counter() - begin:.1f} s")
    page.wait_for_timeout(1500)
    fresh = []
    for i in rounds:
        fresh.append(until_point(page, round(6.1 + 0.1 * i, 1)))
        page.wait_for_timeout(400)
    report("impact: refitted point after a slider move", fresh)
    known = []
    for i in rounds:
        known.append(until_point(page, round(6.1 + 0.1 * i, 1)))
        page.wait_for_timeout(400)
    report("impact: known point after a slider move", known)


def report(name: str, times: list[float]) -> None:
    ordered = sorted(times)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    print(f"  {name:<44} median {statistics.median(times):6.0f} ms   p95 {p95:6.0f} ms   n={len(times)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    begin = time.perf_counter()
    process, url = serve(options.runs)
    print(f"server answers after {time.perf_counter() - begin:.1f} s")
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
            first = []
            for _ in range(4):
                page = browser.new_context(viewport={"width": 1280, "height": 900}, bypass_csp=True).new_page()
                begin = time.perf_counter()
                page.goto(url)
                page.locator(ROWS).first.wait_for(timeout=60_000)
                first.append(1e3 * (time.perf_counter() - begin))
                page.wait_for_function("() => Bokeh.documents[0].is_idle")
                if len(first) < 4:
                    page.context.close()
            print(
                f"  first row on screen: first visitor {first[0]:.0f} ms, then {statistics.median(first[1:]):.0f} ms (empty browser cache)"
            )
            page.wait_for_timeout(1500)
            rounds = range(options.rounds)
            report(
                "feature card after a click on a row",
                [until_changed(page, "article", click_row("label", i % 12 + 1)) for i in rounds],
            )
            box = page.get_by_label("Search labels and contexts")
            times = []
            for i in rounds:
                before = page.locator(ROWS).first.inner_text()
                begin = time.perf_counter()
                box.fill(["sorry", "the", "number", "help"][i % 4])
                page.wait_for_function(
                    """before => { const find = root => { const hit = root.querySelector(".tabulator-row .tabulator-cell[tabulator-field='label']")
                        if (hit) return hit
                        for (const e of root.querySelectorAll('*')) if (e.shadowRoot) { const deep = find(e.shadowRoot); if (deep) return deep }
                        return null }; const now = find(document); return now && now.textContent !== before }""",
                    arg=before,
                    timeout=10_000,
                )
                times.append(1e3 * (time.perf_counter() - begin))
                page.wait_for_timeout(300)
            report("table after typing a search", times)
            page.goto(url + "?view=pairs")
            page.locator(".answer").first.wait_for(timeout=60_000)
            page.wait_for_timeout(1500)
            report(
                "pair after a click on a row",
                [until_changed(page, ".answer", click_row("prompt", i % 12 + 1)) for i in rounds],
            )
            impact(page, url, rounds)
            browser.close()
    finally:
        process.terminate()
        process.wait(10)


if __name__ == "__main__":
    main()
