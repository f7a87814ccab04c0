"""Which weights a training opens, and how fast they learn.

The scope says how the decoder blocks learn: not at all (`head`), by low-rank updates of every linear map in them (`lora`), or
with every weight, embeddings included (`full`). The head always learns. Of a SARM model the mode says more: `head` and
`frozen_sae` leave the SAE as it is; `joint` and `separate` open it too, always with all its weights.
"""

from __future__ import annotations

from typing import Any

import torch

from core.config import RewardTrainingConfig, SarmTrainingConfig

LEARNING_RATES = {"lora": 2e-4, "full": 2e-5}
"""Defaults of each scope (AdamW): `full` is SAFER's; low-rank updates take larger steps."""
HEAD_RATE, FEATURE_HEAD_RATE = 1e-3, 1e-2
"""The head's own: it starts at zero. Pooled SAE features are an order of magnitude smaller than normed states."""
WEIGHT_DECAY = 0.001  # SAFER section 3.2


def learning_rates(config: RewardTrainingConfig, *, pools_features: bool) -> tuple[float, float]:
    """The rates of the decoder's weights (and a trained SAE's) and of the head; a given rate is the decoder's, or a lone
    head's.

    Args:
        pools_features: the head reads pooled SAE features and not a state.
    """
    head = FEATURE_HEAD_RATE if pools_features else HEAD_RATE
    own = config.head_learning_rate if isinstance(config, SarmTrainingConfig) else None
    if config.scope == "head":
        return (own or config.learning_rate or head,) * 2
    rate = config.learning_rate or LEARNING_RATES[config.scope]
    return rate, own or max(rate, head)


def reconstructs(config: RewardTrainingConfig) -> str | None:
    """How the SAE's own loss is taken: 'joint', 'detached', or not at all."""
    if not isinstance(config, SarmTrainingConfig) or not config.reconstruction:
        return None
    return {"joint": "joint", "separate": "detached"}.get(config.mode)


def opened(model: Any, config: RewardTrainingConfig, peft: Any) -> Any:
    """The model with the weights of scope and mode open to training, all others frozen.

    Without its own loss nothing reaches the SAE's decoder, which then stays shut.
    """
    sae = isinstance(config, SarmTrainingConfig) and config.mode in ("joint", "separate")
    if config.scope == "lora":
        decoder = [n for n, m in model.named_modules() if n.startswith("model.") and isinstance(m, torch.nn.Linear)]
        torch.manual_seed(config.seed)  # of the low-rank factors
        lora = peft.LoraConfig(
            r=config.lora_rank,
            lora_alpha=2 * config.lora_rank,
            target_modules=decoder,
            modules_to_save=["score", "sae"] if sae else ["score"],
            task_type="SEQ_CLS",
        )
        model = peft.get_peft_model(model, lora)
    else:
        for key, weight in model.named_parameters():
            blocks = config.scope == "full" and key.startswith("model.")
            weight.requires_grad_(key.startswith("score.") or blocks or (sae and key.startswith("sae.")))
    if sae and not reconstructs(config):
        for key, weight in model.named_parameters():
            if "sae." in key and key.endswith("decoder.weight"):
                weight.requires_grad_(False)
    return model


def optimizer(model: Any, rate: float, head_rate: float) -> torch.optim.Optimizer:
    """AdamW with a rate of its own for the head, which starts at zero and has few steps to grow in."""
    open_ = [(key, weight) for key, weight in model.named_parameters() if weight.requires_grad]
    head = [weight for key, weight in open_ if "score." in key]
    body = [weight for key, weight in open_ if "score." not in key]
    groups = [{"params": body, "lr": rate}, {"params": head, "lr": head_rate}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=WEIGHT_DECAY)
