"""SARM's ablation on real pairs: the same decoder blocks trained below a plain linear head and below frozen SAEs that were
drawn at random, trained on tokens, and trained on sentence ends. Held-out accuracy and RewardBench-style sections.

    python -m benchmarks.sarm_ablation benchmarks/configs/sarm_ablation.yaml --data ../shared/data --out ablation

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
        by arm: `sae` (its row of the pretraining table, None for the plain head), `training` (facts), and by benchmark the
        figures of `evaluate`.
    """
    out.mkdir(parents=True, exist_ok=True)
    saes = {**config["saes"], "texts": [str(data / text) for text in config["saes"]["texts"]]}
    write_yaml(out / "saes.yaml", saes)
    table = {row["name"]: row for row in rewardscope("pretrain", "saes.yaml", folder=out)["entries"]}
    results: dict[str, dict[str, Any]] = {}
    for name, changes in config["arms"].items():
        kept = out / f"{name}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(_arm(config, name, changes, table.get(name), data, out), indent=2))
        results[name] = json.loads(kept.read_text())
    return results


def _arm(
    config: dict[str, Any], name: str, changes: dict[str, Any], sae: dict[str, Any] | None, data: Path, out: Path
) -> dict[str, Any]:
    run = json.loads(json.dumps(config["run"]))
    run["name"] = name
    run["pairs"]["source"] = str(data / run["pairs"]["source"])
    run["reward_model"]["sarm"] |= changes
    if sae is not None:
        run["sae"] = {"checkpoint": str((out / sae["file"]).resolve()), "latents": sae["latents"], "k": sae["k"]}
    write_yaml(out / f"{name}.yaml", run)
    training = rewardscope("train", f"{name}.yaml", "-o", f"models/{name}", folder=out)
    figures = {}
    for benchmark, items in config["benchmarks"].items():
        some = ["--limit", str(items["limit"])] if items.get("limit") else []
        model = ["--model", f"models/{name}", "--dtype", run["model"]["dtype"], "--runs", "."]
        figures[benchmark] = rewardscope(
            "evaluate", benchmark, *model, "--data", data / items["data"], *some, folder=out
        )
    return {"sae": sae, "training": training, **figures}


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


def markdown(results: dict[str, dict[str, Any]], margins: dict[str, pl.DataFrame]) -> list[str]:
    """The tables of docs/sarm.md; the first arm is the plain head."""
    plain, *_ = results
    sections = list(dict.fromkeys(row["name"] for result in results.values() for row in _sections(result)))
    lines = [
        "| head reads | SAE: unexplained | held-out pairs | against the plain head |",
        "|---|---|---|---|",
    ]
    for name, result in results.items():
        held = result["training"]["held_out"]
        lost = f"{result['sae']['fvu_normalised']:.3f}" if result["sae"] else "-"
        beside = "-" if name == plain else _cell(against(margins[name], margins[plain]), "+.3f")
        lines.append(f"| {name} | {lost} | {_cell({**held, 'value': held['accuracy']})} | {beside} |")
    held, facts = results[plain]["training"]["held_out"], results[plain]["training"]
    lines += [
        "",
        f"Accuracy with 95 % intervals over prompts, n = {held['n']:,} held-out pairs of {held['n_prompts']:,} prompts; "
        f"{facts['n_pairs']:,} training pairs, {facts['steps']} steps, seed {facts['seed']}, on {facts['device']}.",
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
    margins = {name: pl.read_parquet(arguments.out / "models" / name / HELD_OUT) for name in results}
    lines = markdown(results, margins)
    print("\n".join(lines))
    if arguments.write:
        put_between(arguments.write, "sarm-ablation", lines)


if __name__ == "__main__":
    main()
