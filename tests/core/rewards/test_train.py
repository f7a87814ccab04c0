"""Training an ordinary reward model: what is saved is plain transformers, sees extraction's tokens, and learns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from core.config import PairsConfig, RewardTrainingConfig
from core.data.chat import encode_pairs
from core.data.load import load_pairs
from core.data.schema import PreferencePairs
from core.errors import DataError, ModelError
from core.models.backbone import load_tokenizer
from core.models.classifier import load_classifier
from core.progress import Silent
from core.rewards.comparisons import Collator, TokenComparisons, at_once
from core.rewards.train import base_classifier, reward_tokenizer, token_comparisons, train_reward_model
from tests.core.models.architectures import save_model
from tests.tiny_run import write_pairs

MAX_LENGTH = 32  # some prompts are cut


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PreferencePairs:
    source = write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")
    return load_pairs(PairsConfig(source=str(source), test_fraction=0.3))


def rewards_of(folder: Path, sequences: list[list[int]]) -> np.ndarray:
    """Through plain transformers, one by one."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return np.array([model(torch.tensor([ids])).logits[0, 0].item() for ids in sequences])


@pytest.mark.parametrize("scope", ["head", "lora", "full"])
def test_a_trained_model_is_plain_transformers_and_has_learnt(
    base: Path, pairs: PreferencePairs, scope: str, tmp_path: Path
) -> None:
    config = RewardTrainingConfig(scope=scope, layers=2, epochs=4, learning_rate=1e-2, batch=4)
    out = tmp_path / "model"
    facts = train_reward_model(config, base, pairs, out, Silent(), max_length=MAX_LENGTH, dtype="float32", device="cpu")
    assert json.loads((out / "rewardscope.json").read_text()) == facts
    assert facts["layers"] == 2
    assert facts["loss_last"] < facts["loss_first"] == pytest.approx(np.log(2), abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    # It has learnt its training pairs, and batches give what single sequences give (padding is masked and never pooled).
    train = pairs.pairs.filter(pl.col("split") == "train")
    comparisons = token_comparisons(AutoTokenizer.from_pretrained(out), train, pairs.responses, MAX_LENGTH)
    chosen, rejected = list(map(list, comparisons.chosen)), list(map(list, comparisons.rejected))
    one_by_one = rewards_of(out, chosen + rejected)
    better = one_by_one[: len(chosen)] > one_by_one[len(chosen) :]
    assert better.mean() > 0.75
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32).eval()
    rows = [
        {"chosen_ids": a, "rejected_ids": b, "chosen_start": 1, "rejected_start": 1}
        for a, b in zip(chosen, rejected, strict=True)
    ]
    batch = Collator(model.config.pad_token_id, False)(rows)
    with torch.inference_mode():
        np.testing.assert_allclose(model(**batch).logits[:, 0].numpy(), one_by_one, atol=1e-4, rtol=1e-4)
    packed = load_classifier(out, dtype="float32", device="cpu").rewards([[ids] for ids in chosen + rejected], 64)
    np.testing.assert_allclose(packed, one_by_one, atol=1e-4, rtol=1e-4)
    # The scope is what was trained.
    before = base_classifier(base, reward_tokenizer(base), layers=2, dtype=torch.float32).state_dict()
    changed = {key for key, weight in model.state_dict().items() if not torch.equal(weight, before[key])}
    assert "score.weight" in changed
    blocks = {key for key in changed if key.startswith("model.layers.")}
    assert bool(blocks) == (scope != "head")
    assert ("model.embed_tokens.weight" in changed) == (scope == "full")


def test_the_same_seed_gives_the_same_model(base: Path, pairs: PreferencePairs, tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = RewardTrainingConfig(scope="lora", layers=1, batch=8, learning_rate=1e-2, seed=seed)
        out = tmp_path / name
        train_reward_model(config, base, pairs, out, Silent(), max_length=64, dtype="float32", device="cpu")
        files.append((out / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_training_sees_the_tokens_extraction_sees(base: Path, pairs: PreferencePairs) -> None:
    tokenizer = load_tokenizer(base)
    comparisons = token_comparisons(tokenizer, pairs.pairs, pairs.responses, MAX_LENGTH)
    texts = pairs.responses.group_by("pair_index", maintain_order=True).agg("text")["text"].to_list()
    conversations = list(zip(pairs.pairs["messages"].to_list(), texts, strict=True))
    encoded = encode_pairs(tokenizer, conversations, max_length=MAX_LENGTH)
    for ids, start, pair in zip(comparisons.chosen, comparisons.chosen_start, comparisons.pair.tolist(), strict=True):
        assert (ids, start) == (encoded[pair][0].ids, encoded[pair][0].answer_start)
    assert max(map(len, comparisons.rejected)) == MAX_LENGTH


def test_padding_is_never_the_token_that_ends_a_turn(base: Path, tmp_path: Path) -> None:
    """Where it is, the pooled token would be the one before: `[PAD]` is added and the model given room for it."""
    assert reward_tokenizer(base).pad_token_id == 0  # it has its own
    folder = save_model("llama", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    padded = reward_tokenizer(folder)
    assert padded.pad_token == "[PAD]"
    assert padded.pad_token_id != padded.eos_token_id
    model = base_classifier(folder, padded, layers=1, dtype=torch.float32)
    assert model.config.pad_token_id == padded.pad_token_id < model.get_input_embeddings().num_embeddings


@pytest.mark.model
def test_the_embedded_models_padding_is_its_end_of_turn(smollm2: Path) -> None:
    tokenizer = reward_tokenizer(smollm2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[PAD]", 49152)
    model = base_classifier(smollm2, tokenizer, layers=1, dtype=torch.float32)
    assert model.get_input_embeddings().num_embeddings == 49153
    assert float(model.score.weight.detach().abs().max()) == 0.0


def test_edits_flip_and_drop_whole_pairs() -> None:
    rows = TokenComparisons(
        [[1], [2], [3], [4]], [[5], [6], [7], [8]], [0, 1, 2, 3], [4, 5, 6, 7], np.array([0, 1, 1, 2])
    )
    edited = rows.edited(np.array([1]), np.array([2]))
    assert (edited.chosen, edited.rejected) == ([[1], [6], [7]], [[5], [2], [3]])
    assert (edited.chosen_start, edited.rejected_start) == ([0, 5, 6], [4, 1, 2])
    assert edited.pair.tolist() == [0, 1, 1]


def test_long_batches_are_accumulated() -> None:
    assert at_once(8, 100) == 8
    assert at_once(8, 4096) == 2
    assert at_once(7, 4096) == 1
    assert at_once(1, 100_000) == 1


def test_what_cannot_be_trained_is_said(
    base: Path, pairs: PreferencePairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: RewardTrainingConfig, some: PreferencePairs = pairs) -> None:
        train_reward_model(config, base, some, tmp_path / "out", Silent(), max_length=64, dtype="float32", device="cpu")

    held_out = PreferencePairs(pairs.pairs.filter(split="test"), pairs.responses, (), {})
    with pytest.raises(DataError, match="no training pairs"):
        train(RewardTrainingConfig(scope="head"), held_out)
    with pytest.raises(ModelError, match=r"the model has 4 layers"):
        train(RewardTrainingConfig(scope="head", layers=9))
    with pytest.raises(ModelError, match="diverged .* lower it"):
        train(RewardTrainingConfig(scope="full", layers=1, learning_rate=1e30))
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ModelError, match=r"needs trl; install it with `pip install rewardscope\[train\]`"):
        train(RewardTrainingConfig(scope="head"))
    assert not list(tmp_path.iterdir())
