"""Whom a steering hits: SARM's single feature against the search, for every domain of a run, on its held-out pairs.

For each domain with at least 20 held-out pairs, four steerings made on the training pairs alone: SARM's recipe with its factor 2, the
same feature at the multiplier that uses up the search's bounds on side effects, the search, and the same search over random
features (mean of 20 draws, with the range over draws). Shifts are in standard deviations of the training answers' rewards.

    python -m benchmarks.steering_specificity [demo | RUN] [--draws N] [--write docs/steering.md]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from core.evaluate.specificity import Specificity, SteeringData, targets
from core.evaluate.steering_comparison import judge, random_steering, search_steering, single_feature, single_within
from core.rewards.steering_search import Bounds
from core.runs import find_run
from core.store.manifest import read_manifest
from core.store.reader import RunReader
from core.store.steerings import Steering

HEAD = (
    "| target (answers / prompts) | steering | features | target shift | complement shift | mean abs. | accuracy, points | "
    "in the slice | right / wrong | harmed |"
)


def lines(folder: Path, draws: int) -> list[str]:
    """The lines of the table and what stands around it."""
    bounds = Bounds()
    with RunReader.open(folder) as reader:
        data = SteeringData.of(reader)
        run = f"{reader.manifest.name} ({reader.manifest.run_id})"
    slices = [name for name in targets(data) if name.startswith("domain=")]
    held, prompts = data.used("held-out"), data.prompt
    rows, found, chance, ones = [], [], [], []
    by_s = []
    for name in slices:
        steering, seen = search_steering(data, name, bounds)
        unit = float(steering.how["unit"])
        by_s.append(search_steering(data, name, bounds, shortlist="s")[0].how["objective"])
        plain, within = single_feature(data, name), single_within(data, name, bounds)
        random = [random_steering(data, name, bounds, seed) for seed in range(draws)]
        judged = [judge(data, one, name) for one in random]
        found.append((steering, seen, unit))
        chance.append([_value(one.target.shift) / unit for one in judged])
        alone = judge(data, within, name)
        ones.append(_value(alone.target.shift) / unit)
        about = f"{name[7:]} ({seen.target.n} / {seen.target.n_prompts})"
        rows.append(_row(about, "SARM x 2", plain, judge(data, plain, name), unit))
        rows.append(_row("", "SARM within bounds", within, alone, unit))
        rows.append(_row("", "search", steering, seen, unit))
        rows.append(_random_row(random, judged, unit))
    objective = [one.how["objective"] for one, _, _ in found]
    kept = [_value(seen.target.shift) / unit for _, seen, unit in found]
    side = [_value(seen.complement.absolute) / unit for _, seen, unit in found]
    raised = [name for name, (_, seen, _) in zip(slices, found, strict=True) if _value(seen.target.low) > 0]
    lowered = [name for name, (_, seen, _) in zip(slices, found, strict=True) if _value(seen.target.high) < 0]
    better = sum(value > max(others) for value, others in zip(kept, chance, strict=True))
    over = sum(value > bounds.side for value in side)
    up = sum(_value(seen.accuracy.low) > 0 for _, seen, _ in found)
    down = sum(_value(seen.accuracy.high) < 0 for _, seen, _ in found)
    own_up = sum(_value(seen.slice_accuracy.low) > 0 for _, seen, _ in found)
    own_down = sum(_value(seen.slice_accuracy.high) < 0 for _, seen, _ in found)
    harmed = sum(bool(seen.harmed) for _, seen, _ in found)
    return [
        f"Run {run}: {int(held.sum()):,} held-out pairs of {len(np.unique(prompts[held])):,} prompts; bounds: mean |shift| {bounds.side:g}, "
        f"|mean shift| {bounds.drift:g}, sum of |m - 1| {bounds.total:g}, {bounds.candidates} candidates. Shifts in standard deviations of the "
        "reward, accuracy in points; 95 % intervals over prompts.",
        "",
        HEAD,
        "|---" * 10 + "|",
        *rows,
        "",
        f"- The search: mean shift of the target {np.mean(objective):.3f} on the training pairs, {np.mean(kept):.3f} on held-out ones (mean over "
        f"{len(slices)} domains); largest gap to the proven bound {100 * max(one.how['gap'] for one, _, _ in found):.2f} %. With candidates by |s| instead: "
        f"{np.mean(by_s):.3f} on the training pairs. Over random features: {np.mean(chance):.3f} held-out. SARM's feature within the same bounds: "
        f"{np.mean(ones):.3f} held-out.",
        f"- Held-out target shift above 0 (interval): {len(raised)} of {len(slices)} domains; below 0: {len(lowered)}. Larger than in every random draw: "
        f"{better} of {len(slices)}.",
        f"- Held-out mean |shift| of the complement above the bound of {bounds.side:g} that held on the training pairs: {over} of {len(slices)} (largest {max(side):.3f}).",
        f"- Held-out accuracy over all pairs: higher in {up}, lower in {down} of {len(slices)} searches (interval clear of 0); accuracy in the slice itself: higher in "
        f"{own_up}, lower in {own_down}. Some domain harmed in {harmed}.",
    ]


def _row(about: str, name: str, steering: Steering, seen: Specificity, unit: float) -> str:
    largest = max((abs(change.value) for change in steering.changes.values()), default=1.0)
    features = f"{len(steering)}" if len(steering) > 1 else f"{_only(steering)} x {largest:.3g}"
    own, every = seen.slice_accuracy, seen.accuracy
    cells = [
        about,
        name,
        features,
        _interval(seen.target.shift, seen.target.low, seen.target.high, 1 / unit, "+.3f"),
        _interval(seen.complement.shift, seen.complement.low, seen.complement.high, 1 / unit, "+.3f"),
        f"{_value(seen.complement.absolute) / unit:.3f}",
        _interval(every.change, every.low, every.high, 100, "+.1f"),
        _interval(own.change, own.low, own.high, 100, "+.1f"),
        f"{len(seen.fixed)} / {len(seen.broken)}",
        ", ".join(seen.harmed) or "none",
    ]
    return f"| {' | '.join(cells)} |"


def _random_row(random: list[Steering], judged: list[Specificity], unit: float) -> str:
    shift = np.array([_value(one.target.shift) for one in judged]) / unit
    other = np.array([_value(one.complement.shift) for one in judged]) / unit
    absolute = np.mean([_value(one.complement.absolute) for one in judged]) / unit
    accuracy = 100 * np.array([_value(one.accuracy.change) for one in judged])
    own = 100 * np.array([_value(one.slice_accuracy.change) for one in judged])
    cells = [
        "",
        f"search, random features ({len(random)} draws: mean, range)",
        f"{np.mean([len(one) for one in random]):.0f}",
        *(f"{values.mean():+.3f} ({values.min():+.3f} to {values.max():+.3f})" for values in (shift, other)),
        f"{absolute:.3f}",
        *(f"{values.mean():+.1f} ({values.min():+.1f} to {values.max():+.1f})" for values in (accuracy, own)),
        f"{np.mean([len(one.fixed) for one in judged]):.1f} / {np.mean([len(one.broken) for one in judged]):.1f}",
        f"{sum(bool(one.harmed) for one in judged)} of {len(judged)}",
    ]
    return f"| {' | '.join(cells)} |"


def _only(steering: Steering) -> str:
    return str(steering.features[0]) if len(steering) else "none"


def _value(value: float | None) -> float:
    """A figure that must be there: held-out pairs of several prompts give every one of them."""
    if value is None:
        raise SystemExit("A domain has too few held-out prompts for an interval.")
    return value


def _interval(value: float | None, low: float | None, high: float | None, factor: float, form: str) -> str:
    return f"{factor * _value(value):{form}} [{factor * _value(low):{form}}, {factor * _value(high):{form}}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="demo")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument(
        "--write", type=Path, help="put the lines between the markers <!-- RUN: begin --> and end of this file"
    )
    given = parser.parse_args()
    folder = find_run(given.run)
    text = "\n".join(lines(folder, given.draws))
    print(text)
    if given.write:
        name = read_manifest(folder).name
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, rest = given.write.read_text(encoding="utf-8").split(begin)
        after = rest.split(end)[1]
        given.write.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
