"""The ablation's two files are ones the program takes, and its paired differences are those of the pairs."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import yaml

from benchmarks.sarm_ablation import against, arm_run, write_yaml
from core.config import load_config
from core.paths import ROOT
from core.sae.pretrain import load_pretrain_config, table_entries


@pytest.mark.parametrize(
    ("name", "width", "latents", "rates"),
    [("sarm_ablation", 576, 9216, {5e-4, 1e-4}), ("sarm_ablation_8b", 4096, 65536, {4e-6})],
)
def test_every_arm_is_a_configuration(name: str, width: int, latents: int, rates: set[float], tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "benchmarks" / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    write_yaml(tmp_path / "saes.yaml", config["saes"])
    entries = table_entries(load_pretrain_config(tmp_path / "saes.yaml"), width)
    assert [(entry.sae.level, entry.sae.latents) for entry in entries] == [
        ("random", latents), ("token", latents), ("sequence", latents),
    ]  # fmt: skip
    seen = set()
    for arm, changes in config["arms"].items():
        sae = next(
            ({"file": "sae.safetensors", "latents": e.sae.latents, "k": e.sae.k} for e in entries if e.name == arm),
            None,
        )
        assert (sae is None) == (changes.get("encoder") == "identity")
        for how, settings in config["trainings"].items():
            write_yaml(
                tmp_path / "arm.yaml", arm_run(config, f"{arm}-{how}", {**changes, **settings}, sae, tmp_path, tmp_path)
            )
            made = load_config(tmp_path / "arm.yaml")
            assert made.reward_model.sarm is not None
            assert made.head.pooling == "last"
            seen.add(made.reward_model.sarm.learning_rate)
    assert seen == rates


def test_a_difference_is_that_of_the_same_pairs() -> None:
    plain = pl.DataFrame(
        {"pair_id": ["a", "b", "c", "d"], "prompt_id": ["1", "1", "2", "3"], "margin": [1.0, -1.0, 2.0, 0.0]}
    )
    arm = plain.with_columns(margin=pl.Series([1.0, 1.0, -2.0, 3.0])).reverse()
    found = against(arm, plain)
    assert found["value"] == pytest.approx((0 + 1 - 1 + 1) / 4)
    assert found["low"] < found["value"] < found["high"]
    with pytest.raises(SystemExit, match="different pairs"):
        against(arm.head(3), plain)
