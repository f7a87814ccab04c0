"""Salience of 100,000 pairs x 65,536 features, from memory-mapped arrays: seconds and peak memory.

Writes a synthetic store (densities of a power law, about 220 active features in an answer, two pairs to a prompt) and
measures in a process of its own: scores and intervals, then the permutation screen with 1,000 draws. Compiling the loops
is not counted; it happens once for each installation. The numbers in the store mean nothing; its size does.

    python -m benchmarks.salience [--pairs N] [--features M] [--poolings mean ...]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl

from core.store.arrays import Pool, RunArrays

POOLINGS: tuple[Pool, ...] = ("last", "mean", "max", "boundary_sum")
LIMITS = {"scores and intervals": 10.0, "permutation screen": 60.0}


def generate(folder: Path, pairs: int, features: int, active: float) -> None:
    """Writes pooled activations and the frames of pairs and answers into `folder`."""
    rng = np.random.default_rng(0)
    answers = 2 * pairs
    density = (1.0 + np.arange(features)) ** -0.8
    scale = active / density.sum()
    for _ in range(50):  # densities above 0.9 are cut, the others take up what is missing
        scale *= active / np.minimum(density * scale, 0.9).sum()
    density = rng.permutation(np.minimum(density * scale, 0.9))
    counts = rng.binomial(answers, density)
    keys = []
    for feature in range(features):
        who = rng.choice(answers, counts[feature], replace=False, shuffle=False)
        keys.append(who.astype(np.int64) * features + feature)
    answer, feature_of = np.divmod(np.sort(np.concatenate(keys)), features)
    n = len(answer)
    np.save(folder / "pooled_ptr.npy", np.searchsorted(answer, np.arange(answers + 1)).astype(np.int64))
    np.save(folder / "pooled_features.npy", feature_of.astype(np.uint32))
    largest = rng.gamma(2.0, 1.0, n).astype(np.float32)
    np.save(folder / "max.npy", largest)
    np.save(folder / "mean.npy", largest * rng.random(n, np.float32))
    np.save(folder / "last.npy", np.where(rng.random(n, np.float32) < 0.04, largest, 0).astype(np.float32))
    np.save(folder / "boundary_sum.npy", np.where(rng.random(n, np.float32) < 0.1, 2 * largest, 0).astype(np.float32))
    index = np.arange(pairs)
    pl.DataFrame(
        {
            "pair_id": [f"pair-{i}" for i in index],
            "prompt_id": [f"prompt-{i // 2}" for i in index],
            "split": np.where(index % 5 == 0, "test", "train"),
            "domain": "chat",
            "category": pl.Series([None] * pairs, dtype=pl.String),
            "labels": "{}",
        }
    ).write_parquet(folder / "pair.parquet")
    tokens = rng.integers(10, 400, answers)
    pl.DataFrame(
        {
            "pair_id": [f"pair-{i}" for i in np.repeat(index, 2)],
            "side": np.tile(["chosen", "rejected"], pairs),
            "n_tokens": tokens,
            "n_boundary": tokens // 12,
        }
    ).write_parquet(folder / "response.parquet")


def open_arrays(folder: Path, features: int) -> RunArrays:
    """The pooled activations, memory-mapped; no token arrays, which salience does not read."""
    pooled = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pooled_ptr", "pooled_features", *POOLINGS)
    }
    empty = np.empty(0)
    return RunArrays(
        token_start=np.arange(len(pooled["pooled_ptr"])), token_ids=empty, token_char=empty, token_boundary=empty,
        token_features=empty, token_values=empty, truncated=empty, states=None, latents=features, **pooled,
    )  # fmt: skip


def measure(folder: Path, features: int, poolings: list[Pool], draws: int) -> list[dict[str, object]]:
    """Seconds of each step; run in a process of its own."""
    from core.salience.differences import PairColumns, PairLayout, PromptColumns, SlicePrompts
    from core.salience.scores import benjamini_hochberg, effects, safer_salience
    from core.salience.signflip import family_p, random_signs, signflip_p
    from core.salience.slices import ALL, Slice
    from core.salience.table import replication

    rows: list[dict[str, object]] = []
    pairs, responses = pl.read_parquet(folder / "pair.parquet"), pl.read_parquet(folder / "response.parquet")
    arrays = open_arrays(folder, features)
    for pooling in poolings:
        seconds: dict[str, tuple[float, float]] = {}

        @contextmanager
        def step(name: str, seconds: dict[str, tuple[float, float]] = seconds) -> Iterator[None]:
            begin, busy = time.perf_counter(), time.process_time()
            yield
            seconds[name] = time.perf_counter() - begin, time.process_time() - busy

        with step("differences of pairs"):
            layout = PairLayout.of(pairs, responses)
            columns = PairColumns.of(arrays, layout, pooling)
            part = SlicePrompts.of(Slice(ALL, np.ones(len(pairs), bool)), layout)
        with step("means over prompts"):
            prompts = PromptColumns.of(columns, part, 0)
        with step("s, effects, intervals, AUC, length"):
            figures = effects(prompts, part.second_half, part.length(pooling))
            tested = prompts.n_active.sum(axis=1) >= 30
            safer_salience(prompts.chosen, prompts.rejected)
            benjamini_hochberg(np.where(tested, figures.p_adjusted, np.nan))
        scored = np.sum(list(seconds.values()), axis=0)
        with step("sign-flip p and q"):
            p = signflip_p(prompts, tested)
            benjamini_hochberg(p)
        with step("replication on the second half"):
            replication(prompts, part.second_half, tested, 30, figures)
        with step(f"largest statistic, {draws} draws"):
            family_p(prompts, tested, random_signs(part.n_prompts, draws, 0))
        screened = np.sum(list(seconds.values()), axis=0) - scored
        totals = {"scores and intervals": scored.tolist(), "permutation screen": screened.tolist()}
        about = {
            "features tested": int(tested.sum()),
            "values of pairs": len(columns.pair),
            "of prompts": len(prompts.prompt),
        }
        rows.append({"pooling": pooling, "seconds": seconds, "totals": totals, "about": about})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=65_536)
    parser.add_argument("--active", type=float, default=220.0, help="active features in an answer")
    parser.add_argument("--poolings", nargs="+", choices=POOLINGS, default=["mean"])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--step", choices=("generate", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "generate":
        generate(options.folder, options.pairs, options.features, options.active)
    elif options.step == "measure":
        rows = measure(options.folder, options.features, options.poolings, options.draws)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (30 if sys.platform == "darwin" else 20))
        print(json.dumps({"rows": rows, "peak_gib": peak}))
    else:
        with tempfile.TemporaryDirectory() as folder:
            _in_processes(options, Path(folder))


def _in_processes(options: argparse.Namespace, folder: Path) -> None:
    def call(pairs: int, features: int, step: str) -> str:
        command = [sys.executable, "-m", "benchmarks.salience", "--step", step, "--folder", str(folder)]
        command += [
            "--pairs",
            str(pairs),
            "--features",
            str(features),
            "--active",
            str(min(options.active, features / 8)),
        ]
        command += ["--draws", str(options.draws), "--poolings", *options.poolings]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    call(200, 512, "generate")  # compiles the loops
    call(200, 512, "measure")
    call(options.pairs, options.features, "generate")
    result = json.loads(call(options.pairs, options.features, "measure"))
    print(f"{options.pairs:,} pairs x {options.features:,} features, {options.active:g} active in an answer")
    for row in result["rows"]:
        print(f"\npooling {row['pooling']}: " + ", ".join(f"{n:,} {name}" for name, n in row["about"].items()))
        for name, (seconds, busy) in row["seconds"].items():
            print(f"  {name:38} {seconds:7.2f} s {busy:7.2f} s of CPU")
        for name, (seconds, busy) in row["totals"].items():
            print(f"  {name + ' together':38} {seconds:7.2f} s {busy:7.2f} s of CPU (aim: at most {LIMITS[name]:g} s)")
    print(f"\npeak memory {result['peak_gib']:.2f} GiB (aim: at most 8 GiB)")


if __name__ == "__main__":
    main()
