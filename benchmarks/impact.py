"""How long previews take: exact refits of the head on synthetic pairs shaped like a real run's.

    python -m benchmarks.impact                                  # 20,000 training pairs x 9,216 features, a full curve
    python -m benchmarks.impact --pairs 100000 --features 65536 --active 192 --point

A full curve is 5 ratios x 4 strategies x 5 seeds: set, margin and loss are the same for every seed and are refitted once, random
five times, so 40 refits; `--every-seed` refits 100 different plans instead. A point is one plan on inputs that are warm, that is
with the unchanged head at hand, as in the dashboard. Feature frequencies and activations follow the demo run's (log-normal frequency,
`--active` different features in an answer); pairs are made before the clock starts. The figures in it mean nothing; its size does.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import polars as pl
from scipy.special import expit

from core.impact.curve import curve_plans
from core.impact.differences import SparseDifferences, available_cores
from core.impact.inputs import ImpactInputs
from core.impact.plans import make_plan
from core.impact.preview import preview
from core.store.arrays import RunArrays
from core.store.sets import FeatureSet

RATIOS = (0.005, 0.01, 0.025, 0.05, 0.10)
STRATEGIES = ("set", "random", "margin", "loss")


def synthetic_inputs(pairs: int, features: int, active: int, l2: float, seed: int = 0) -> ImpactInputs:
    """`pairs` training pairs and a quarter as many held-out ones, two answers each, three pairs a prompt.

    The preference follows a sparse direction with logistic noise: a head on it is right in about three pairs of four.
    """
    rng = np.random.default_rng(seed)
    total = pairs + pairs // 4
    frequency = rng.lognormal(0.0, 0.85, features)
    edges = np.cumsum(frequency / frequency.sum())
    size = rng.lognormal(0.0, 0.3, features) * 0.045
    ptr, columns = [0], []
    for begin in range(0, 2 * total, 4096):
        drawn = np.searchsorted(edges, rng.random((min(4096, 2 * total - begin), round(active * 1.08))))
        drawn = np.sort(np.minimum(drawn, features - 1), axis=1)
        fresh = np.diff(drawn, axis=1, prepend=-1) > 0
        columns.append(drawn[fresh].astype(np.uint32))
        ptr.extend((ptr[-1] + np.cumsum(fresh.sum(axis=1))).tolist())
    index = np.concatenate(columns)
    values = rng.standard_gamma(1.5, len(index), dtype=np.float32) * size[index].astype(np.float32)
    start = np.arange(2 * total + 1, dtype=np.int64) * 40
    empty = np.empty(0)
    arrays = RunArrays(
        token_start=start, token_ids=empty, token_char=empty, token_boundary=empty, token_features=empty,
        token_values=empty, truncated=empty, pooled_ptr=np.array(ptr), pooled_features=index, last=values, mean=values,
        max=values, boundary_sum=values, states=None, latents=features,
    )  # fmt: skip
    truth = rng.normal(size=features) * (rng.random(features) < 0.05)
    reward = arrays.pooled("mean") @ truth
    difference = reward[::2] - reward[1::2]
    right = rng.random(total) < expit(2.0 * difference / difference.std())
    side = np.where(np.stack([right, ~right], axis=1).reshape(-1), "chosen", "rejected")
    index_of_pair = np.repeat(np.arange(total, dtype=np.uint32), 2)
    responses = pl.DataFrame(
        {"pair_index": index_of_pair, "side": side, "text": "", "n_boundary": np.full(2 * total, 4, np.uint32)}
    )
    table = pl.DataFrame(
        {
            "pair_id": [f"pair-{i}" for i in range(total)],
            "prompt_id": [f"prompt-{i // 3}" for i in range(total)],
            "split": ["train"] * pairs + ["test"] * (total - pairs),
            "domain": [("safety", "chat", "privacy", "howto")[i % 4] for i in range(total)],
        }
    )
    margin = np.where(right, difference, -difference) + rng.normal(size=total) * difference.std()
    return ImpactInputs.of(arrays, table, responses, None, l2=l2, margin=margin)


def timed(name: str, work: Callable[[], object]) -> None:
    """Prints the time on the clock and the processor time of all threads: on a busy machine the second is the steadier one."""
    begin, used = time.perf_counter(), time.process_time()
    work()
    seconds, used = time.perf_counter() - begin, time.process_time() - used
    print(f"  {name:<66} {seconds:7.2f} s   processor {used:7.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000, help="training pairs")
    parser.add_argument("--features", type=int, default=9_216)
    parser.add_argument("--active", type=int, default=750, help="different features in an answer (the demo run: 759)")
    parser.add_argument("--l2", type=float, default=1.0, help="the head's penalty (the demo run: 1.0)")
    parser.add_argument("--point", action="store_true", help="only single points")
    parser.add_argument("--every-seed", action="store_true", help="also 100 different plans")
    options = parser.parse_args()
    _warm_up()
    inputs = synthetic_inputs(options.pairs, options.features, options.active, options.l2)
    one = FeatureSet("synthetic", tuple(range(16)), tuple(range(16, 32)), "")
    print(
        f"{options.pairs:,} training pairs x {options.features:,} features, {available_cores()} cores, l2 {options.l2:g}"
    )
    timed("differences (once)", lambda: inputs.differences)
    differences = inputs.differences
    assert isinstance(differences, SparseDifferences)
    print(f"  {differences.entries / options.pairs:,.0f} differing features a pair, {differences.entries:,} in all")
    timed("unchanged head from zero, with its preconditioner (once)", lambda: inputs.unchanged)
    for strategy, ratio, direction, action in (
        ("random", 0.05, "poison", "flip"),
        ("margin", 0.10, "poison", "flip"),
        ("set", 0.05, "denoise", "drop"),
    ):
        plan = make_plan(inputs, strategy=strategy, direction=direction, action=action, ratio=ratio, feature_set=one)
        timed(f"a point: {direction} by {action}, {strategy}, {ratio:.0%}", partial(preview, inputs, [plan]))
    if not options.point:
        timed("five folds for the strategy loss (once)", lambda: make_plan(
            inputs, strategy="loss", direction="poison", action="flip", ratio=0.01))  # fmt: skip
        plans = curve_plans(inputs, one, "poison", "flip", RATIOS, STRATEGIES, 5)
        timed(f"a full curve, {len(plans)} refits: plans and previews", lambda: preview(
            inputs, curve_plans(inputs, one, "poison", "flip", RATIOS, STRATEGIES, 5)))  # fmt: skip
        if options.every_seed:
            timed("100 refits of random plans", lambda: preview(
                inputs, curve_plans(inputs, None, "poison", "flip", RATIOS, ("random",), 20)))  # fmt: skip
    print(
        f"  gradient norm of the unchanged head {inputs.unchanged.gradient_norm:.1e} (refits: at most {inputs.settings.tolerance:g})"
    )
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def _warm_up() -> None:
    """Compiles the loops (the first time after an installation; later they come from numba's cache)."""
    small = synthetic_inputs(200, 300, 20, 1.0)
    preview(small, curve_plans(small, None, "poison", "flip", (0.05,), ("random", "loss"), 2))
    preview(small, curve_plans(small, None, "poison", "flip", (0.05,), ("margin",)))


if __name__ == "__main__":
    main()
