"""Causal checks of a safety set as tables: each feature, and attribution against ablation.

What `rewardscope ablate` measured before is used; --force measures again.

    python -m benchmarks.causal runs/pku-rm --set safety
    python -m benchmarks.causal runs/demo --set safety --method residual --pairs 48
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from core.commands.ablate import check_head, check_residual, find_set
from core.rewards.ablation_plan import is_classifier
from core.rewards.rank_correlation import RankCorrelation
from core.store.reader import RunReader
from core.store.review import ReviewStore


def interval(row: dict[str, Any], low: str, high: str) -> str:
    """Two figures of a row as an interval."""
    return f"[{number(row[low])}, {number(row[high])}]"


def number(value: float | None) -> str:
    return "missing" if value is None else f"{value:+.4f}"


def print_features(facts: dict[str, Any]) -> None:
    """One line a feature, largest effect first."""
    print("| feature | set | attribution | effect [95 %] | matched random features | pairs | verdict |")
    print("|---|---|---|---|---|---|---|")
    for row in facts["features"]:
        side = "S+" if row["sign"] > 0 else "S-"
        if row["verdict"] == "not checked":
            print(f"| {row['feature']} | {side} | | | | | not checked: {row['why']} |")
            continue
        effect = f"{number(row['effect'])} {interval(row, 'ci_low', 'ci_high')}"
        random = f"{interval(row, 'random_low', 'random_high')}, n = {row['n_random']}"
        verdict = row["verdict"] + (f": {row['why']}" if row["why"] else "")
        print(
            f"| {row['feature']} | {side} | {number(row['attribution'])} | {effect} | {random} | {row['n_pairs']} | {verdict} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", dest="name", required=True, help="a stored set or a file")
    parser.add_argument("--method", choices=("head", "residual"))
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--random", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--force", action="store_true")
    given = parser.parse_args()
    store = ReviewStore(given.run.parent)
    begin = time.monotonic()
    with RunReader.open(given.run) as reader:
        one = find_set(given.name, reader, store)
        if (given.method or ("residual" if is_classifier(reader) else "head")) == "head":
            facts = check_head(reader, one, store)
        else:
            settings = {name: getattr(given, name) for name in ("pairs", "random", "seed", "device", "force")}
            facts = check_residual(reader, one, store, **settings, quiet=False)
    print_features(facts)
    members, missing = facts["n_checked"], sum(row["verdict"] == "not checked" for row in facts["features"])
    print(f"\n{facts['n_verified']} of {members} verified, {missing} not checked; {time.monotonic() - begin:.0f} s.")
    for name, found in facts["rank_correlation"].items():
        print(f"Spearman's correlation of attribution with ablation, {name}: {RankCorrelation(**found)}.")


if __name__ == "__main__":
    main()
