"""A slider move on 100,000 responses x 65,536 features, and its side effects on 20,000 pairs: milliseconds.

Writes a synthetic store (benchmarks/salience.py: densities of a power law up to 0.9, 192 active features in an answer), then
times SteeredRewards for 8 sliders: one is dragged, all 8 are changed at once, and the whole product of activations and
changed weights for comparison. The sliders are the 8 densest features (the worst case) and 8 random ones among the 1,000
densest. Side effects: `specificity` with intervals on 20,000 pairs of 12 domains, two pairs to a prompt. The numbers in the store mean
nothing; its size does.

    python -m benchmarks.steering [--responses N] [--features M] [--active K] [--pairs P] [--repeats R]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp

from benchmarks.salience import generate, open_arrays
from core.evaluate.specificity import SteeringData, specificity
from core.rewards.feature_columns import FeatureColumns
from core.rewards.steering import SteeredRewards

LIMIT_MOVE, LIMIT_SPECIFICITY = 5.0, 10.0
"""Milliseconds at the median."""
SLIDERS = 8


def timed(action: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and 95th percentile in milliseconds."""
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        taken.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(taken)), float(np.quantile(taken, 0.95))


def moves(responses: int, features: int, active: float, repeats: int) -> bool:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), responses // 2, features, active)
        arrays = open_arrays(Path(folder), features)
        weights = rng.normal(0, 0.01, features)
        csr = sp.csr_matrix(
            (
                np.asarray(arrays.max),
                np.asarray(arrays.pooled_features).astype(np.int32),
                np.asarray(arrays.pooled_ptr),
            ),
            shape=(arrays.n_responses, features),
        )
        rewards = csr @ weights
        density = np.bincount(csr.indices, minlength=features) / arrays.n_responses
        order = np.argsort(-density)
        fine = True
        print(f"{arrays.n_responses:,} responses x {features:,} features, {csr.nnz:,} pooled activations")
        print("| sliders | density | move | median ms | 95 % ms | full product / move |")
        print("|---|---|---|---|---|---|")
        for name, chosen in (
            ("8 densest", order[:SLIDERS]),
            ("8 random of the 1,000 densest", rng.choice(order[:1000], SLIDERS, replace=False)),
        ):
            steered = SteeredRewards(FeatureColumns.of_arrays(arrays, "max"), weights, rewards)
            begin = time.perf_counter()
            steered.columns.load([int(one) for one in chosen])
            read = 1e3 * (time.perf_counter() - begin)
            start = {int(one): 0.5 for one in chosen}
            steered.rewards(start)

            def one_move(steered: SteeredRewards = steered, start: dict[int, float] = start) -> np.ndarray:
                return steered.rewards({**start, next(iter(start)): float(rng.uniform(-2, 3))})

            def all_move(steered: SteeredRewards = steered, start: dict[int, float] = start) -> np.ndarray:
                return steered.rewards({one: float(rng.uniform(-2, 3)) for one in start})

            def full(start: dict[int, float] = start) -> np.ndarray:
                changed = weights.copy()
                changed[list(start)] *= rng.uniform(-2, 3, len(start))
                return np.asarray(csr @ changed)

            whole = timed(full, max(3, repeats // 20))[0]
            shown = f"{density[chosen].min():.3f} to {density[chosen].max():.3f}"
            for what, action in (("one of 8", one_move), ("all 8", all_move)):
                median, slow = timed(action, repeats)
                fine &= median <= LIMIT_MOVE
                print(f"| {name} | {shown} | {what} | {median:.2f} | {slow:.2f} | {whole / median:,.0f} |")
            print(f"| {name} | {shown} | columns read, once | {read:.1f} | | |", flush=True)
    return fine


def side_effects(pairs: int, repeats: int) -> bool:
    rng = np.random.default_rng(1)
    index = np.arange(pairs)
    prompt = index // 2
    table = pl.DataFrame(
        {
            "pair_id": [f"pair-{i}" for i in index],
            "prompt_id": [f"prompt-{p}" for p in prompt],
            "split": "test",
            "domain": [f"domain-{p % 12}" for p in prompt],
            "category": pl.Series([None] * pairs, dtype=pl.String),
            "labels": "{}",
        }
    )
    answers = pl.DataFrame({"pair_index": np.repeat(index, 2), "side": np.tile(["chosen", "rejected"], pairs)})
    z = sp.random(2 * pairs, SLIDERS, density=0.2, format="csr", random_state=0, dtype=np.float32)
    steered = SteeredRewards(z, rng.normal(0, 1, SLIDERS), rng.normal(0, 1, 2 * pairs))
    data = SteeringData.of_tables(steered, table, answers)
    after = steered.rewards({0: 2.0, 3: 0.0})
    specificity(data, data.rewards, after, "domain=domain-3")
    print("| figures | pairs | median ms | 95 % ms |")
    print("|---|---|---|---|")
    fine = True
    for name, intervals in (("with intervals", True), ("without", False)):
        median, slow = timed(
            lambda wanted=intervals: specificity(data, data.rewards, after, "domain=domain-3", intervals=wanted),  # type: ignore[misc]
            repeats,
        )
        fine &= median <= LIMIT_SPECIFICITY
        print(f"| {name} | {pairs:,} | {median:.2f} | {slow:.2f} |")
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=65_536)
    parser.add_argument("--active", type=float, default=192)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=200)
    given = parser.parse_args()
    fine = moves(given.responses, given.features, given.active, given.repeats)
    fine &= side_effects(given.pairs, given.repeats)
    if not fine:
        sys.exit(f"Above {LIMIT_MOVE:g} ms a move or {LIMIT_SPECIFICITY:g} ms for the figures, at the median.")


if __name__ == "__main__":
    main()
