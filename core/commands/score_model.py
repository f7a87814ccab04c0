"""`rewardscope score --model FOLDER`: answers scored by a model that is in no run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from core.commands.common import out, plain, print_json
from core.data.schema import Message
from core.errors import ModelError


def score_model(folder: Path, prompt: str, answers: list[str], top: int, as_json: bool) -> None:
    """Prints each answer's reward and its largest contributions: objectives of ArmoRM, features of SARM.

    Raises:
        ModelError: the folder holds neither.
    """
    from core.models.armorm import is_armorm
    from core.models.sarm_file import is_sarm

    messages: list[Message] = [{"role": "user", "content": prompt}]
    columns: tuple[str, ...]
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}; give a SARM or ArmoRM-style model folder.")
    if is_armorm(folder):
        results = _objectives(folder, messages, answers)
        columns = ("objective", "contribution", "gate", "score")
    elif is_sarm(folder):
        results = _features(folder, messages, answers)
        columns = ("feature", "contribution", "activation")
    else:
        raise ModelError(
            f"{folder} is neither a SARM folder nor an ArmoRM-style model; import it first (docs/checkpoints.md)."
        )
    for result in results:
        # Objectives keep their own order in JSON; there are few of them and all are given.
        by_size = sorted(result["contributions"], key=lambda entry: -abs(entry["contribution"]))
        shown = by_size[:top]
        rest = result["reward"] - sum(entry["contribution"] for entry in shown)
        result["other"] = {"n": len(by_size) - len(shown), "contribution": rest}
        if columns[0] == "feature" or not as_json:
            result["contributions"] = shown
    if as_json:
        print_json({"model": str(folder), "answers": results})
        return
    for result in results:
        table = Table(title=f"reward {result['reward']:+.4f}", title_justify="left", caption=None)
        for column in columns:
            table.add_column(column, justify="left" if column == "objective" else "right")
        for entry in result["contributions"]:
            first, *numbers = (entry[column] for column in columns)
            table.add_row(plain(str(first)), *(f"{number:+.4f}" for number in numbers))
        if result["other"]["n"]:
            table.add_row(f"other ({result['other']['n']})", f"{result['other']['contribution']:+.4f}")
        out.print(plain(result["answer"]), style="dim", highlight=False)
        out.print(table)


def _objectives(folder: Path, messages: list[Message], answers: list[str]) -> list[dict[str, Any]]:
    from core.models.armorm import load_objectives

    return [
        {
            "answer": one.text,
            "reward": one.reward,
            "contributions": [
                {
                    "objective": name,
                    "contribution": float(one.contributions[j]),
                    "gate": float(one.gates[j]),
                    "score": float(one.objectives[j]),
                    "raw_score": float(one.raw[j]),
                }
                for j, name in enumerate(one.names)
            ],
        }
        for one in load_objectives(folder).score(messages, answers)
    ]


def _features(folder: Path, messages: list[Message], answers: list[str]) -> list[dict[str, Any]]:
    from core.rewards.score import load_model_scorer

    return [
        {
            "answer": one.text,
            "reward": one.reward,
            "contributions": [
                {"feature": int(feature), "contribution": float(contribution), "activation": float(activation)}
                for feature, contribution, activation in zip(one.features, one.contributions, one.pooled, strict=True)
            ],
        }
        for one in load_model_scorer(folder).score(messages, answers)
    ]
