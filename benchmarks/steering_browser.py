"""A slider of the Steering view, dragged with a real mouse in Chromium on a run of 20,000 pairs: how long until the effect is seen.

The run is written for the purpose into a temporary folder: every pair is held out, so that each move recomputes 40,000 rewards,
20,000 outcomes, both densities, the pairs that change sides, 20 domains and all intervals. The dragged feature is active in about
half of the answers.

A time runs from the input event's own time stamp to the frame after the one in which the drawing changed. Every input event
counts: one that a newer one overtook waits for the first drawing that holds it or something newer.

    python -m benchmarks.steering_browser [--pairs 20000] [--moves 400]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from playwright.sync_api import Page, sync_playwright

from benchmarks.dashboard import ARGUMENTS, serve
from core.store.arrays import RunArrays, save_arrays
from core.store.manifest import Manifest, write_manifest
from core.store.writer import new_database
from tests.ensure_chromium import find_chromium

FEATURES, PER_ANSWER, DOMAINS = 4096, 60, 20
FEATURE, OTHERS = 0, (1, 2, 3)
"""The one that is dragged, and others that are steered at the same time."""

WATCH = """() => {
    const find = (root, selector) => { const hit = root.querySelector(selector); if (hit) return hit
        for (const one of root.querySelectorAll('*')) if (one.shadowRoot) { const deep = find(one.shadowRoot, selector); if (deep) return deep }
        return null }
    const steer = find(document, 'section.steer'), effect = find(document, '.effect')
    const log = window.__log = { inputs: [], sends: [], draws: [], most_in_flight: 0 }
    steer.addEventListener('input', (event) => log.inputs.push(event.timeStamp), true)
    new MutationObserver(() => {
        const sent = Number(steer.dataset.sent ?? 0), answered = Number(steer.dataset.answered ?? 0)
        log.most_in_flight = Math.max(log.most_in_flight, sent - answered)
        if (sent > (log.sends.at(-1)?.[0] ?? 0)) log.sends.push([sent, log.inputs.length])
    }).observe(steer, { attributes: true, attributeFilter: ['data-sent', 'data-answered'] })
    new MutationObserver(() => {
        const move = Number(effect.dataset.move)
        requestAnimationFrame(() => { const port = new MessageChannel()
            port.port1.onmessage = () => log.draws.push([move, performance.now()]); port.port2.postMessage(0) })
    }).observe(effect, { attributes: true, attributeFilter: ['data-move'] })
    window.__state = () => ({ sent: Number(steer.dataset.sent ?? 0), answered: Number(steer.dataset.answered ?? 0),
        drawn: Number(effect.dataset.move), value: find(document, 'input[type=range]').value })
}"""


def write_run(folder: Path, pairs: int, seed: int = 0) -> None:
    """A finished run with random activations: `pairs` held-out pairs in 20 domains, three pairs a prompt, exact rewards."""
    rng = np.random.default_rng(seed)
    n = 2 * pairs
    often = 1.0 / np.arange(1, FEATURES + 1)
    often /= often.sum()
    members = [np.unique(rng.choice(FEATURES, PER_ANSWER, p=often)) for _ in range(n)]
    ptr = np.concatenate([[0], np.cumsum([len(one) for one in members])]).astype(np.int64)
    features = np.concatenate(members).astype(np.uint32)
    values = rng.gamma(2.0, 0.5, len(features)).astype(np.float32)
    weights = rng.normal(0, 0.3, FEATURES)
    weights[FEATURE] = 0.8
    rewards = np.add.reduceat(values.astype(np.float64) * weights[features], ptr[:-1])
    arrays = RunArrays(
        token_start=np.arange(n + 1, dtype=np.int64),
        token_ids=np.zeros(n, np.int32),
        token_char=np.zeros((n, 2), np.int32),
        token_boundary=np.ones(n, bool),
        token_features=np.zeros((n, 1), np.uint16),
        token_values=np.zeros((n, 1), np.float32),
        truncated=np.zeros(n, bool),
        pooled_ptr=ptr,
        pooled_features=features,
        last=values,
        mean=values,
        max=values,
        boundary_sum=values,
        states=None,
        latents=FEATURES,
    )
    share = np.bincount(features, minlength=FEATURES) / n
    number = np.arange(pairs)
    ids = [f"pair-{i}" for i in number]
    tables = {
        "pair": pl.DataFrame(
            {
                "pair_id": ids,
                "pair_index": number,
                "prompt_id": [f"prompt-{i // 3}" for i in number],
                "source": "synthetic",
                "split": "test",
                "domain": [f"domain {i % DOMAINS}" for i in number // 3],
                "category": [f"kind {i % 7}" for i in number],
                "prompt": [
                    f"A question that was asked as number {i}, long enough to fill its row in a list" for i in number
                ],
                "messages": "[]",
                "labels": "{}",
                "n_responses": 2,
                "chosen_reward": rewards[0::2],
                "rejected_reward": rewards[1::2],
                "margin": rewards[0::2] - rewards[1::2],
            }
        ),
        "response": pl.DataFrame(
            {
                "response_id": np.arange(n),
                "pair_id": [ids[i // 2] for i in range(n)],
                "pair_index": np.arange(n) // 2,
                "side": ["chosen", "rejected"] * pairs,
                "rank": 0,
                "text": "An answer.",
                "n_tokens": 1,
                "n_boundary": 1,
                "token_start": np.arange(n),
                "truncated": False,
                "reward": rewards,
            }
        ),
        "feature": pl.DataFrame(
            {
                "feature_id": np.arange(FEATURES),
                "weight": weights,
                "weight_rank": 1 + np.argsort(np.argsort(-np.abs(weights))),
                "density": share,
                "mean_active": 1.0,
                "max_active": 5.0,
                "n_tokens": np.bincount(features, minlength=FEATURES),
                "n_responses": np.bincount(features, minlength=FEATURES),
                "n_pairs": np.bincount(features, minlength=FEATURES),
                "length_corr": pl.Series([None] * FEATURES, dtype=pl.Float64),
                "mean_contribution": 0.0,
                "alive": share > 0,
            }
        ),
    }
    folder.mkdir(parents=True)
    with new_database(folder / "run-synthetic.duckdb") as db:
        db.insert_all(tables)
        db.insert_activations(arrays)
    save_arrays(folder / "arrays", arrays)
    data = {"path": "made up", "n_pairs": pairs, "n_train_pairs": 0, "n_prompts": pairs // 3, "n_responses": n}
    write_manifest(
        folder,
        Manifest(
            name=folder.name,
            run_id="steering-benchmark",
            code_version="0",
            database="run-synthetic.duckdb",
            shards="shards",
            arrays="arrays",
            config={"name": folder.name},
            model={"name": "Synthetic", "source": "", "revision": "", "layer": 1, "d_model": 16, "dtype": "float32"},
            data={**data, "n_tokens": n, "n_skipped": 0},
            sae={"latents": FEATURES, "k": PER_ANSWER, "sha256": f"{FEATURES:064x}", "level": "token", "quality": {}},
            head={"pooling": "mean", "l2": 1.0, "gradient_norm": 0.0, "held_out": {"value": 0.5, "n": pairs}},
            health={"sum_error": 0.0, "sum_checked": n, "batch_spread_max": 0.0},
            stages={},
            seeds={},
            versions={},
        ),
    )


def drag(page: Page, moves: int) -> dict[str, Any]:
    """Drags the first slider to and fro and returns what the page logged."""
    page.evaluate(WATCH)
    slider = page.get_by_role("slider").first
    box = slider.bounding_box()
    assert box
    y = box["y"] + box["height"] / 2

    def at(share: float) -> float:
        return float(box["x"] + 8 + share * (box["width"] - 16))

    page.mouse.move(at(0.6), y)
    page.mouse.down()
    for i in range(moves):
        page.mouse.move(at(0.5 + 0.45 * np.sin(i / 9)), y)
        page.wait_for_timeout(8)
    page.mouse.up()
    page.wait_for_function(
        "() => { const s = __state(); return s.sent === s.answered && s.drawn === s.sent }", timeout=30_000
    )
    page.wait_for_timeout(300)
    found: dict[str, Any] = page.evaluate("() => ({ ...__log, ...__state() })")
    return found


def latencies(log: dict[str, Any]) -> list[float]:
    """Milliseconds from each input event to the first painted drawing that holds it or a newer one."""
    holds = dict(log["sends"])  # move number -> inputs told by then
    draws = sorted((at, holds[move]) for move, at in log["draws"] if move in holds)
    found, k = [], 0
    for i, begin in enumerate(log["inputs"], start=1):
        while k < len(draws) and draws[k][1] < i:
            k += 1
        if k == len(draws):
            raise RuntimeError(f"input {i} of {len(log['inputs'])} was never drawn")
        found.append(draws[k][0] - begin)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--moves", type=int, default=400)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        begin = time.perf_counter()
        write_run(Path(runs) / "large", options.pairs)
        print(f"run of {options.pairs:,} held-out pairs written in {time.perf_counter() - begin:.1f} s")
        process, url = serve(Path(runs))
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
                page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
                steered = ",".join(f"{one}:1" if one == FEATURE else f"{one}:0.5" for one in (FEATURE, *OTHERS))
                begin = time.perf_counter()
                page.goto(f"{url}?run=large&view=steering&steer={steered}")
                page.locator(".effect[data-move]").wait_for(timeout=60_000)
                page.wait_for_function("() => Bokeh.documents[0].is_idle")
                print(f"  view opened, first visitor: {time.perf_counter() - begin:.1f} s")
                page.wait_for_timeout(1500)
                log = drag(page, options.moves)
                times = sorted(latencies(log))
                browser.close()
        finally:
            process.terminate()
            process.wait(10)
    p95 = times[min(len(times) - 1, round(0.95 * len(times)))]
    print(
        f"  effect of a slider move seen after: median {statistics.median(times):.0f} ms, p95 {p95:.0f} ms, largest {times[-1]:.0f} ms, n={len(times)}"
    )
    print(
        f"  {len(log['inputs'])} input events, {log['sent']} moves sent, {log['answered']} answered, {log['drawn']} handled by the server, "
        f"at most {log['most_in_flight']} in flight; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    if not (log["sent"] == log["answered"] == log["drawn"] and log["most_in_flight"] == 1):
        raise SystemExit("moves were queued or lost")


if __name__ == "__main__":
    main()
