"""Does salience find what is planted in the built-in set? One row for each property, on the demo run.

For each property: the training pairs in which exactly one side has it (the side that has it more often) are the slice;
its features with q < 0.05 are ranked by |effect_size|. Whether a feature detects the property is judged on the answers of
held-out prompts: AUC of its activation, or of its absence where that is what the effect says, for answers with the
property against all others of which it is known. A feature detects it when that AUC is at least 0.65 with a 95 % interval
(bootstrap of prompts) above 0.5. The best of the 20, and of all features, is chosen on the training answers, so that its
held-out AUC is not flattered.

    python -m benchmarks.planted [--run FOLDER] [--pooling max]
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import polars as pl
from scipy.stats import rankdata

from core.config import SalienceConfig
from core.data.builtin.properties import PROPERTIES
from core.runs import find_run
from core.salience.differences import PairColumns, PairLayout, SlicePrompts
from core.salience.signflip import random_signs
from core.salience.slices import Slice
from core.salience.table import slice_frame
from core.store.arrays import Pool
from core.store.reader import RunReader

TOP, DETECTS, DRAWS = 20, 0.65, 1000
RARE_MIN_ACTIVE = 6
"""Properties with too few pairs for the usual rule are tested from so many active pairs on; the table marks them."""


def property_of_answers(pairs: pl.DataFrame, responses: pl.DataFrame, name: str) -> np.ndarray:
    """float64 [n_responses]: 1 where the answer has the property, 0 where not, NaN where that is not known."""
    labels = dict(zip(pairs["pair_id"], map(json.loads, pairs["labels"]), strict=True))
    values = []
    for pair, side, rank in responses.select("pair_id", "side", "rank").iter_rows():
        row = labels[pair]
        known = row[f"{side}_{name}"] is not None
        values.append(float(name in row[f"{side}_properties"][rank]) if known else np.nan)
    return np.array(values)


def auc(values: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Chance that an answer with the property has more of a feature than one without, ties one half; [n, M] -> [M]."""
    n1, n0 = positive.sum(), (~positive).sum()
    ranks = rankdata(values, axis=0)
    return np.asarray((ranks[positive].sum(axis=0) - n1 * (n1 + 1) / 2) / (n1 * n0))


def auc_interval(values: np.ndarray, positive: np.ndarray, prompt: np.ndarray, draws: int) -> tuple[float, float]:
    """95 % interval of the AUC of one feature [n], whole prompts drawn with replacement."""
    _, cluster = np.unique(prompt, return_inverse=True)
    n = cluster.max() + 1
    rng = np.random.default_rng(0)
    times = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(draws)])[:, cluster]
    _, level = np.unique(values, return_inverse=True)
    with_it, without = (
        np.stack([np.bincount(level, weights=row, minlength=level.max() + 1) for row in times * side])
        for side in (positive, ~positive)
    )
    below = np.cumsum(without, axis=1) - without / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (with_it * below).sum(axis=1) / (with_it.sum(axis=1) * without.sum(axis=1))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="name or folder of a run on the built-in set; the demo run unless given")
    parser.add_argument("--pooling", choices=("last", "mean", "max", "boundary_sum"), default="max")
    parser.add_argument("--min-active", type=int, default=SalienceConfig().min_active)
    options = parser.parse_args()
    pooling: Pool = options.pooling
    with RunReader.open(find_run(options.run or "demo")) as reader:
        pairs, responses, arrays = reader.table("pair"), reader.table("response"), reader.arrays
        split = pairs["split"].to_numpy()
        owner = responses["pair_index"].to_numpy()
        values = arrays.pooled(pooling).toarray()
    prompt = pairs["prompt_id"].to_numpy()[owner]
    layout = PairLayout.of(pairs, responses)
    columns = PairColumns.of(arrays, layout, pooling)
    print(
        "| property | slice: pairs, prompts | significant | detectors in the top 20 | best of them | held-out AUC "
        "| best 20 detectors found | best of all features | answers with / without |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in PROPERTIES:
        has = property_of_answers(pairs, responses, name)
        sides = {
            side: _mean_by_pair(has, owner, responses["side"].to_numpy() == side) for side in ("chosen", "rejected")
        }
        differs = {
            side: (split == "train") & (sides[side] == 1) & (sides[other] == 0)
            for side, other in (("chosen", "rejected"), ("rejected", "chosen"))
        }
        side = max(differs, key=lambda one: differs[one].sum())
        print(
            _row(
                name,
                side,
                differs[side],
                has,
                values,
                prompt,
                split[owner],
                columns,
                layout,
                pooling,
                options.min_active,
            )
        )


def _row(name, side, member, has, values, prompt, split, columns, layout, pooling, min_active) -> str:  # type: ignore[no-untyped-def]
    part = SlicePrompts.of(Slice(f"{side}_{name}", member), layout)
    about = f"| {name} | {side}: {part.n_pairs}, {part.n_prompts} "
    held, seen = ((split == which) & ~np.isnan(has) for which in ("test", "train"))
    positive = has[held] == 1
    counts = f"{positive.sum()} / {(~positive).sum()}"
    if part.n_pairs < min_active:
        about, min_active = about + "* ", RARE_MIN_ACTIVE
    frame = slice_frame(columns, part, pooling, min_active, random_signs(part.n_prompts, 100, 0))
    found = frame.filter(pl.col("q") < 0.05)
    top = found.sort(pl.col("effect_size").abs(), "feature_id", descending=[True, False]).head(TOP)
    strength = auc(values[held], positive)
    best = set(np.argsort(-np.abs(strength - 0.5), kind="stable")[:TOP].tolist())
    towards = 1 if side == "chosen" else -1
    detectors, best_seen, best_text = 0, -1.0, "none | "
    for feature, effect in top.select("feature_id", "effect").iter_rows():
        sign = 1 if effect * towards > 0 else -1
        shown = float(auc(sign * values[held][:, [feature]], positive)[0])
        low, high = auc_interval(sign * values[held][:, feature], positive, prompt[held], DRAWS)
        detectors += shown >= DETECTS and low > 0.5
        seen_auc = float(auc(sign * values[seen][:, [feature]], has[seen] == 1)[0])
        if seen_auc > best_seen:
            best_seen, best_text = seen_auc, f"{feature} | {shown:.2f} [{low:.2f}, {high:.2f}]"
    on_training = auc(values[seen], has[seen] == 1)
    overall = int(np.argmax(np.abs(on_training - 0.5)))
    ceiling = strength[overall] if on_training[overall] > 0.5 else 1 - strength[overall]
    recall = len(best & set(top["feature_id"].to_list()))
    return f"{about}| {len(found):,} | {detectors} of {len(top)} | {best_text} | {recall} of {TOP} | {ceiling:.2f} | {counts} |"


def _mean_by_pair(has: np.ndarray, owner: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """float64 [n_pairs]: the mean of an answer property over one side of each pair, NaN where one is not known."""
    return np.asarray(np.bincount(owner[mine], weights=has[mine]) / np.bincount(owner[mine]))


if __name__ == "__main__":
    main()
