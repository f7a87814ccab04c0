"""Training an ordinary reward model: a causal model with a scalar head in place of its vocabulary (SAFER section 3.2)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from core.config import RewardTrainingConfig
from core.data.chat import EncodedAnswer, encode_pair, encode_pairs
from core.data.schema import PreferencePairs
from core.errors import DataError, ModelError, disk_full_is_said
from core.models.backbone import cut_config, load_tokenizer, pick_device
from core.models.resolve import quiet_transformers, weights_sha256
from core.progress import Progress
from core.rewards.head import all_comparisons
from core.rewards.trainer import TokenComparisons, fit_bradley_terry
from core.store.stages import write_json

PAD = "[PAD]"
FACTS = "rewardscope.json"


def train_reward_model(
    config: RewardTrainingConfig,
    base: Path,
    pairs: PreferencePairs,
    out: Path,
    progress: Progress,
    *,
    max_length: int,
    dtype: str = "bfloat16",
    device: str = "auto",
) -> dict[str, Any]:
    """Trains a reward model on the training pairs and saves it as a plain transformers checkpoint.

    Answers are tokenised as extraction does it (core/data/chat), with the tokenizer that is saved beside the model.

    Args:
        config: scope, blocks kept, epochs, learning rate, batch, seed.
        base: folder of a causal model (or of a reward model to train further).
        pairs: the run's pairs; only those of split 'train' are used.
        out: the new folder: config.json, safetensors, tokenizer, and `rewardscope.json` with the facts. It appears
            whole or not at all; AutoModelForSequenceClassification loads it.
        max_length: tokens of prompt and answer kept where `config.max_length` is None.
        dtype: 'bfloat16' trains with bfloat16 matrix products and stores bfloat16 weights (the head stays float32).

    Returns:
        Facts: those of `fit_bradley_terry`, and base_sha256, layers, max_length, pad_token.

    Raises:
        ModelError: the base cannot be loaded, or the training diverged.
        DataError: there are no training pairs.
    """
    where = pick_device(device)
    tokenizer = reward_tokenizer(base)
    limit = config.max_length or max_length
    train = pairs.pairs.filter(pl.col("split") == "train")
    comparisons = token_comparisons(tokenizer, train, pairs.responses, limit)
    model = base_classifier(base, tokenizer, layers=config.layers, dtype=load_dtype(dtype, where, config))
    model, facts = fit_bradley_terry(
        model, tokenizer, comparisons, config, device=where, bf16=trains_in_bf16(dtype, where), progress=progress
    )
    facts |= {
        "base_sha256": weights_sha256(base),
        "layers": int(model.config.num_hidden_layers),
        "max_length": limit,
        "pad_token": tokenizer.pad_token,
    }
    save_classifier(out, model, tokenizer, dtype, facts)
    return facts


def reward_tokenizer(base: Path) -> Any:
    """The base's tokenizer with a padding token that ends no conversation.

    A classifier takes the last token that is not padding for the pooled one. Where padding is the end-of-turn token
    (or there is none), that would be the token before it, so `[PAD]` is added, as SAFER does.
    """
    probe = load_tokenizer(base)
    last = encode_pair(probe, [{"role": "user", "content": "a"}], ["a"], max_length=1 << 20)[0].ids[-1]
    if probe.pad_token_id is not None and probe.pad_token_id not in (last, probe.eos_token_id):
        return probe
    tokenizer = load_tokenizer(base)
    tokenizer.add_special_tokens({"pad_token": PAD})
    return tokenizer


def token_comparisons(
    tokenizer: Any, pairs: pl.DataFrame, responses: pl.DataFrame, max_length: int
) -> TokenComparisons:
    """Every chosen answer against every rejected one of the given pairs, tokenised.

    Args:
        pairs: pair_id, pair_index and messages (as lists, or as the JSON a run stores).
        responses: pair_index, side, rank and text; those of other pairs are left aside.

    Raises:
        DataError: there is no pair.
    """
    if pairs.is_empty():
        raise DataError("There are no training pairs; check the split of the pairs.")
    encoded, answers = encoded_answers(tokenizer, pairs, responses, max_length)
    rows = all_comparisons(answers["pair_index"].to_numpy().astype(np.int64), (answers["side"] == "chosen").to_numpy())
    chosen, rejected = ([encoded[i] for i in side.tolist()] for side in (rows.chosen, rows.rejected))
    return TokenComparisons(
        [one.ids for one in chosen],
        [one.ids for one in rejected],
        [one.answer_start for one in chosen],
        [one.answer_start for one in rejected],
        rows.pair,
    )


def encoded_answers(
    tokenizer: Any, pairs: pl.DataFrame, responses: pl.DataFrame, max_length: int
) -> tuple[list[EncodedAnswer], pl.DataFrame]:
    """The answers to some pairs, tokenised after their conversations.

    Returns:
        One entry for each row of the second: the pairs' responses in order of response_id.
    """
    answers = responses.filter(pl.col("pair_index").is_in(pairs["pair_index"].implode())).sort("response_id")
    by_pair = answers.group_by("pair_index", maintain_order=True).agg("text")
    ordered = by_pair.join(pairs.select("pair_index", "messages"), on="pair_index", maintain_order="left")
    turns = ordered["messages"].to_list()
    conversations: list[Any] = [json.loads(one) if isinstance(one, str) else one for one in turns]
    texts: list[Sequence[str]] = by_pair["text"].to_list()
    encoded = encode_pairs(tokenizer, list(zip(conversations, texts, strict=True)), max_length=max_length)
    return [answer for pair in encoded for answer in pair], answers


def base_classifier(base: Path, tokenizer: Any, *, layers: int | None, dtype: torch.dtype) -> Any:
    """A one-output classifier on the first blocks of a causal model, its head at zero (no answer is preferred yet).

    The head of a base that already is a reward model is kept.

    Raises:
        ModelError: not a decoder transformers knows, fewer layers than asked, or weights missing.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with quiet_transformers():
        try:
            whole = AutoConfig.from_pretrained(base, trust_remote_code=False)
            config = whole.get_text_config()
            nested = {r"^(model\.)?language_model\.(model\.)?": "model."} if config is not whole else None
            config = cut_config(config, layers or config.num_hidden_layers)
            config.num_labels = 1
            model, report = AutoModelForSequenceClassification.from_pretrained(
                base,
                config=config,
                dtype=dtype,
                attn_implementation="sdpa",
                trust_remote_code=False,
                use_safetensors=True,
                key_mapping=nested,
                output_loading_info=True,
            )
        except (ValueError, OSError, KeyError, RuntimeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"The model in {base} cannot be made a reward model: {first}") from None
        lost = sorted(set(report["missing_keys"]) - {"score.weight"})
        if lost or report.get("mismatched_keys"):
            raise ModelError(
                f"The weights in {base} do not fit its config.json ({lost[:1] or report['mismatched_keys']}); "
                "copy the folder again."
            )
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.score.to(torch.float32)
    if "score.weight" in report["missing_keys"]:
        torch.nn.init.zeros_(model.score.weight)
    return model


def save_classifier(out: Path, model: Any, tokenizer: Any, dtype: str, facts: dict[str, Any]) -> None:
    """Writes a checkpoint folder aside and moves it into place."""
    aside = out.with_name(out.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    with disk_full_is_said(out.parent):
        try:
            head = model.score.weight.detach().float().cpu().clone()
            model.to("cpu", dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32)
            model.score.to(torch.float32)
            with torch.no_grad():
                model.score.weight.copy_(head)
            with quiet_transformers():
                model.save_pretrained(aside)
                tokenizer.save_pretrained(aside)
            write_json(aside / FACTS, facts)
            shutil.rmtree(out, ignore_errors=True)
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def trains_in_bf16(dtype: str, device: torch.device) -> bool:
    """Whether matrix products are bfloat16: where asked, on a CUDA device or a CPU that multiplies in it."""
    if dtype != "bfloat16":
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def load_dtype(dtype: str, device: torch.device, config: RewardTrainingConfig) -> torch.dtype:
    """Frozen weights on an accelerator are held in bfloat16; weights that are trained always in float32."""
    frozen = config.scope != "full" and device.type == "cuda" and trains_in_bf16(dtype, device)
    return torch.bfloat16 if frozen else torch.float32
