"""Taking a plan away: the plan's file, the data it edits, and the same on the command line."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from core.store.sets import FeatureSet
from dashboard.impact_tasks import FORMS, ExportedFile
from dashboard.theme import sheet


class PlanExport(JSComponent):
    """Buttons for the files and the command to copy; calls `on_export(form)` with 'plan', 'parquet' or 'jsonl'."""

    choices = param.List([], doc="(form, label, whether it is marked as dangerous) of each button.")
    disabled = param.Boolean(False)
    busy = param.String("", doc="What is being made; the buttons wait.")
    command = param.String("")
    file = param.String("", doc="Name of the file in `data`.")
    data = param.Bytes(b"", doc="The file the browser is to save; emptied once it is there.")

    _esm = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
    _stylesheets: ClassVar[list[str]] = [sheet("impact")]

    def __init__(self, on_export: Callable[[str], None], **params: Any) -> None:
        super().__init__(**params)
        self._on_export = on_export

    def save(self, made: ExportedFile) -> None:
        """Hands a file to the browser."""
        self.param.update(file=made.name, data=made.data, busy="")

    def _handle_msg(self, data: Any) -> None:
        if not isinstance(data, dict):
            return
        if data.get("form") in FORMS:
            self._on_export(data["form"])
        elif data.get("saved"):
            self.data = b""


def export_choices(direction: str) -> list[tuple[str, str, bool]]:
    """The buttons; poisoned data is named so before it is anywhere."""
    kind = "POISONED data" if direction == "poison" else "Edited data"
    poisoned = direction == "poison"
    return [
        ("plan", "Plan (JSON)", False),
        ("parquet", f"{kind} (Parquet)", poisoned),
        ("jsonl", f"{kind} (JSONL)", poisoned),
    ]


def plan_command(run: str, strategy: str, direction: str, action: str, ratio: float, one: FeatureSet | None) -> str:
    """The command that makes the same plan; '' without a set to name.

    Args:
        one: the open set; one that was never stored is taken for the run's default, which the command takes by itself.
    """
    parts = ["rewardscope", "plan", run, "--strategy", strategy]
    if strategy == "set":
        if one is None:
            return ""
        if one.version:
            parts += ["--set", f"{one.name}@{one.version}"]
    parts += ["--direction", direction, "--action", action, "--ratio", f"{ratio:g}", "--output", "plan.json"]
    return shlex.join(parts)


def retrain_command(run: str, scope: str = "lora") -> str:
    """The command that really trains the model again on what `plan_command` wrote."""
    return shlex.join(["rewardscope", "retrain", run, "--plan", "plan.json", "--scope", scope])
