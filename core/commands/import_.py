"""`rewardscope import`: a published checkpoint becomes files of this program. No code of the checkpoint is ever run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.table import Table

from core.commands.common import AsJson, app, command, out, plain, print_json
from core.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from core.models.published import Layout
    from core.progress import Progress


@app.command("import")
@command
def import_(
    path: Annotated[str, typer.Argument(help="The checkpoint: a file, a folder, or owner/name[/path] on the Hub.")],
    target: Annotated[Path, typer.Option("--out", "-o", help="New folder (for an SAE also a .safetensors file).")],
    kind: Annotated[str, typer.Option(help="auto, sarm, sae or armorm.")] = "auto",
    layer: Annotated[
        int | None, typer.Option(min=1, help="Where the files do not say it: the SAE reads hidden_states[LAYER].")
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "--k",
            min=1,
            help="Active latents where the files do not say it; of a ReLU-like SAE the most stored per token.",
        ),
    ] = None,
    topk: Annotated[
        bool, typer.Option("--topk", help="The head of a SARM checkpoint that does not say so was trained with TopK.")
    ] = False,
    input_scale: Annotated[
        float | None, typer.Option(min=0, help="SAELens: factor of expected_average_only_in that was not folded in.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    as_json: AsJson = False,
) -> None:
    """Import a published SARM model, SAE (SARM, SAFER, SAELens, sparsify) or ArmoRM-style model (docs/checkpoints.md)."""
    from core.models.published import LAYOUTS, layout_of, resolve_published
    from core.progress import RichProgress, Silent

    if kind not in LAYOUTS:
        raise ConfigError(f"--kind is {', '.join(LAYOUTS)}, not {kind!r}.")
    source = resolve_published(path, revision)
    layout = layout_of(source)
    if layout not in LAYOUTS[kind]:
        raise ModelError(f"{source} is of the layout {layout}, not what --kind {kind} asks for; leave --kind out.")
    progress = Silent() if as_json else RichProgress()
    options = Options(layer, k, topk, input_scale)
    facts, notes = _import(source, target, layout, options, progress, name=Path(path).name)
    if as_json:
        print_json({**facts, "layout": layout, "source": str(source), "notes": notes})
        return
    typer.echo(f"Wrote {facts['path']}.")
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in facts.items():
        if name != "path" and value is not None:
            table.add_row(f"[bold]{name}[/bold]", plain(", ".join(value) if isinstance(value, list) else str(value)))
    out.print(table)
    for note in notes:
        out.print(plain(f"Note: {note}"))


class Options(NamedTuple):
    """What the files may not say."""

    layer: int | None
    k: int | None
    topk: bool
    input_scale: float | None


def _import(
    source: Path, target: Path, layout: Layout, options: Options, progress: Progress, name: str
) -> tuple[dict[str, Any], list[str]]:
    """Writes the target; facts and notes of what was written."""
    from core.models.armorm import import_armorm
    from core.models.published import read_sae
    from core.models.published_sarm import import_sarm

    if layout in ("sarm", "armorm"):
        _new(target)
        if layout == "sarm":
            made = import_sarm(
                source, target, layer=options.layer, k=options.k, topk=options.topk, name=name, progress=progress
            )
        else:
            made = import_armorm(source, target, progress=progress)
        return made.facts, list(made.notes)
    file = target if target.suffix == ".safetensors" else target / "sae.safetensors"
    _new(file)
    published = read_sae(source, layout, layer=options.layer, k=options.k, input_scale=options.input_scale)
    published.save(file)
    facts = {"kind": "sae", "path": str(file), "d_model": published.sae.d_model, **published.metadata}
    facts |= {name: int(value) for name, value in published.sae.facts().items() if name in ("k", "latents")}
    facts["layer"] = int(published.metadata["layer"])
    return facts, list(published.notes)


def _new(path: Path) -> None:
    if path.exists():
        raise ModelError(f"{path} exists already; give a new name, or remove it first.")
