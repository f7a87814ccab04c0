"""Rewardscope: sparse-autoencoder features and exact reward decompositions of preference pairs.

The public Python API; each name is imported when it is first used, so that `import core` stays cheap:

    from core import Silent, build_run, find_run, load_config, load_pairs, load_scorer, RunReader

    result = build_run(load_config(Path("run.yaml")), Silent())       # a published run
    with RunReader.open(result.folder) as run:                        # its tables as polars frames, its arrays
        run.table("feature"), run.arrays.pooled("mean")
    scorer = load_scorer(find_run("demo"))                            # the run's model, SAE and head
    scorer.score([{"role": "user", "content": "..."}], ["...", "..."])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from core.auto_classes import register_when_imported

if TYPE_CHECKING:
    from core.build import build as build_run
    from core.config import RunConfig, load_config
    from core.data.load import load_pairs
    from core.errors import RewardscopeError
    from core.progress import RichProgress, Silent
    from core.rewards.score import load_scorer
    from core.runs import find_run
    from core.store.reader import RunReader

__version__ = "0.1.0"

__all__ = [
    "RewardscopeError",
    "RichProgress",
    "RunConfig",
    "RunReader",
    "Silent",
    "build_run",
    "find_run",
    "load_config",
    "load_pairs",
    "load_scorer",
]

_HOME = {
    "RewardscopeError": "core.errors",
    "RichProgress": "core.progress",
    "RunConfig": "core.config",
    "RunReader": "core.store.reader",
    "Silent": "core.progress",
    "build_run": "core.build:build",
    "find_run": "core.runs",
    "load_config": "core.config",
    "load_pairs": "core.data.load",
    "load_scorer": "core.rewards.score",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'core' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(import_module(module), attribute or name)


register_when_imported()
