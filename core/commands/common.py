"""What every command shares: the application, its options, how failures and results are printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from core.errors import ConfigError, RewardscopeError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Open a reward model like a book: features, decompositions and linked views of preference pairs.",
)
out = Console()

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines, no progress bars.")]
RunName = Annotated[str | None, typer.Argument(help="Name or folder of a run; the only one there is when left out.")]
Runs = Annotated[Path | None, typer.Option("--runs", help="Folder that holds the runs (default: ./runs).")]


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns expected failures into one sentence on standard error and exit code 1 (2 for a wrong configuration)."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ConfigError as error:
            _fail(error, kwargs, 2)
        except RewardscopeError as error:
            _fail(error, kwargs, 1)
        except KeyboardInterrupt:
            typer.echo("Stopped; finished parts are kept and the same command goes on from there.", err=True)
            raise typer.Exit(1) from None

    return wrapped


def _fail(error: Exception, kwargs: dict[str, Any], code: int) -> None:
    if kwargs.get("as_json"):
        typer.echo(json.dumps({"error": str(error)}))
    typer.echo(f"rewardscope: {error}", err=True)
    raise typer.Exit(code)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def plain(text: str) -> Any:
    """Text from data, shown as it is: no markup, no control characters that could drive the terminal."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text))
