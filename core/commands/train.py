"""`rewardscope train`: SARM's second stage, a reward model of decoder blocks, an SAE and a head; several processes too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from core.commands.common import AsJson, app, command, out, plain, print_json


@app.command()
@command
def train(
    config: Annotated[Path, typer.Argument(help="YAML file of a run with reward_model: {kind: sarm, sarm: {...}}.")],
    target: Annotated[Path, typer.Option("--out", "-o", help="New folder for the model.")],
    as_json: AsJson = False,
) -> None:
    """Train a SARM reward model on a run's training pairs (docs/sarm.md).

    An interrupted training goes on from its last checkpoint. Several processes:
    torchrun --nproc_per_node 2 -m core train CONFIG.yaml -o FOLDER
    """
    from core.config import load_config
    from core.errors import RewardscopeError
    from core.progress import RichProgress, Silent
    from core.rewards.processes import is_main
    from core.rewards.train_run import train_from_config

    try:
        facts = train_from_config(load_config(config), target, Silent() if as_json else RichProgress())
    except RewardscopeError:
        if is_main():
            raise
        raise typer.Exit(1) from None  # every process meets the same failure; the main one says it
    if not is_main():
        return
    if as_json:
        print_json({"folder": str(target), **facts})
    else:
        _print(target, facts)


def _print(folder: Path, facts: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    held = facts["held_out"]
    lines = [
        ("model", f"{folder}: {facts['base']}, {facts['layer']} blocks, M={facts['latents']:,}, k={facts['k']}, {facts['pooling']}"),
        ("trained", f"mode {facts['mode']}, scope {facts['scope']}, {facts['steps']:,} steps of {facts['batch']} pairs, {facts['seconds']:,.0f} s"),
        ("pairs", f"{facts['n_pairs']:,} trained on" + _held_back(facts)),
        ("held out", "no test pairs" if held is None else _accuracy(held)),
    ]  # fmt: skip
    for name, text in lines:
        table.add_row(f"[bold]{name}[/bold]", plain(text))
    out.print(table)


def _held_back(facts: dict[str, Any]) -> str:
    if "best_step" not in facts:
        return ", none held back: the last step is kept"
    return (
        f", {facts['n_held_back_pairs']:,} held back; best step {facts['best_step']:,} "
        f"(accuracy {facts['best_accuracy']:.3f} there)"
    )


def _accuracy(held: dict[str, Any]) -> str:
    interval = "no interval" if held["low"] is None else f"[{held['low']:.3f}, {held['high']:.3f}]"
    return f"accuracy {held['accuracy']:.3f} {interval} (n={held['n']:,} pairs, {held['n_prompts']:,} prompts)"
