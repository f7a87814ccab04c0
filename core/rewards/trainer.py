"""Bradley-Terry training of any one-output model through TRL's RewardTrainer and peft: one place that knows both.

    loss = mean over comparisons of -log sigmoid(r_chosen - r_rejected)   [+ reconstruction x the SAE's own loss]

What is trained is a scope, and for a SARM model a mode (core/rewards/scopes). Under `torchrun` or `accelerate launch` the
batch is shared out over the processes: a step is the same number of pairs, and the same gradient for the same pairs.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.config import RewardTrainingConfig, SarmTrainingConfig
from core.errors import ModelError
from core.models.resolve import quiet_transformers
from core.progress import Progress, Silent, Task
from core.rewards.comparisons import TOKENS_AT_ONCE, Collator, TokenComparisons, at_once, dataset
from core.rewards.processes import is_main, world
from core.rewards.scopes import WEIGHT_DECAY, learning_rates, opened, optimizer, reconstructs
from core.rewards.validation import HeldBack, measured_rewards

__all__ = ["TOKENS_AT_ONCE", "TokenComparisons", "fit_bradley_terry", "learning_rates"]

WARMUP = 0.03  # SAFER section 3.2 (cosine schedule)
MEASUREMENTS = 4
"""Measurements on held-back pairs in a training that does not say how many."""


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
    held_back: HeldBack | None = None,
    work: Path | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Trains a one-output model on comparisons.

    Args:
        model: a transformers model with `num_labels == 1`, its decoder under `model.` and its head under `score.`.
        tokenizer: its padding token fills batches; a model that does not pool by mask needs one that ends no conversation.
        config: scope, epochs, learning rate, batch, rank, seed; for a SARM model also mode and reconstruction.
        bf16: matrix products in bfloat16 (weights that are trained stay float32).
        held_back: pairs on which the model is measured several times; the best step is kept, of equal ones the earliest.
            Without them the last step is.
        work: folder for checkpoints; a training that was interrupted goes on from the last one in it. Needed for
            `held_back`.

    Returns:
        The model with its low-rank updates merged, in evaluation mode, and facts: n_comparisons, n_pairs, steps, tokens,
        loss of the first and the last twentieth, measurements, seconds, device, the settings used and the versions of what
        trained it.

    Raises:
        ModelError: TRL or peft is not installed, the batch cannot be shared out, or the training diverged.
        DataError: there is nothing to train on.
    """
    trl, peft = _libraries()
    if len(comparisons) == 0:
        raise ModelError("There are no training pairs left to train a reward model on; change fewer, or give more.")
    if config.batch % world():
        raise ModelError(f"A batch of {config.batch} pairs cannot be shared out over {world()} processes evenly.")
    longest = max(max(map(len, comparisons.chosen)), max(map(len, comparisons.rejected)))
    share = config.batch // world()
    passes = at_once(share, longest)
    pools = bool(getattr(model, "pools_answers", False))
    rate, head_rate = learning_rates(config, pools_features=pools)
    steps = max(1, round(np.ceil(len(comparisons) / config.batch) * config.epochs))
    every = _every(config, steps)
    begin = time.monotonic()
    with _folder(work) as folder, _quiet():
        model = opened(model.to(device), config, peft)
        arguments = trl.RewardConfig(
            output_dir=str(folder),
            use_cpu=device.type == "cpu",
            bf16=bf16,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=passes,
            gradient_accumulation_steps=share // passes,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=int(np.ceil(WARMUP * steps)),
            weight_decay=WEIGHT_DECAY,
            train_sampling_strategy="group_by_length",
            max_length=None,
            gradient_checkpointing=_checkpoints_gradients(config, device),
            dataloader_pin_memory=device.type == "cuda",
            remove_unused_columns=False,
            logging_steps=max(1, steps // 20),
            report_to=[],
            disable_tqdm=True,
            seed=config.seed,
            data_seed=config.seed,
            **_measuring(held_back, work, every),
        )
        if arguments.n_gpu > 1:  # one process trains on one device; several go through `accelerate launch`
            arguments._n_gpu = 1
        data = dataset(comparisons)
        trainer = _trainer_class(trl, held_back, config)(
            model=model,
            args=arguments,
            train_dataset=data,
            eval_dataset=None if held_back is None else data.select([0]),  # measured by `evaluate` above, not by TRL
            processing_class=tokenizer,
            data_collator=Collator(tokenizer.pad_token_id, pools),
            optimizers=(optimizer(model, rate, head_rate), None),
        )
        with (progress if is_main() else Silent()).task(name, steps, "steps") as task:
            last = _last_checkpoint(folder)
            _listen(trainer, task, done=_step_of(last))
            try:
                trainer.train(resume_from_checkpoint=last)
            except ModelError:  # states that are not finite: of the base, or of what became of it
                if trainer.state.global_step == 0:
                    raise
                raise ModelError(_diverged(rate)) from None
        trained = trainer.model.merge_and_unload() if config.scope == "lora" else trainer.model
    if any(not torch.isfinite(weight).all() for weight in trained.parameters() if weight.is_floating_point()):
        raise ModelError(_diverged(rate))
    log = trainer.state.log_history
    losses = [entry["loss"] for entry in log if "loss" in entry]
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
    if isinstance(config, SarmTrainingConfig):
        facts |= {"mode": config.mode, "reconstruction": config.reconstruction if reconstructs(config) else None}
        facts |= {"processes": world(), "gradient_checkpointing": bool(arguments.gradient_checkpointing)}
    if held_back is not None:
        measured = [{"step": e["step"], "accuracy": e["eval_accuracy"]} for e in log if "eval_accuracy" in e]
        facts |= {
            "measured": measured,
            "n_held_back_pairs": held_back.n_pairs,
            "best_step": trainer.state.best_global_step,
            "best_accuracy": trainer.state.best_metric,
        }
    return trained.eval().requires_grad_(False), facts


def _diverged(rate: float) -> str:
    return f"The training diverged (NaN or infinity) at learning rate {rate:g}; lower it."


def _trainer_class(trl: Any, held_back: HeldBack | None, config: RewardTrainingConfig) -> Any:
    """TRL's trainer, with the SAE's loss added where the mode asks for it and with the measurement of this program."""
    how = reconstructs(config)
    weight = config.reconstruction if isinstance(config, SarmTrainingConfig) else 0.0

    class Trainer(trl.RewardTrainer):
        control: Any

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            if how is None:
                return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
            loss, outputs = super().compute_loss(model, {**inputs, "reconstruct": how}, return_outputs=True, **kwargs)
            loss = loss + weight * outputs.reconstruction
            return (loss, outputs) if return_outputs else loss

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            assert held_back is not None
            found = {"eval_accuracy": held_back.accuracy(measured_rewards(self, held_back))}
            self.log(dict(found))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
            return found

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """Nothing beside the weights of a checkpoint that is removed at the end."""

    return Trainer


def _every(config: RewardTrainingConfig, steps: int) -> int:
    """Steps between measurements and checkpoints."""
    given = config.evaluate_every if isinstance(config, SarmTrainingConfig) else None
    return min(steps, given or max(1, -(-steps // MEASUREMENTS)))


def _checkpoints_gradients(config: RewardTrainingConfig, device: torch.device) -> bool:
    given = config.gradient_checkpointing if isinstance(config, SarmTrainingConfig) else None
    wanted = device.type != "cpu" if given is None else given
    return wanted and config.scope != "head"  # nothing flows back into the blocks of a lone head


def _measuring(held_back: HeldBack | None, work: Path | None, every: int) -> dict[str, Any]:
    """Arguments of the trainer: checkpoints and measurements at the same steps."""
    if work is None:
        if held_back is not None:
            raise ValueError("the best checkpoint needs a folder to lie in")
        return {"save_strategy": "no"}
    saving = {"save_strategy": "steps", "save_steps": every, "save_total_limit": 2}
    if held_back is None:
        return {**saving, "save_total_limit": 1}
    return {
        **saving,
        "eval_strategy": "steps",
        "eval_steps": every,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_accuracy",
        "greater_is_better": True,  # strictly: of equal accuracies the earliest is kept
    }


@contextlib.contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _last_checkpoint(folder: Path) -> str | None:
    """The newest finished checkpoint: `trainer_state.json` is what the trainer writes last."""
    done = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return str(max(done, key=lambda path: _step_of(str(path)))) if done else None


def _step_of(checkpoint: str | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.rpartition("-")[2])


def _libraries() -> tuple[Any, Any]:
    try:
        import peft
        import trl
    except ImportError as error:
        raise ModelError(
            f"Training a reward model needs {error.name}; install it with `pip install rewardscope[train]`."
        ) from None
    return trl, peft


def _listen(trainer: Any, task: Task, done: int) -> None:
    """Reports every optimiser step and measures the last one too; the trainer's own printing is taken out."""
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            task.advance()
            if state.global_step >= state.max_steps and str(args.eval_strategy.value) != "no":
                control.should_evaluate = control.should_save = True
            return control

    task.advance(done)
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
