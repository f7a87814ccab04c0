"""Published figures, each with its source; and when a figure of ours may be put beside them.

Scores in percent, as published. Nothing here was measured by this program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PAPER = "SARM paper, table 1 (arXiv 2508.08746)"
PAPER_URL = "https://arxiv.org/abs/2508.08746"
ABLATION = "SARM paper, table 2 (arXiv 2508.08746)"
QUOTED = "quoted in the SARM paper, table 1 (arXiv 2508.08746)"
LEADERBOARD = "RewardBench 2 leaderboard, December 2025 (allenai/reward-bench, issue 256)"
LEADERBOARD_URL = "https://github.com/allenai/reward-bench/issues/256"
RB2_PAPER = "RewardBench 2 paper, table 3 (arXiv 2506.01937): the overall score only"
RB2_PAPER_URL = "https://arxiv.org/abs/2506.01937"

COLUMNS = ("overall", "Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")


@dataclass(frozen=True)
class PublishedRow:
    """One model's published scores on RewardBench 2.

    Attributes:
        model: its name.
        scores: percent by column of COLUMNS; what was not published is left out.
        source: who says so.
        url: where.
    """

    model: str
    scores: Mapping[str, float]
    source: str
    url: str


def _row(model: str, scores: str, source: str = PAPER, url: str = PAPER_URL) -> PublishedRow:
    values = [float(value) for value in scores.split()]
    return PublishedRow(model, dict(zip(COLUMNS, values, strict=False)), source, url)


REWARDBENCH2: tuple[PublishedRow, ...] = (
    _row("SARM-4B", "73.6 68.5 42.5 63.9 91.3 96.0 79.6"),
    _row("Llama-SARM-4B", "73.79 68.74 42.81 64.48 91.78 95.56 79.39", LEADERBOARD, LEADERBOARD_URL),
    _row("SARM-3B", "64.2 58.6 34.4 62.8 87.3 86.3 55.6"),
    _row("SARM-2B", "62.5 55.6 35.6 60.7 84.9 82.4 56.0"),
    _row("SARM-4B, token-level SAE", "71.5 68.0 40.6 62.3 92.9 92.5 72.5", ABLATION),
    _row("SARM-4B, random-init encoder", "68.4 65.7 38.4 64.5 88.9 88.2 64.9", ABLATION),
    _row("Skywork-Reward-V2-Llama-3.1-8B", "84.1", RB2_PAPER, RB2_PAPER_URL),
    _row("Skywork-Reward-V2-Llama-3.2-3B", "74.7", RB2_PAPER, RB2_PAPER_URL),
    _row("LDL-Gemma-27B", "72.5 75.6 35.0 64.5 92.2 91.3 76.3", QUOTED),
    _row("GPT-4.1", "72.3 82.9 39.7 65.2 87.3 73.4 85.4", QUOTED),
    _row("Tulu-3-70B-RM", "72.2 80.8 36.9 67.8 86.9 77.8 83.1", QUOTED),
    _row("Skywork-Llama-8B-v0.2", "71.8 69.7 40.6 60.1 94.2 94.1 71.7", QUOTED),
    _row("Claude Sonnet 4", "71.2 76.1 35.9 70.5 89.1 76.0 79.4", QUOTED),
    _row("QRM-v2", "70.7 66.5 40.6 61.2 94.7 89.1 72.3", QUOTED),
    _row("RAMO", "69.2 65.5 37.5 56.3 97.6 90.7 67.5", QUOTED),
    _row("Tulu-3-8B-RM-RB2", "68.7 76.4 40.0 61.7 86.4 84.8 62.8", QUOTED),
    _row("Gemini 2.5 Pro", "67.8 65.3 46.9 53.4 88.1 83.1 69.7", QUOTED),
    _row("GRM-Llama3-8B-ft", "67.7 62.7 35.0 58.5 92.2 89.3 68.2", QUOTED),
    _row("ArmoRM-8B", "66.5 65.7 41.9 66.1 82.2 76.6 66.3", QUOTED),
    _row("GPT-4o", "64.9 56.8 33.1 62.3 86.2 72.9 78.2", QUOTED),
)

PUBLISHED: dict[str, tuple[PublishedRow, ...]] = {"rewardbench2": REWARDBENCH2}

NONE_PUBLISHED = {
    "rewardbench": "No published rows are shown for RewardBench: the SARM paper reports RewardBench 2 only, and "
    "SAFER's full table is not public.",
    "rm-bench": "No published rows are shown for RM-Bench: the SARM paper uses it for steering and reports no score.",
    "pairs": "These are pairs of your own: there is nothing published to compare with.",
}

SIZES = {"rewardbench": 2985, "rewardbench2": 1865, "rm-bench": 1327}
"""Items of the whole published benchmark."""


def comparability(benchmark: str, data: Mapping[str, Any]) -> list[str]:
    """Why figures on this data must not be read as the published benchmark's; [] when they may.

    Args:
        data: `data` of a result's summary.
    """
    if benchmark == "pairs":
        return []
    said = []
    if data.get("uniform"):
        said.append(
            {
                "rewardbench": "Not comparable with the public RewardBench: a local set in its shape, whose refusals-* and "
                "hep-* answers are RM-Bench's.",
                "rewardbench2": "A local copy of RewardBench 2's prompts: only the subsets in it are scored.",
                "rm-bench": "A local copy of RM-Bench's comparisons: domains and styles that are not in it are not scored.",
            }[benchmark]
        )
    if data.get("limit"):
        said.append(f"Not comparable: only {data.get('n_items', 0):,} prompts were taken (--limit {data['limit']}).")
    elif not said and int(data.get("n_items", 0)) < SIZES[benchmark]:
        said.append(f"Not comparable: {data.get('n_items', 0):,} items of {SIZES[benchmark]:,}.")
    return said


def comparable(benchmark: str, data: Mapping[str, Any], figure: Mapping[str, Any]) -> bool:
    """Whether one figure may stand beside the published ones of its column.

    True for figures on the whole public data, and for a subset of RewardBench 2 that is complete.
    """
    from core.evaluate.rewardbench2 import SUBSETS

    if benchmark == "pairs" or figure["value"] is None or data.get("limit"):
        return False
    if benchmark == "rewardbench2" and figure["name"] in SUBSETS:
        return int(figure["n"]) == SUBSETS[figure["name"]] and not figure["note"].endswith("than 4")
    return not comparability(benchmark, data)
