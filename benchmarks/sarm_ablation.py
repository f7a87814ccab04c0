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

import yaml

from benchmarks.markers import put_between
from benchmarks.pku_helpful import join_files


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
    if not (pairs := out / config["run"]["pairs"]["source"]).is_file():
        join_files(data, pairs)
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
    run["pairs"]["source"] = str((out / run["pairs"]["source"]).resolve())
    run["reward_model"]["sarm"] |= changes
    if sae is not None:
        run["sae"] = {"checkpoint": str((out / sae["file"]).resolve()), "latents": sae["latents"], "k": sae["k"]}
    write_yaml(out / f"{name}.yaml", run)
    training = rewardscope("train", f"{name}.yaml", "-o", f"models/{name}", folder=out)
    figures = {}
    for benchmark, items in config["benchmarks"].items():
        some = ["--limit", str(items["limit"])] if items.get("limit") else []
        model = ["--model", f"models/{name}", "--data", data / items["data"], "--runs", "."]
        figures[benchmark] = rewardscope("evaluate", benchmark, *model, *some, folder=out)
    return {"sae": sae, "training": training, **figures}


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")


def markdown(results: dict[str, dict[str, Any]]) -> list[str]:
    """The table of docs/sarm.md."""
    sections: list[str] = []
    for result in results.values():
        for row in _sections(result):
            if row["name"] not in sections:
                sections.append(row["name"])
    lines = [
        f"| head reads | unexplained | held-out pairs | {' | '.join(sections)} |",
        "|---" * (3 + len(sections)) + "|",
    ]
    for name, result in results.items():
        held = result["training"]["held_out"]
        own = {row["name"]: row for row in _sections(result)}
        lost = f"{result['sae']['fvu_normalised']:.3f}" if result["sae"] else "-"
        cells = [_cell(own[section], own[section]["n"]) for section in sections]
        lines.append(
            f"| {name} | {lost} | {_cell({**held, 'value': held['accuracy']}, held['n'])} | {' | '.join(cells)} |"
        )
    facts = next(iter(results.values()))["training"]
    lines += [
        "",
        f"{facts['n_pairs']:,} training pairs, {facts['steps']} steps, seed {facts['seed']}, on {facts['device']}.",
    ]
    return lines


def _sections(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result["rewardbench"]["figures"] if row["kind"] == "section" and row["value"] is not None]


def _cell(row: dict[str, Any], n: int) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}] n={n:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the text, the pairs and the benchmarks")
    parser.add_argument("--out", type=Path, required=True, help="folder of the SAEs, the models and the figures")
    parser.add_argument("--write", type=Path, help="a Markdown file whose part between the markers is replaced")
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    lines = markdown(run_arms(config, arguments.data.resolve(), arguments.out))
    print("\n".join(lines))
    if arguments.write:
        put_between(arguments.write, "sarm-ablation", lines)


if __name__ == "__main__":
    main()
