"""Training a SARM reward model: the first blocks, the SAE and a linear head on its features (SARM section 2.2)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from core import __version__
from core.config import SarmTrainingConfig, fingerprint
from core.data.schema import PreferencePairs
from core.errors import ConfigError, DataError, disk_full_is_said
from core.models.backbone import load_tokenizer
from core.models.resolve import weights_sha256
from core.models.sarm import identity_sae, sarm_of
from core.models.sarm_file import FACTS, load_sarm, save_sarm
from core.progress import Progress
from core.rewards.accuracy import cluster_bootstrap, pair_outcome
from core.rewards.processes import is_main, own_device, wait
from core.rewards.train import encoded_answers, load_dtype, token_comparisons, trains_in_bf16
from core.rewards.trainer import fit_bradley_terry
from core.rewards.validation import HeldBack
from core.sae.topk import TopKSAE
from core.store.stages import write_json

DRAWS = 1000
"""Of the interval of the held-out accuracy."""
HELD_OUT = "held_out.parquet"
"""In the model's folder: what it says of every pair of split 'test'."""


def train_sarm(
    config: SarmTrainingConfig,
    base: Path,
    sae: TopKSAE | None,
    layer: int,
    pairs: PreferencePairs,
    out: Path,
    progress: Progress,
    *,
    pooling: str,
    max_length: int,
    sae_facts: Mapping[str, str] | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    tokens_per_batch: int = 2048,
    name: str | None = None,
) -> dict[str, Any]:
    """Trains a SARM model on the training pairs and saves it as a SARM folder.

    A share of the training prompts is held back to choose the best checkpoint; pairs of split 'test' are used for nothing
    but the final figure, which is measured on the folder as saved, in packed forward passes.
    Interrupted, it goes on from its last checkpoint (kept in `<out>.training`) when called again with the same arguments.
    Under `torchrun` or `accelerate launch` every process calls it; the main one saves and measures.

    Args:
        config: mode, scope, epochs, learning rates, batch, seed.
        base: folder of a causal model.
        sae: a TopK SAE of its hidden_states[layer]; not needed for `encoder: identity`.
        out: the new folder; it appears whole or not at all.
        pooling: 'last' or 'mean'.
        max_length: tokens of prompt and answer kept where `config.max_length` is None.
        sae_facts: what is known of the SAE (the metadata of its file).
        dtype: 'bfloat16' trains with bfloat16 matrix products and stores a bfloat16 decoder; SAE and head stay float32.
        name: of the base, for the facts (its folder otherwise).

    Returns:
        Facts: those of `fit_bradley_terry`, and base, base_sha256, layer, pooling, max_length, held_out (accuracy, 95 %
        interval over prompts, n; None where there are no test pairs), versions. They are in `rewardscope.json` too, and the
        margin of every test pair is in `held_out.parquet`.

    Raises:
        ConfigError: `config.layers` is not the SAE's layer.
        ModelError: base and SAE do not fit, or the training diverged.
        DataError: there are no training pairs.
    """
    if config.layers not in (None, layer):
        raise ConfigError(
            f"reward_model.sarm.layers is {config.layers}, but the SAE reads layer {layer}; leave it out."
        )
    where = own_device(device)
    tokenizer = load_tokenizer(base)
    if tokenizer.pad_token_id is None:  # masked everywhere, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    limit = config.max_length or max_length
    rest, held = held_back_prompts(pairs.pairs.filter(pl.col("split") == "train"), config)
    comparisons = token_comparisons(tokenizer, rest, pairs.responses, limit)
    torch.manual_seed(config.seed)
    sae, sae_facts = _encoder(config, base, sae, sae_facts)
    model = sarm_of(base, sae, layer, pooling, dtype=load_dtype(dtype, where, config), sae_facts=dict(sae_facts))
    base_sha256 = weights_sha256(base)
    key = fingerprint(
        config.model_dump(mode="json"), base_sha256, _weights_hash(sae), layer, pooling, limit, dtype, where.type,
        _pairs_hash(rest, held, pairs.responses),
    )  # fmt: skip
    work = out.with_name(out.name + ".training")
    if is_main():
        _remove_others(work, key)
    wait(where)
    with disk_full_is_said(out.parent):
        model, facts = fit_bradley_terry(
            model,
            tokenizer,
            comparisons,
            config,
            device=where,
            bf16=trains_in_bf16(dtype, where),
            progress=progress,
            held_back=None if held.is_empty() else _answers(tokenizer, held, pairs.responses, limit),
            work=work / key,
        )
    facts |= {
        "kind": "sarm",
        "encoder": config.encoder,
        "base": name or str(base),
        "base_sha256": base_sha256,
        "layer": layer,
        "latents": sae.latents,
        "k": sae.k,
        "pooling": pooling,
        "max_length": limit,
        "dtype": dtype,
        "sae": dict(sae_facts),
        "rewardscope": __version__,
    }
    if not is_main():
        return facts
    save_sarm(out, model, tokenizer, dtype=dtype, facts=facts)
    held_out = held_out_margins(
        out, pairs, progress, max_length=max_length, dtype=dtype, device=str(where), tokens_per_batch=tokens_per_batch
    )
    facts["held_out"] = None if held_out.is_empty() else held_out_accuracy(held_out)
    held_out.write_parquet(out / HELD_OUT)
    write_json(out / FACTS, facts)
    shutil.rmtree(work, ignore_errors=True)
    return facts


def held_back_prompts(train: pl.DataFrame, config: SarmTrainingConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The pairs that train and those held back: whole prompts, drawn by the seed, at least one on either side.

    Nothing is held back where the share is 0 or there is one prompt.

    Raises:
        DataError: there are no training pairs.
    """
    if train.is_empty():
        raise DataError("There are no training pairs; check the split of the pairs.")
    prompts = np.unique(train["prompt_id"].to_numpy())
    n = min(len(prompts) - 1, int(np.ceil(config.validation_fraction * len(prompts))))
    drawn = np.random.default_rng(config.seed).permutation(prompts)[:n]
    held = train["prompt_id"].is_in(drawn.tolist())
    return train.filter(~held), train.filter(held)


def held_out_margins(
    folder: Path,
    pairs: PreferencePairs,
    progress: Progress,
    *,
    max_length: int,
    dtype: str,
    device: str,
    tokens_per_batch: int = 2048,
) -> pl.DataFrame:
    """What a SARM folder says of the pairs of split 'test'.

    Returns:
        pair_id, prompt_id, margin (Float64: lowest chosen minus highest rejected reward), in order of pair_index.
    """
    test = pairs.pairs.filter(pl.col("split") == "test").sort("pair_index")
    if test.is_empty():
        return test.select("pair_id", "prompt_id", margin=pl.lit(0.0))
    loaded = load_sarm(folder, dtype=dtype, device=device)
    answers = _answers(loaded.backbone.tokenizer, test, pairs.responses, max_length)
    groups: dict[int, list[int]] = {}
    for row, pair in enumerate(answers.pair.tolist()):
        groups.setdefault(pair, []).append(row)
    with progress.task("measuring", test.height, "pairs") as task:
        rewards = loaded.rewards(
            ([(answers.ids[i], answers.start[i]) for i in group] for group in groups.values()), tokens_per_batch
        )
        task.advance(test.height)
    _, margin = pair_outcome(rewards, answers.pair, answers.chosen)
    return test.select("pair_id", "prompt_id", margin=pl.Series(margin))


def held_out_accuracy(margins: pl.DataFrame) -> dict[str, Any]:
    """Accuracy of what `held_out_margins` found, with a 95 % interval over prompts: accuracy, low, high, n, n_prompts."""
    correct, prompts = (margins["margin"] > 0).to_numpy(), margins["prompt_id"].to_numpy()
    found = cluster_bootstrap(correct, prompts, draws=DRAWS, seed=0)
    return {
        "accuracy": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "n_prompts": found.clusters,
    }


def _answers(tokenizer: Any, pairs: pl.DataFrame, responses: pl.DataFrame, max_length: int) -> HeldBack:
    """The answers to some pairs, their pairs counted from 0 in order of pair_index."""
    encoded, answers = encoded_answers(tokenizer, pairs.sort("pair_index"), responses, max_length)
    pair = np.unique(answers["pair_index"].to_numpy(), return_inverse=True)[1].astype(np.int64)
    chosen = (answers["side"] == "chosen").to_numpy()
    return HeldBack([one.ids for one in encoded], [one.answer_start for one in encoded], pair, chosen)


def _encoder(
    config: SarmTrainingConfig, base: Path, sae: TopKSAE | None, facts: Mapping[str, str] | None
) -> tuple[TopKSAE, Mapping[str, str]]:
    if config.encoder == "identity":
        from transformers import AutoConfig

        from core.models.backbone import decoder_config

        width = int(decoder_config(AutoConfig.from_pretrained(base, trust_remote_code=False)).hidden_size)
        return identity_sae(width), {"level": "identity"}
    if sae is None:
        raise ConfigError("A SARM model needs an SAE; give sae.checkpoint, or settings to train one.")
    return sae, facts or {}


def _weights_hash(sae: TopKSAE) -> str:
    """Short and quick: sums of the weights, which differ between any two SAEs that were trained or drawn apart."""
    return fingerprint(
        [[key, w.double().sum().item(), w.double().abs().sum().item()] for key, w in sae.named_parameters()]
    )


def _pairs_hash(rest: pl.DataFrame, held: pl.DataFrame, responses: pl.DataFrame) -> str:
    used = pl.concat([rest, held])
    texts = responses.filter(pl.col("pair_index").is_in(used["pair_index"].implode()))
    answers = texts.select("pair_index", "side", "text").sort("pair_index", "side", "text").rows()
    return fingerprint(answers, used.select("pair_id", "prompt_id").rows(), len(rest))


def _remove_others(work: Path, key: str) -> None:
    """Checkpoints of other settings, data or weights."""
    for folder in work.iterdir() if work.is_dir() else ():
        if folder.name != key:
            shutil.rmtree(folder, ignore_errors=True)
