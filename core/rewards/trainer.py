"""Bradley-Terry training of any one-output model through TRL's RewardTrainer and peft: one place that knows both.

    loss = mean over comparisons of -log sigmoid(r_chosen - r_rejected)

What is trained is a scope: `head` (the scalar head alone), `lora` (low-rank updates of every linear map in the decoder
blocks, and the head) or `full` (every weight of the decoder, and the head).
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch

from core.config import RewardTrainingConfig
from core.errors import ModelError
from core.models.resolve import quiet_transformers
from core.progress import Progress, Task

LEARNING_RATES = {"lora": 2e-4, "full": 2e-5}
"""Defaults of each scope (AdamW): `full` is SAFER's; low-rank updates take larger steps."""
HEAD_RATE, FEATURE_HEAD_RATE = 1e-3, 1e-2
"""The head's own: it starts at zero. Pooled SAE features are an order of magnitude smaller than normed states."""
WEIGHT_DECAY, WARMUP = 0.001, 0.03  # SAFER section 3.2 (cosine schedule)
TOKENS_AT_ONCE = 16_384
"""Largest padded batch in one forward pass; larger batches are accumulated, which changes no gradient but rounding."""


@dataclass(frozen=True)
class TokenComparisons:
    """Chosen-rejected comparisons as token ids.

    Attributes:
        chosen, rejected: token ids of each comparison's conversations, the end-of-turn token last.
        chosen_start, rejected_start: index of each answer's first token.
        pair: int64 [n], index of the pair each comparison comes from; a pair of several answers has several.
    """

    chosen: Sequence[Sequence[int]]
    rejected: Sequence[Sequence[int]]
    chosen_start: Sequence[int]
    rejected_start: Sequence[int]
    pair: np.ndarray

    def __len__(self) -> int:
        return len(self.pair)

    def edited(self, flip: np.ndarray, drop: np.ndarray) -> TokenComparisons:
        """The comparisons with some pairs' answers changing sides and others left out.

        Args:
            flip, drop: pair indices.
        """
        turned = np.isin(self.pair, flip)
        keep = np.flatnonzero(~np.isin(self.pair, drop)).tolist()
        ids, starts = (self.chosen, self.rejected), (self.chosen_start, self.rejected_start)
        return TokenComparisons(
            [ids[int(turned[i])][i] for i in keep],
            [ids[int(not turned[i])][i] for i in keep],
            [starts[int(turned[i])][i] for i in keep],
            [starts[int(not turned[i])][i] for i in keep],
            self.pair[keep],
        )


def fit_bradley_terry(
    model: Any,
    tokenizer: Any,
    comparisons: TokenComparisons,
    config: RewardTrainingConfig,
    *,
    device: torch.device,
    bf16: bool,
    progress: Progress,
    name: str = "reward model",
) -> tuple[Any, dict[str, Any]]:
    """Trains a one-output model on comparisons.

    Args:
        model: a transformers model with `num_labels == 1`, its decoder under `model.` and its head under `score.`.
        tokenizer: with a padding token that ends no conversation.
        config: scope, epochs, learning rate, batch, rank, seed.
        bf16: matrix products in bfloat16 (weights that are trained stay float32).

    Returns:
        The model with its low-rank updates merged, in evaluation mode, and facts: n_comparisons, n_pairs, steps, tokens,
        loss of the first and the last twentieth, seconds, device, the settings used and the versions of what trained it.

    Raises:
        ModelError: TRL or peft is not installed, or the training diverged.
        DataError: there is nothing to train on.
    """
    trl, peft = _libraries()
    if len(comparisons) == 0:
        raise ModelError("There are no training pairs left to train a reward model on; change fewer, or give more.")
    longest = max(max(map(len, comparisons.chosen)), max(map(len, comparisons.rejected)))
    at_once = _at_once(config.batch, longest)
    rate, head_rate = learning_rates(config, pools_features=bool(getattr(model, "pools_answers", False)))
    steps = max(1, round(np.ceil(len(comparisons) / config.batch) * config.epochs))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        model = _opened(model.to(device), config, peft)
        arguments = trl.RewardConfig(
            output_dir=folder,
            use_cpu=device.type == "cpu",
            bf16=bf16,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=config.batch // at_once,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=int(np.ceil(WARMUP * steps)),
            weight_decay=WEIGHT_DECAY,
            train_sampling_strategy="group_by_length",
            max_length=None,
            gradient_checkpointing=device.type != "cpu" and config.scope != "head",
            dataloader_pin_memory=device.type == "cuda",
            remove_unused_columns=False,
            save_strategy="no",
            logging_steps=max(1, steps // 20),
            report_to=[],
            disable_tqdm=True,
            seed=config.seed,
            data_seed=config.seed,
        )
        if arguments.n_gpu > 1:  # one process trains on one device; several go through `accelerate launch`
            arguments._n_gpu = 1
        trainer = trl.RewardTrainer(
            model=model,
            args=arguments,
            train_dataset=_dataset(comparisons),
            processing_class=tokenizer,
            data_collator=_Collator(tokenizer.pad_token_id, bool(getattr(model, "pools_answers", False))),
            optimizers=(_optimizer(model, rate, head_rate), None),
        )
        with progress.task(name, steps, "steps") as task:
            _listen(trainer, task)
            trainer.train()
        trained = trainer.model.merge_and_unload() if config.scope == "lora" else trainer.model
    if any(not torch.isfinite(weight).all() for weight in trained.parameters() if weight.is_floating_point()):
        raise ModelError(f"The training diverged (NaN or infinity) at learning rate {rate:g}; lower it.")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    facts = {
        "scope": config.scope,
        "epochs": config.epochs,
        "learning_rate": rate,
        "head_learning_rate": head_rate,
        "batch": config.batch,
        "lora_rank": config.lora_rank if config.scope == "lora" else None,
        "seed": config.seed,
        "n_comparisons": len(comparisons),
        "n_pairs": len(np.unique(comparisons.pair)),
        "steps": int(trainer.state.global_step),
        "tokens": sum(map(len, comparisons.chosen)) + sum(map(len, comparisons.rejected)),
        "longest": longest,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "seconds": round(time.monotonic() - begin, 1),
        "device": device.type,
        "bf16": bf16,
        "trainer": {name: metadata.version(name) for name in ("trl", "peft", "transformers", "accelerate", "torch")},
    }
    return trained.eval().requires_grad_(False), facts


def learning_rates(config: RewardTrainingConfig, *, pools_features: bool) -> tuple[float, float]:
    """The rates of the decoder's weights and of the head; a given rate is the decoder's, or a lone head's.

    Args:
        pools_features: the head reads pooled SAE features and not a state.
    """
    head = FEATURE_HEAD_RATE if pools_features else HEAD_RATE
    if config.scope == "head":
        return (config.learning_rate or head,) * 2
    rate = config.learning_rate or LEARNING_RATES[config.scope]
    return rate, max(rate, head)


def _opened(model: Any, config: RewardTrainingConfig, peft: Any) -> Any:
    """The model with the weights of the scope open to training, all others frozen."""
    if config.scope == "lora":
        decoder = [n for n, m in model.named_modules() if n.startswith("model.") and isinstance(m, torch.nn.Linear)]
        torch.manual_seed(config.seed)  # of the low-rank factors
        lora = peft.LoraConfig(
            r=config.lora_rank,
            lora_alpha=2 * config.lora_rank,
            target_modules=decoder,
            modules_to_save=["score"],
            task_type="SEQ_CLS",
        )
        return peft.get_peft_model(model, lora)
    for key, weight in model.named_parameters():
        weight.requires_grad_(key.startswith("score.") or (config.scope == "full" and key.startswith("model.")))
    return model


def _optimizer(model: Any, rate: float, head_rate: float) -> torch.optim.Optimizer:
    """AdamW with a rate of its own for the head, which starts at zero and has few steps to grow in."""
    open_ = [(key, weight) for key, weight in model.named_parameters() if weight.requires_grad]
    head = [weight for key, weight in open_ if "score." in key]
    body = [weight for key, weight in open_ if "score." not in key]
    groups = [{"params": body, "lr": rate}, {"params": head, "lr": head_rate}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=WEIGHT_DECAY)


@dataclass(frozen=True)
class _Collator:
    """Pads on the right; chosen first, then rejected, as TRL's loss expects."""

    pad: int
    with_start: bool  # the model pools over answers and must know where they start

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        start = [row["chosen_start"] for row in rows] + [row["rejected_start"] for row in rows]
        width = max(map(len, ids))
        tokens = torch.full((len(ids), width), self.pad, dtype=torch.long)
        mask = torch.zeros(len(ids), width, dtype=torch.long)
        for row, sequence in enumerate(ids):
            tokens[row, : len(sequence)] = torch.as_tensor(sequence)
            mask[row, : len(sequence)] = 1
        batch = {"input_ids": tokens, "attention_mask": mask}
        if self.with_start:
            batch["answer_start"] = torch.tensor(start)
        return batch


def _dataset(comparisons: TokenComparisons) -> Any:
    from datasets import Dataset

    lengths = [max(len(a), len(b)) for a, b in zip(comparisons.chosen, comparisons.rejected, strict=True)]
    return Dataset.from_dict(
        {
            "chosen_ids": [list(ids) for ids in comparisons.chosen],
            "rejected_ids": [list(ids) for ids in comparisons.rejected],
            "chosen_start": list(comparisons.chosen_start),
            "rejected_start": list(comparisons.rejected_start),
            "length": lengths,
        }
    )


def _at_once(batch: int, longest: int) -> int:
    """Pairs in one forward pass: the largest divisor of the batch whose padded tokens stay within bounds."""
    return max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or 2 * n * longest <= TOKENS_AT_ONCE))


def _libraries() -> tuple[Any, Any]:
    try:
        import peft
        import trl
    except ImportError as error:
        raise ModelError(
            f"Training a reward model needs {error.name}; install it with `pip install rewardscope[train]`."
        ) from None
    return trl, peft


def _listen(trainer: Any, task: Task) -> None:
    """Reports every optimiser step; the trainer's own printing is taken out."""
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            task.advance()

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Steps())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither notices nor the library's progress bars on the user's terminal."""
    import datasets

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with quiet_transformers(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        if not bars:
            datasets.enable_progress_bars()
