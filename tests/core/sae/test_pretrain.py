"""Stage 1 from a YAML to SAE files: tables, what is skipped, and a kill at any moment, alone and under torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from typer.testing import CliRunner

from core.cli import app
from core.config import PairsConfig, SaeConfig
from core.data.chat import encode_pairs
from core.data.load import load_pairs
from core.errors import ConfigError, ModelError
from core.features.extract import group_answers
from core.models.backbone import Backbone, load_backbone, load_tokenizer
from core.models.packing import Pack
from core.models.resolve import file_sha256
from core.progress import Silent
from core.sae import pretrain as module
from core.sae.checkpoint import load_sae, read_tensors, save_sae
from core.sae.conversations import training_conversations
from core.sae.fit import fit_sae
from core.sae.pretrain import load_pretrain_config, pretrain, size_of, table_entries
from core.sae.topk import TopKSAE
from tests.core.sae.pretraining import ROOT, kill_in_the_middle, long_config, small_config, write_config


def test_a_table_is_trained_measured_and_not_repeated(
    model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table: list[dict[str, Any]] = [
        {},
        {"latents": "3d", "k": "3d/32"},
        {"layer": 3, "level": "random", "seed": 2, "name": "untrained"},
    ]
    wanted = small_config(model, texts, tmp_path, *table)
    rows = pretrain(wanted, Silent())
    assert [row["name"] for row in rows] == ["token_Latent64_Layer2_K4", "token_Latent96_Layer2_K3", "untrained"]
    assert [(row["latents"], row["k"], row["l0"], row["layer"]) for row in rows] == [
        (64, 4, 4, 2),
        (96, 3, 3, 2),
        (64, 4, 4, 3),
    ]
    assert json.loads((tmp_path / "t" / "table.json").read_text())["entries"] == rows
    assert rows[0]["n"] > 300
    assert rows[0]["fvu_normalised"] < 0.8 * rows[2]["fvu_normalised"]
    assert {path.name for path in (tmp_path / "t").iterdir()} == {*(row["name"] for row in rows), "table.json"}
    _, metadata = load_sae(Path(rows[1]["file"]))
    assert (metadata["layer"], metadata["level"], metadata["k"], metadata["model"]) == ("2", "token", "3", str(model))

    trained: list[str] = []
    real = module.fit_sae

    def spying(*given: Any, **options: Any) -> TopKSAE:
        trained.append(given[3].name)
        return real(*given, **options)

    monkeypatch.setattr(module, "fit_sae", spying)
    assert pretrain(wanted, Silent()) == rows
    assert trained == []
    printed = CliRunner().invoke(app, ["pretrain", str(write_config(wanted, tmp_path))], env={"COLUMNS": "200"})
    assert printed.exit_code == 0
    for row in rows:
        assert all(text in printed.stdout for text in (row["name"], f"{row['fvu_normalised']:.4f}", f"{row['n']:,}"))
    pretrain(small_config(model, texts, tmp_path, table[0], {**table[1], "seed": 1}, table[2]), Silent())
    assert trained == ["token_Latent96_Layer2_K3_Seed1"]


def test_neighbours_share_backbone_and_vectors(
    model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []
    forwards: list[Pack] = []
    real_load, real_forward = module.load_backbone, Backbone.forward

    def load(path: Path, layer: int, **options: Any) -> Backbone:
        loaded.append(layer)
        return real_load(path, layer, **options)

    def forward(self: Backbone, pack: Pack) -> Tensor:
        forwards.append(pack)
        return real_forward(self, pack)

    monkeypatch.setattr(module, "load_backbone", load)
    monkeypatch.setattr(Backbone, "forward", forward)
    pretrain(small_config(model, texts, tmp_path / "one", {}), Silent())
    one = len(forwards)
    pretrain(small_config(model, texts, tmp_path / "three", {}, {"k": 5}, {"latents": 96}), Silent())
    assert loaded == [2, 2]
    assert len(forwards) == 2 * one
    pretrain(small_config(model, texts, tmp_path / "layers", {}, {"layer": 1}), Silent())
    assert loaded == [2, 2, 2, 1]


def test_the_file_is_a_checkpoint_of_a_run(model: Path, texts: Path, tmp_path: Path) -> None:
    (row,) = pretrain(small_config(model, texts, tmp_path, level="sequence", epochs=2, batch=8), Silent())
    backbone = load_backbone(model, 2, dtype="float32", device="cpu")
    given = SaeConfig(checkpoint=row["file"], texts=(str(texts),))
    fit_sae(given, backbone, [], tmp_path / "run", Silent())
    ours, theirs = (read_tensors(path)[0] for path in (Path(row["file"]), tmp_path / "run" / "sae.safetensors"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_adaptation_goes_on_from_a_trained_sae(model: Path, texts: Path, tmp_path: Path) -> None:
    table = ({"name": "token"}, {"name": "adapted", "level": "sequence", "start": "token"})
    rows = pretrain(small_config(model, texts, tmp_path, *table, batch=8), Silent())
    token = Path(rows[0]["file"])
    assert load_sae(Path(rows[1]["file"]))[1]["start"] == file_sha256(token)
    options = {"level": "sequence", "start": str(token), "batch": 8, "learning_rate": 1e-5}
    (slow,) = pretrain(small_config(model, texts, tmp_path / "slow", **options), Silent())
    before, after = (load_sae(path)[0].encoder.weight for path in (token, Path(slow["file"])))
    fresh = TopKSAE(32, 64, 4).encoder.weight
    assert 0 < (after - before).norm() < 0.1 * (before - fresh).norm()
    other = tmp_path / "other.safetensors"
    save_sae(other, TopKSAE(32, 96, 4).requires_grad_(False), {"layer": "2", "level": "token"})
    for start, error, sentence in (
        (str(other), ModelError, "has 96 latents, but 64 are asked for"),
        ("nothing", ConfigError, "There is no SAE nothing to start from"),
    ):
        with pytest.raises(error, match=sentence):
            pretrain(small_config(model, texts, tmp_path / "x", {"start": start}), Silent())


def test_conversations_are_those_of_a_run(model: Path, tmp_path: Path) -> None:
    config = PairsConfig(limit=40)
    tokenizer = load_tokenizer(model)
    pairs = load_pairs(config)
    answers = pairs.responses.group_by("pair_index", maintain_order=True).agg("text")["text"].to_list()
    encoded = encode_pairs(
        tokenizer, list(zip(pairs.pairs["messages"].to_list(), answers, strict=True)), max_length=128
    )
    train = set(pairs.pairs.filter(split="train")["pair_index"])
    pair_of = dict(pairs.responses.select("response_id", "pair_index").iter_rows())
    groups = group_answers(pairs, [answer for pair in encoded for answer in pair])
    expected = [answer.encoded.ids for group in groups for answer in group if pair_of[answer.response_id] in train]
    assert training_conversations(config, tokenizer, 128) == expected
    assert 0 < len(expected) < len(pairs.responses)


def test_pairs_alone_train_an_sae(model: Path, tmp_path: Path) -> None:
    base = small_config(model, tmp_path, tmp_path, max_tokens=2000)
    (row,) = pretrain(base.model_copy(update={"texts": (), "pairs": PairsConfig(limit=40)}), Silent())
    assert row["n"] > 50
    with pytest.raises(ConfigError, match="nothing to train or measure"):
        pretrain(base.model_copy(update={"texts": ()}), Silent())


def test_sizes_are_numbers_or_rules() -> None:
    assert [size_of(size, 3072) for size in (7, "16d", "16 * d", "3d/64", "1d")] == [7, 49152, 49152, 144, 3072]
    for wrong in ("d16", "16", "16d/0", "-1d"):
        with pytest.raises(ConfigError, match="neither a number nor a rule"):
            size_of(wrong, 8)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ([{}, {}], "two entries would be token_Latent64_Layer2_K4"),
        ([{"k": 64}], r"k \(64\) must be at least 1 and smaller than latents \(64\)"),
        ([{"level": "random", "start": "x"}], "cannot start from another"),
    ],
)
def test_a_wrong_table_is_said(tmp_path: Path, table: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        table_entries(small_config(tmp_path, tmp_path, tmp_path, *table), 32)


def test_the_example_files_name_the_papers_tables() -> None:
    folder = ROOT / "benchmarks" / "configs"
    table = table_entries(load_pretrain_config(folder / "sarm_table.yaml"), 3072)
    assert {entry.layer for entry in table} == {7, 10, 14, 21, 28}
    assert {entry.sae.latents // 3072 for entry in table} == {8, 12, 16, 24, 32}
    assert {entry.sae.k for entry in table} == {48, 96, 144, 196, 240}
    large = table_entries(load_pretrain_config(folder / "sarm_8b.yaml"), 4096)
    assert [entry.sae.level for entry in large] == ["sequence", "token", "random", "sequence"]
    assert large[3].sae.start == large[1].name
    small = table_entries(load_pretrain_config(folder / "smollm2_saes.yaml"), 576)
    assert (small[0].sae.latents, small[0].sae.k) == (16 * 576, 3 * 576 // 64)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    for name in ("a.txt", "s.safetensors"):
        (tmp_path / name).write_text("x")
    path = tmp_path / "c.yaml"
    table = [{"start": "s.safetensors"}, {"start": "earlier"}]
    path.write_text(yaml.safe_dump({"name": "t", "texts": ["a.txt", "org/set"], "table": table}))
    loaded = load_pretrain_config(path)
    assert loaded.texts == (str(tmp_path / "a.txt"), "org/set")
    assert [entry.start for entry in loaded.table] == [str(tmp_path / "s.safetensors"), "earlier"]
    for wrong, sentence in (("txts: [a]", "txts is not a known key"), ("sae: {checkpoint: x}", "give sae.start")):
        path.write_text(f"name: t\n{wrong}\n")
        with pytest.raises(ConfigError, match=sentence):
            load_pretrain_config(path)


@pytest.mark.parametrize("vectors", ["disk", "stream"])
def test_kill_9_changes_nothing(model: Path, texts: Path, tmp_path: Path, vectors: str) -> None:
    long, path = long_config(model, texts, tmp_path, vectors)
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()}); from core.cli import main; main()"
    command = [sys.executable, "-c", threads, "pretrain", str(path)]
    kill_in_the_middle(command, tmp_path / "t" / "cut" / "training.safetensors")
    whole = (tmp_path / "t" / "whole" / "sae.safetensors").read_bytes()
    rows = pretrain(long, Silent())
    assert (tmp_path / "t" / "cut" / "sae.safetensors").read_bytes() == whole
    assert rows[0] | {"name": "", "file": ""} == rows[1] | {"name": "", "file": ""}
