"""SARM's ablation on real pairs: the same decoder blocks trained below a plain linear head and below frozen SAEs that were
drawn at random, trained on tokens, and trained on sentence ends. Held-out accuracy and RewardBench-style sections.

    python -m benchmarks.sarm_ablation benchmarks/configs/sarm_ablation.yaml --data ../shared/data --out ablation

sarm_ablation_8b.yaml is the same at the paper's size, for a CUDA machine with the Hub at hand.
Every step is the command a user would give (`pretrain`, `train`, `evaluate`); what is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from benchmarks.markers import put_between
from core.models.sarm_file import FACTS
from core.rewards.accuracy import cluster_bootstrap
from core.rewards.train_sarm import HELD_OUT


def rewardscope(*arguments: str | Path, folder: Path) -> Any:
    """What a command prints with --json; its progress and sentences go to standard error."""
    command = [sys.executable, "-m", "core", *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stdout}")
    return json.loads(done.stdout)


def run_arms(config: dict[str, Any], data: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Trains and measures every arm; what each is made of is written beside it.

    Returns:
        by arm: `sae` (its row of the pretraining table, None for the plain head), `trained` (facts by training), `chosen` (the
        training with the best accuracy on held-back training prompts), and by benchmark the figures of `evaluate` for it.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_yaml(out / "saes.yaml", {**config["saes"], "texts": [local(data, text) for text in config["saes"]["texts"]]})
    table = {row["name"]: row for row in rewardscope("pretrain", "saes.yaml", folder=out)["entries"]}
    results: dict[str, dict[str, Any]] = {}
    for name, changes in config["arms"].items():
        sae = table.get(name)
        trained = {
            how: _trained(config, f"{name}-{how}", {**changes, **settings}, sae, data, out)
            for how, settings in config["trainings"].items()
        }
        chosen = max(trained, key=lambda how: float(trained[how]["best_accuracy"]))
        kept = out / f"{name}-{chosen}.figures.json"
        if not kept.is_file():
            kept.write_text(json.dumps(_figures(config, f"{name}-{chosen}", data, out), indent=2))
        results[name] = {"sae": sae, "trained": trained, "chosen": chosen, **json.loads(kept.read_text())}
    return results


def arm_run(
    config: dict[str, Any], name: str, changes: dict[str, Any], sae: dict[str, Any] | None, data: Path, out: Path
) -> dict[str, Any]:
    """The configuration that `rewardscope train` gets for an arm; `changes` are of reward_model.sarm."""
    run: dict[str, Any] = json.loads(json.dumps(config["run"]))
    run["name"] = name
    run["pairs"]["source"] = local(data, run["pairs"]["source"])
    run["reward_model"]["sarm"] |= changes
    if sae is not None:
        run["sae"] = {"checkpoint": str((out / sae["file"]).resolve()), "latents": sae["latents"], "k": sae["k"]}
    return run


def local(data: Path, name: str) -> str:
    """A file of the data folder, or else a dataset's name on the Hub."""
    return str(data / name) if (data / name).exists() else name


def _trained(
    config: dict[str, Any], name: str, changes: dict[str, Any], sae: dict[str, Any] | None, data: Path, out: Path
) -> dict[str, Any]:
    if not (out / "models" / name / HELD_OUT).is_file():
        write_yaml(out / f"{name}.yaml", arm_run(config, name, changes, sae, data, out))
        rewardscope("train", f"{name}.yaml", "-o", f"models/{name}", folder=out)
    facts: dict[str, Any] = json.loads((out / "models" / name / FACTS).read_text(encoding="utf-8"))
    return facts


def _figures(config: dict[str, Any], name: str, data: Path, out: Path) -> dict[str, Any]:
    figures = {}
    for benchmark, items in config["benchmarks"].items():
        some = ["--limit", str(items["limit"])] if items.get("limit") else []
        some += ["--data", local(data, items["data"])] if items.get("data") else []
        model = ["--model", f"models/{name}", "--dtype", config["run"]["model"]["dtype"], "--runs", "."]
        figures[benchmark] = rewardscope(
            "evaluate", benchmark, *model, "--data", data / items["data"], *some, folder=out
        )
    return figures


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")


def against(arm: pl.DataFrame, plain: pl.DataFrame) -> dict[str, Any]:
    """How much more accurate an arm is than the plain head on the same held-out pairs, with a 95 % interval over prompts."""
    both = arm.join(plain, on=["pair_id", "prompt_id"], suffix="_plain", validate="1:1")
    if not both.height == arm.height == plain.height:
        raise SystemExit("The arms were measured on different pairs; remove what is under --out and run them again.")
    change = (both["margin"] > 0).cast(pl.Int8) - (both["margin_plain"] > 0).cast(pl.Int8)
    found = cluster_bootstrap(change.to_numpy(), both["prompt_id"].to_numpy(), draws=10_000, seed=0)
    return {"value": found.value, "low": found.low, "high": found.high}


def markdown(config: dict[str, Any], results: dict[str, dict[str, Any]], models: Path) -> list[str]:
    """The tables of docs/sarm.md; the first arm is the plain head."""

    def margins(name: str, how: str) -> pl.DataFrame:
        return pl.read_parquet(models / f"{name}-{how}" / HELD_OUT)

    def beside(name: str, how: str, plain_how: str) -> str:
        return "-" if name == plain else _cell(against(margins(name, how), margins(plain, plain_how)), "+.3f")

    plain, *_ = results
    lines = [
        "| head reads | SAE: unexplained | training | kept step | held-back prompts | held-out pairs | less the plain head trained alike "
        "| less the plain head as chosen |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        lost = f"{result['sae']['fvu_normalised']:.3f}" if result["sae"] else "-"
        for how, facts in result["trained"].items():
            held = _cell({**facts["held_out"], "value": facts["held_out"]["accuracy"]})
            chosen = how == result["chosen"]
            of, told = f"{facts['best_step']} of {facts['steps']}", f"**{how}**" if chosen else how
            differs = f"{beside(name, how, how)} | {beside(name, how, results[plain]['chosen']) if chosen else ''}"
            lines.append(f"| {name} | {lost} | {told} | {of} | {facts['best_accuracy']:.3f} | {held} | {differs} |")
    facts = next(iter(results[plain]["trained"].values()))
    held = facts["held_out"]
    ways = "; ".join(
        f"{how}: {settings['epochs']} epoch{'' if settings['epochs'] == 1 else 's'}, LoRA rate {settings['learning_rate']:g}"
        for how, settings in config["trainings"].items()
    )
    sections = list(dict.fromkeys(row["name"] for result in results.values() for row in _sections(result)))
    lines += [
        "",
        f"Accuracy with 95 % intervals over prompts, n = {held['n']:,} held-out pairs of {held['n_prompts']:,} prompts; "
        f"{facts['n_pairs']:,} training pairs, {ways}; seed {facts['seed']}, on {facts['device']}. Bold: the training that the "
        "held-back prompts chose; the next table is of these. Differences are paired, pair by pair.",
        "",
        f"| head reads | {' | '.join(sections)} |",
        "|---" * (1 + len(sections)) + "|",
    ]
    for name, result in results.items():
        own = {row["name"]: row for row in _sections(result)}
        cells = [f"{_cell(own[section])} n={own[section]['n']:,}" for section in sections]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _sections(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result["rewardbench"]["figures"] if row["kind"] == "section" and row["value"] is not None]


def _cell(row: dict[str, Any], form: str = ".3f") -> str:
    return f"{row['value']:{form}} [{row['low']:{form}}, {row['high']:{form}}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the text, the pairs and the benchmarks")
    parser.add_argument("--out", type=Path, required=True, help="folder of the SAEs, the models and the figures")
    parser.add_argument("--write", type=Path, help="a Markdown file whose part between the markers is replaced")
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    results = run_arms(config, arguments.data.resolve(), arguments.out)
    lines = markdown(config, results, arguments.out / "models")
    print("\n".join(lines))
    if arguments.write:
        put_between(arguments.write, "sarm-ablation", lines)


if __name__ == "__main__":
    main()
