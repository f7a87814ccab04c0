"""`rewardscope pretrain`: SARM's first stage, SAEs over text; under torchrun, several processes together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from core.commands.common import AsJson, app, command, out, plain, print_json


@app.command()
@command
def pretrain(
    config: Annotated[Path, typer.Argument(help="YAML file that names the model, the text and the SAEs.")],
    as_json: AsJson = False,
) -> None:
    """Pretrain SAEs over text: one, or a table of layers, widths and k (docs/pretraining.md).

    Finished SAEs are skipped, an interrupted one goes on. Several processes:
    torchrun --nproc_per_node 2 -m core pretrain CONFIG.yaml
    """
    from core.errors import RewardscopeError
    from core.progress import RichProgress, Silent
    from core.sae.pretrain import load_pretrain_config
    from core.sae.pretrain import pretrain as run_pretrain
    from core.sae.ranks import first_process

    first = first_process()
    try:
        loaded = load_pretrain_config(config)
        rows = run_pretrain(loaded, RichProgress() if first and not as_json else Silent())
    except RewardscopeError:
        if first:
            raise
        raise typer.Exit(1) from None  # every process meets the same failure; the first one says it
    if first and as_json:
        print_json({"folder": str(loaded.folder), "entries": rows})
    elif first:
        _print(loaded.folder, rows)


def _print(folder: Path, rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{len(rows)} SAEs in {folder}, on n held-out vectors", title_justify="left", box=None)
    table.add_column("", overflow="fold")
    for name in ("unexplained", "95 %", "dead", "L0", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        sizes = f"layer {row['layer']}, {row['latents']:,} latents, k {row['k']}"
        interval = row["fvu_normalised_interval"]
        table.add_row(
            plain(row["name"] if f"Latent{row['latents']}_" in row["name"] else f"{row['name']}: {sizes}"),
            f"{row['fvu_normalised']:.4f}",
            "" if interval is None else "{:.3f} to {:.3f}".format(*interval),
            f"{row['dead_fraction']:.1%}",
            f"{row['l0']:.1f}",
            f"{row['n']:,}",
        )
    out.print(table)
