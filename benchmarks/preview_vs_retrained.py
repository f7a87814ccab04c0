"""How far a preview (head refit) can be trusted: the same plans previewed and really retrained, on real pairs.

A small run is built (SmolLM2 cut to a few blocks, SAE on its last one, head on features pooled by mean) on PKU-SafeRLHF pairs as
domain 'safety' and HH helpful pairs as domain 'helpful'. Its blocks and head are then trained again from the causal model for
every plan, with a head that starts at zero. Every finished point is kept: run the same command again to go on.

    python -m benchmarks.preview_vs_retrained ../shared/data --out preview_vs_retrained
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.stats

from core.build import build
from core.config import RewardTrainingConfig, RunConfig
from core.data.split import assign_splits
from core.impact.inputs import ImpactInputs, load_inputs
from core.impact.plans import Plan, make_plan
from core.impact.preview import measure, preview
from core.impact.retrain import Retrained, Retraining
from core.progress import RichProgress
from core.salience.sets import default_set
from core.store.reader import RunReader

SOURCES = {"safety": "pku_saferlhf_test_5k.parquet", "helpful": "hh_helpful_base_test.parquet"}
RATIOS = (0.2, 0.1, 0.05)
STRATEGIES = ("set", "random", "margin", "loss")
DRAWS = 2000
PROMPT_CHARACTERS = 480
"""Longer prompts are left out, so that what is trained on is answers and not the start of long conversations."""


def choose_pairs(data: Path, out: Path, train: int, test: int) -> Path:
    """Writes `train` + `test` pairs of each domain, split by prompt, as one file with the columns of the sources."""
    target = out / "pairs.parquet"
    if target.exists():
        return target
    frames = []
    for file in SOURCES.values():
        frame = pl.read_parquet(data / file).unique("pair_id", maintain_order=True)
        frame = frame.filter(pl.col("prompt").str.len_chars() <= PROMPT_CHARACTERS)
        sides = np.array(assign_splits([None] * len(frame), frame["prompt"].to_list(), 0.35).sides)
        order = np.random.default_rng(0).permutation(len(frame))
        picked = [order[sides[order] == side][:n] for side, n in (("train", train), ("test", test))]
        rows = np.sort(np.concatenate(picked))
        frames.append(frame[rows].with_columns(pl.Series("split", sides[rows])))
    out.mkdir(parents=True, exist_ok=True)
    pl.concat(frames, how="vertical_relaxed").write_parquet(target)
    return target


def run_config(arguments: argparse.Namespace, pairs: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "run",
            "runs": str(arguments.out),
            "pairs": {"source": str(pairs), "on_bad_rows": "skip", "max_prompt_tokens": 1024},
            "model": {
                "weights": "wheel",
                "layer": arguments.blocks,
                "max_length": arguments.max_length,
                "device": arguments.device,
            },
            "sae": {"latents": arguments.latents, "k": 27, "epochs": 3, "batch": 1024, "learning_rate": 1e-3},
            "head": {"pooling": "mean"},
        }
    )


def plans_of(inputs: ImpactInputs, reader: RunReader) -> list[Plan]:
    """Flips by every strategy at every ratio, the largest first, then drops."""
    safety = default_set(reader.salience("split=train", "boundary_sum"), sae=inputs.sae)
    wanted = [(name, "poison", "flip", ratio) for ratio in RATIOS for name in STRATEGIES]
    wanted += [(name, "denoise", "drop", 0.2) for name in ("set", "margin", "loss")]
    wanted += [("set", "denoise", "flip", 0.1)]
    return [
        make_plan(inputs, strategy=name, direction=direction, action=action, ratio=ratio, feature_set=safety)
        for name, direction, action, ratio in wanted
    ]


def spearman(points: pl.DataFrame, seed: int = 0) -> tuple[float, float, float]:
    """Rank correlation of the two changes with a 95 % percentile interval over plans drawn with replacement."""
    plans = points["plan"].unique(maintain_order=True).to_list()
    x, y = points["preview"].to_numpy(), points["retrained"].to_numpy()
    rows = [np.flatnonzero((points["plan"] == plan).to_numpy()) for plan in plans]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        take = np.concatenate([rows[i] for i in rng.integers(0, len(plans), len(plans))])
        if np.ptp(x[take]) > 0 and np.ptp(y[take]) > 0:
            drawn.append(scipy.stats.spearmanr(x[take], y[take]).statistic)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(scipy.stats.spearmanr(x, y).statistic), float(low), float(high)


def compare(
    inputs: ImpactInputs, plans: Sequence[Plan], baseline: Retrained, retrained: Sequence[Retrained]
) -> pl.DataFrame:
    """One row a plan and domain with both changes and their intervals."""
    columns = np.stack([baseline.rewards, *(one.rewards for one in retrained)], axis=1)
    measured = measure(inputs, columns)[1:]
    refits = {(row["plan"], row["domain"]): row for row in preview(inputs, plans).to_dicts()}
    rows = []
    for plan, of_plan in zip(plans, measured, strict=True):
        for row in of_plan:
            refit = refits[plan.id, str(row["domain"])]
            rows.append(
                {
                    "plan": plan.id,
                    "what": f"{plan.strategy}, {plan.action} {plan.ratio:.0%}, {plan.direction}",
                    "changed": len(plan.edits),
                    "domain": row["domain"],
                    "n": row["n"],
                    "preview": refit["accuracy_change"],
                    "preview_low": refit["change_low"],
                    "preview_high": refit["change_high"],
                    "retrained": row["accuracy_change"],
                    "retrained_low": row["change_low"],
                    "retrained_high": row["change_high"],
                }
            )
    return pl.DataFrame(rows)


def report(
    inputs: ImpactInputs, points: pl.DataFrame, baseline: Retrained, second: Retrained | None, title: str
) -> str:
    """The tables as Markdown."""
    domains = [name for name in points["domain"].unique(maintain_order=True) if name != "all"]
    lines = [title, "", "Accuracy change on held-out pairs against unchanged pairs, 95 % intervals over prompts:", ""]
    lines += [f"| plan | {' | '.join(f'{d}: preview | {d}: retrained' for d in domains)} |"]
    lines += ["|---" * (1 + 2 * len(domains)) + "|"]
    for plan in points["plan"].unique(maintain_order=True):
        cells = []
        for domain in domains:
            row = points.filter(plan=plan, domain=domain).row(0, named=True)
            cells += [_cell(row, "preview"), _cell(row, "retrained")]
        lines.append(f"| {points.filter(plan=plan)['what'][0]} | {' | '.join(cells)} |")
    head = preview(inputs, []).to_dicts()
    none = measure(inputs, np.stack([baseline.rewards], axis=1))[0]
    accuracy = {str(row["domain"]): (f"{row['accuracy']:.3f}", f"{row['n']:,}") for row in none}
    refit = {str(row["domain"]): f"{row['accuracy']:.3f}" for row in head}
    lines += ["", "| domain | held-out pairs | unchanged: head | unchanged: retrained | second seed | Spearman | MAE |"]
    lines += ["|---|---|---|---|---|---|---|"]
    other = measure(inputs, np.stack([baseline.rewards, second.rewards], axis=1))[1] if second else []
    changes = {str(row["domain"]): f"{row['accuracy_change']:+.3f}" for row in other}
    for domain in (*domains, "safety and helpful"):
        some = points.filter(pl.col("domain").is_in(domains) if domain not in domains else pl.col("domain") == domain)
        value, low, high = spearman(some) if len(some) > 3 else (float("nan"),) * 3
        error = float((some["preview"] - some["retrained"]).abs().mean())  # type: ignore[arg-type]
        key = domain if domain in domains else "all"
        lines.append(
            f"| {domain} | {accuracy[key][1]} | {refit[key]} | {accuracy[key][0]} | {changes.get(key, 'not trained')} | "
            f"{value:.2f} [{low:.2f}, {high:.2f}] ({len(some)}) | {error:.3f} |"
        )
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any], kind: str) -> str:
    return f"{row[kind]:+.3f} [{row[f'{kind}_low']:+.3f}, {row[f'{kind}_high']:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the two Parquet files")
    parser.add_argument("--out", type=Path, default=Path("preview_vs_retrained"))
    parser.add_argument("--train", type=int, default=500, help="training pairs of each domain")
    parser.add_argument("--test", type=int, default=600, help="held-out pairs of each domain")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--latents", type=int, default=4608)
    parser.add_argument("--max-length", type=int, default=160)
    parser.add_argument("--scope", default="lora")
    parser.add_argument("--learning-rate", type=float, default=None)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only-baseline", action="store_true")
    arguments = parser.parse_args()
    progress = RichProgress()
    config = run_config(arguments, choose_pairs(arguments.data, arguments.out, arguments.train, arguments.test))
    build(config, progress)
    with RunReader.open(config.folder) as reader:
        inputs = load_inputs(reader)
        settings = RewardTrainingConfig(
            scope=arguments.scope, epochs=arguments.epochs, learning_rate=arguments.learning_rate
        )
        retraining = Retraining(reader, inputs, settings, progress)
        baseline = retraining.baseline()
        print(json.dumps(baseline.facts), flush=True)
        title = f"{arguments.blocks} blocks of SmolLM2-135M, {json.dumps(baseline.facts)}"
        if arguments.only_baseline:
            for row in measure(inputs, np.stack([baseline.rewards], axis=1))[0]:
                print(row["domain"], row["n"], row["accuracy"], row["mean_margin"])
            return
        plans = plans_of(inputs, reader)
        done: list[Retrained] = []
        second: Retrained | None = None
        for plan in plans:
            done.append(retraining.retrain(plan))
            if len(done) == len(STRATEGIES):  # the noise floor is known once the first strategies are
                again = settings.model_copy(update={"seed": 1})
                second = Retraining(reader, inputs, again, progress).baseline()
            points = compare(inputs, plans[: len(done)], baseline, done)
            points.write_csv(arguments.out / "points.csv")
            text = report(inputs, points, baseline, second, title)
            (arguments.out / "table.md").write_text(text, encoding="utf-8")
            print(f"{len(done)} of {len(plans)} plans", flush=True)
        print(text)


if __name__ == "__main__":
    main()
