"""Denoising with a known answer: flip some training pairs of a real run, then see which strategy finds them.

    python -m benchmarks.denoising runs/pku runs/harmless
    python -m benchmarks.denoising demo --noise 0.1 --seeds 3

For each share of noise the labels of that many training pairs are flipped, at random or category by category (a category is taken whole
before the next one, as when its annotators had the rule upside down). Nothing is known of the clean labels from there on: the head is
fitted on the noisy pairs, its margins, its folds and the set (the highest |s| of the noisy training pairs) come from them. Only the ridge
strength is the run's, unless --choose-l2. Every strategy then ranks the training pairs as for denoising, and

    AUROC      chance that a flipped pair stands before an unflipped one (0.5 = blind)
    precision  share of flipped pairs among the first n, n = the number flipped (recall is the same number; blind = the share of noise)
    dropped    held-out accuracy when the first n pairs are dropped and the head is fitted again
    flipped    the same when they are flipped instead

Held-out pairs keep their labels. Figures are means over seeds with 95 % t intervals over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from scipy import stats
from sklearn.metrics import roc_auc_score

from core.impact.inputs import ImpactInputs, load_inputs
from core.impact.plans import plan_from_ranking
from core.impact.preview import preview
from core.impact.strategies import STRATEGIES, rank_pairs, suspected_errors
from core.rewards.accuracy import pair_outcome
from core.runs import find_run
from core.salience.scores import safer_salience
from core.store.reader import RunReader
from core.store.sets import FeatureSet

KINDS = ("random", "category")


def wrong_pairs(train: np.ndarray, category: np.ndarray, share: float, kind: str, seed: int) -> np.ndarray:
    """Which training pairs are flipped: bool [n_pairs], floor(N share) of them."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    order = rng.permutation(np.flatnonzero(train))
    if kind == "category":
        names = rng.permutation(np.unique(category[train]))
        place = {name: i for i, name in enumerate(names)}
        order = order[np.argsort([place[name] for name in category[order]], kind="stable")]
    wrong = np.zeros(len(train), bool)
    wrong[order[: int(len(order) * share)]] = True
    return wrong


def with_noise(clean: ImpactInputs, wrong: np.ndarray, choose_l2: bool) -> ImpactInputs:
    """The same run with those pairs' answers on the other side, and everything that depends on labels made anew."""
    chosen = clean.chosen ^ wrong[clean.response_pair]
    noisy = replace(
        clean,
        chosen=chosen,
        head=None if clean.kind == "classifier" else clean.unchanged.weights,  # where the fit starts, not where it ends
        fixed_l2=None if choose_l2 else clean.l2,
        data_sha256=f"{clean.data_sha256}-noisy",
    )
    rewards = np.asarray(clean.features @ noisy.unchanged.weights)
    margin = pair_outcome(rewards, clean.response_pair, chosen)[1]
    made = replace(noisy, margin=margin)
    made.__dict__["unchanged"] = noisy.unchanged  # the margin does not change the fit
    made.__dict__["differences"] = noisy.differences
    return made


def salient_set(inputs: ImpactInputs, size: int) -> FeatureSet:
    """SAFER's set from these labels: the `size` highest |s| over the training pairs, by sign."""
    rows = inputs.train[inputs.response_pair]
    sums = [
        np.asarray(inputs.boundary[np.flatnonzero(rows & side)].sum(axis=0), np.float64).reshape(-1)
        for side in (inputs.chosen, ~inputs.chosen)
    ]
    s = safer_salience(*sums)
    top = [int(f) for f in np.argsort(-np.abs(np.nan_to_num(s)), kind="stable")[:size] if s[f] != 0]
    return FeatureSet("salient", tuple(f for f in top if s[f] > 0), tuple(f for f in top if s[f] < 0), inputs.sae)


def one_draw(
    clean: ImpactInputs, category: np.ndarray, share: float, kind: str, seed: int, choose_l2: bool
) -> pl.DataFrame:
    """Every strategy on one draw of noise: a row a strategy."""
    wrong = wrong_pairs(clean.train, category, share, kind, seed)
    noisy = with_noise(clean, wrong, choose_l2)
    own = salient_set(noisy, clean.impact.set_size)
    n = int(wrong.sum())
    plans, rows = [], []
    for strategy in STRATEGIES:
        ranking = rank_pairs(noisy, strategy, feature_set=own, direction="denoise", seed=seed)
        ranked = ranking.pair_index
        rows.append(
            {
                "kind": kind,
                "share": share,
                "strategy": strategy,
                "n": n,
                "auroc": roc_auc_score(wrong[ranked], -ranking.score[ranked]) if 0 < n < len(ranked) else None,
                "precision": float(wrong[ranked[:n]].mean()),
            }
        )
        plans += [
            plan_from_ranking(noisy, ranked, strategy, "denoise", action, n / int(clean.train.sum()), seed, own)
            for action in ("drop", "flip")
        ]
    points = preview(noisy, plans).filter(domain="all")
    after = dict(points.select("plan", "accuracy").iter_rows())
    accuracy = [after[plan.id] for plan in plans]
    return pl.DataFrame(rows).with_columns(
        noisy=after["none"],
        dropped=pl.Series(accuracy[::2]),
        flipped=pl.Series(accuracy[1::2]),
        suspected=suspected_errors(noisy),
    )


def interval(values: Sequence[float], digits: int = 3) -> str:
    """Mean and 95 % t interval over seeds."""
    known = np.array([value for value in values if value is not None], float)
    if not len(known):
        return "not defined"
    mean = f"{known.mean():.{digits}f}"
    if len(known) < 2:
        return mean
    half = stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known))
    return f"{mean} [{known.mean() - half:.{digits}f}, {known.mean() + half:.{digits}f}]"


def report(
    name: str, clean: ImpactInputs, category: np.ndarray, shares: Sequence[float], seeds: int, choose: bool
) -> None:
    """Prints the table of one run."""
    start = preview(clean, []).filter(domain="all").row(0, named=True)
    n_train = int(clean.train.sum())
    print(
        f"\n{name}: {n_train:,} training pairs, {len(np.unique(category[clean.train]))} categories; held-out accuracy with clean labels "
        f"{start['accuracy']:.3f} [{start['accuracy_low']:.3f}, {start['accuracy_high']:.3f}] (n {start['n']}); {seeds} seeds\n"
    )
    print("| noise | flipped | strategy | AUROC | precision at n | noisy | dropped | flipped back |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in KINDS:
        for share in shares:
            draws = [one_draw(clean, category, share, kind, seed, choose) for seed in range(seeds)]
            found = pl.concat(draws)
            for (strategy,), rows in found.group_by(["strategy"], maintain_order=True):
                cells = [
                    interval(rows[column].to_list()) for column in ("auroc", "precision", "noisy", "dropped", "flipped")
                ]
                print(f"| {kind} {share:.0%} | {rows['n'][0]} | {strategy} | {' | '.join(cells)} |", flush=True)
            estimate = interval([draw["suspected"][0] for draw in draws], 0)
            print(
                f"| {kind} {share:.0%} | {found['n'][0]} | *suspected by confident learning: {estimate}* | | | | | |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="names or folders of runs")
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0.05, 0.10, 0.20], help="shares of training pairs flipped"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--choose-l2", action="store_true", help="choose the ridge strength on the noisy pairs (slow)")
    options = parser.parse_args()
    for name in options.runs:
        with RunReader.open(find_run(name)) as reader:
            clean = load_inputs(reader)
            pairs = reader.table("pair")
        category = pairs.select(pl.coalesce("category", "domain")).to_series().to_numpy()
        report(Path(name).name, clean, category, options.noise, options.seeds, options.choose_l2)


if __name__ == "__main__":
    main()
