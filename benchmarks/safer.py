"""SAFER's claim on a run: do targeted flips lower safety accuracy faster than random ones while the rest stays?

For each strategy and ratio: held-out accuracy per domain, and its difference to random flips of as many pairs (mean over seeds),
paired by pair, with a 95 % interval over prompts. The refits are exact; the model itself is not trained again.

    python -m benchmarks.safer runs/safer --ratios 0.05,0.1,0.2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from core.impact.curve import curve_plans
from core.impact.inputs import load_inputs
from core.impact.preview import held_out_rewards, refit_plans
from core.rewards.accuracy import cluster_bootstrap, pair_outcome
from core.salience.sets import set_by_salience
from core.store.reader import RunReader

STRATEGIES = ("set", "margin", "loss", "length", "random")
SEEDS = 10


def table(folder: Path, ratios: list[float], size: int, order: str, slice_: str, pooling: str) -> list[str]:
    """The lines of a Markdown table."""
    with RunReader.open(folder) as reader:
        inputs = load_inputs(reader)
        rows = reader.salience(slice_, pooling)
    max_q = None if order == "s" else 0.05
    one = set_by_salience(
        rows, name=order, sae=inputs.sae, size=size, order=order, max_q=max_q, slice=slice_, pooling=pooling
    )
    plans = curve_plans(inputs, one, "poison", "flip", ratios, STRATEGIES, SEEDS)
    weights = np.concatenate([inputs.unchanged.weights[:, None], refit_plans(inputs, plans)], axis=1)
    held = np.flatnonzero(~inputs.train)
    place = np.full(len(inputs.train), -1)
    place[held] = np.arange(len(held))
    answers = ~inputs.train[inputs.response_pair]
    pair, chosen = place[inputs.response_pair[answers]], inputs.chosen[answers]
    rewards = held_out_rewards(inputs, weights)
    correct = np.stack([pair_outcome(rewards[:, i], pair, chosen)[0] for i in range(rewards.shape[1])], axis=1)
    domain, prompt = inputs.domain[held], inputs.prompt[held]
    names = sorted(set(domain))

    def cell(values: np.ndarray, name: str, signed: bool) -> str:
        here = domain == name
        found = cluster_bootstrap(values[here], prompt[here], draws=2000, seed=0)
        form = "+.3f" if signed else ".3f"
        return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"

    head = " | ".join(f"{name} (n={int((domain == name).sum())}) | against random" for name in names)
    lines = [
        f"Set: {len(one.plus)} in S+, {len(one.minus)} in S-, by {order} on {slice_}, {pooling}; {int(inputs.train.sum()):,} training pairs.",
        "",
    ]
    lines += [f"| flipped | {head} |", "|---" * (1 + 2 * len(names)) + "|"]
    nothing = " | ".join(f"{cell(correct[:, 0], name, False)} | " for name in names)
    lines.append(f"| nothing | {nothing}|")
    for ratio in ratios:
        same = [i + 1 for i, plan in enumerate(plans) if plan.strategy == "random" and plan.ratio == ratio]
        random = correct[:, same].mean(axis=1)
        for strategy in STRATEGIES[:-1]:
            at = next(i + 1 for i, plan in enumerate(plans) if plan.strategy == strategy and plan.ratio == ratio)
            cells = [
                f"{cell(correct[:, at], name, False)} | {cell(correct[:, at] - random, name, True)}" for name in names
            ]
            lines.append(f"| {strategy}, {ratio:.0%} | {' | '.join(cells)} |")
        lines.append(
            f"| random, {ratio:.0%}, {SEEDS} seeds | {' | '.join(cell(random, name, False) + ' | ' for name in names)}|"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--ratios", default="0.05,0.1,0.2")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument(
        "--order", default="s", choices=["s", "effect_size"], help="effect_size also asks for q <= 0.05"
    )
    parser.add_argument("--slice", default="split=train", help="'train domain=safety' for the safety pairs alone")
    parser.add_argument("--pooling", default="boundary_sum")
    arguments = parser.parse_args()
    ratios = [float(ratio) for ratio in arguments.ratios.split(",")]
    lines = table(arguments.run, ratios, arguments.size, arguments.order, arguments.slice, arguments.pooling)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
