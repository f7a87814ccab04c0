"""A SARM reward model as a transformers model: decoder blocks, a frozen TopK SAE and a linear head on its features.

    r(x, y) = sum_i w_i z_i,   z = TopK(W_enc (h - pre_bias) + latent_bias) pooled over the answer    (SARM section 2.1)

h is the residual stream after the last block kept, without final norm, standardised per token. The gradient flows through the
k values that are kept; which ones are kept has none. Pooling is a mean over tokens and the head is linear, so the reward is
the mean (or the last) of the tokens' own rewards, and no [tokens, M] matrix of pooled features is ever made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from core.errors import ModelError
from core.models.backbone import Backbone, cut_config, wrap_backbone
from core.models.packing import pack_groups
from core.models.resolve import quiet_transformers
from core.sae.topk import TopKSAE


class SarmConfig(PreTrainedConfig):
    """What a SARM checkpoint says of itself.

    Attributes:
        backbone: the decoder's own configuration as a dictionary, cut at the SAE's layer.
        latents, k: M and the active latents of each token.
        pooling: 'last' (the end-of-turn token) or 'mean' (over the answer's tokens, end-of-turn included).
    """

    model_type = "rewardscope_sarm"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        latents: int = 9216,
        k: int = 27,
        pooling: str = "mean",
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone or {}
        self.latents, self.k, self.pooling = latents, k, pooling
        super().__init__(**{"num_labels": 1, **kwargs})

    def decoder_config(self) -> Any:
        """The decoder's configuration as transformers knows it."""
        facts = dict(self.backbone)
        return AutoConfig.for_model(facts.pop("model_type"), **facts)


class SarmForSequenceClassification(PreTrainedModel):
    """The reward model; `save_pretrained` and `from_pretrained` are transformers' own.

    Attributes:
        model: the decoder blocks, without final norm.
        sae: the autoencoder; it is never trained here.
        score: the linear head, `score.weight` [1, M].
    """

    config_class = SarmConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    pools_answers = True  # a batch must say where answers start

    def __init__(self, config: SarmConfig) -> None:
        super().__init__(config)
        self.num_labels = 1
        self.model = AutoModel.from_config(config.decoder_config(), attn_implementation="sdpa")
        self.model.norm = nn.Identity()
        self.sae = TopKSAE(int(self.model.config.hidden_size), config.latents, config.k, initialise=False)
        self.score = nn.Linear(config.latents, 1, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        answer_start: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Rewards as logits [B, 1].

        Args:
            input_ids: int64 [B, T], padded on the right; attention_mask: [B, T], 0 on padding.
            answer_start: int64 [B], index of each answer's first token (needed by the pooling 'mean').
        """
        if input_ids is None:
            raise ModelError("A SARM model is given token ids, not embeddings.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        kwargs.pop("use_cache", None)
        states = self.model(input_ids, attention_mask=attention_mask, use_cache=False, **kwargs).last_hidden_state
        pooled = self._pooled_tokens(attention_mask, answer_start)
        rewards = self.token_rewards(states[pooled])
        row = pooled.nonzero()[:, 0]
        total = rewards.new_zeros(len(input_ids)).index_add(0, row, rewards)
        return SequenceClassifierOutput(logits=(total / pooled.sum(1))[:, None])

    def token_rewards(self, states: torch.Tensor) -> torch.Tensor:
        """sum_i w_i z_i of each hidden state [n, d]: float32 [n]."""
        with torch.autocast(states.device.type, enabled=False):
            active = self.sae.encode(states.float())
            weights = self.score.weight[0].float()
            return (active.values * weights[active.indices]).sum(1)

    def _pooled_tokens(self, mask: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
        """bool [B, T]: the tokens over which the reward is averaged."""
        place = torch.arange(mask.shape[1], device=mask.device)[None]
        last = (mask * place).argmax(1, keepdim=True)
        if self.config.pooling == "last":
            return place == last
        if start is None:
            raise ModelError("A SARM model that pools by mean must be told where answers start (answer_start).")
        return (place >= start[:, None]) & (place <= last)

    def rewards(
        self, groups: Iterable[Sequence[tuple[Sequence[int], int]]], backbone: Backbone, tokens_per_batch: int = 2048
    ) -> Iterator[tuple[int, float]]:
        """Rewards in packed forward passes, as extraction computes them.

        Args:
            groups: (token ids, index of the answer's first token) of the answers to each prompt.
            backbone: `packed()` of this model.

        Yields:
            (index over all groups, reward) in order.
        """
        kept = [list(group) for group in groups]
        starts = [start for group in kept for _, start in group]
        for pack in pack_groups(([ids for ids, _ in group] for group in kept), tokens_per_batch):
            with torch.inference_mode():
                states = backbone.forward(pack)
                wanted = [
                    rows[-1:] if self.config.pooling == "last" else rows[starts[index] :]
                    for index, rows in zip(pack.sequence_index, pack.rows, strict=True)
                ]
                flat = torch.from_numpy(np.concatenate(wanted)).to(states.device)
                tokens = self.token_rewards(states[flat]).double().cpu().numpy()
            ends = np.cumsum([len(rows) for rows in wanted])
            for index, part in zip(pack.sequence_index, np.split(tokens, ends[:-1]), strict=True):
                yield index, float(part.mean())

    def packed(self, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> Backbone:
        """Its decoder set up for packed forward passes (padded ones no longer work afterwards)."""
        self.sae.to(device)
        self.score.to(device)
        return wrap_backbone(self.model, tokenizer, int(self.model.config.num_hidden_layers), device, dtype)


def sarm_of(path: Path, sae: TopKSAE, layer: int, pooling: str, *, dtype: torch.dtype = torch.float32) -> Any:
    """A SARM model of a model folder's first blocks and an SAE, its head at zero.

    Raises:
        ModelError: the model cannot be loaded, or its width is not the SAE's.
    """
    with quiet_transformers():
        try:
            whole = AutoConfig.from_pretrained(path, trust_remote_code=False)
            nested = {r"^(model\.)?language_model\.(model\.)?": ""} if whole.get_text_config() is not whole else None
            config = cut_config(whole.get_text_config(), layer)
            decoder = AutoModel.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                attn_implementation="sdpa",
                trust_remote_code=False,
                use_safetensors=True,
                key_mapping=nested,
            )
        except (ValueError, OSError, KeyError, RuntimeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"The model in {path} cannot be loaded: {first}") from None
    if int(config.hidden_size) != sae.d_model:
        raise ModelError(f"The SAE reads states of width {sae.d_model}, the model in {path} has {config.hidden_size}.")
    facts = {**config.to_dict(), "num_hidden_layers": layer}
    made = SarmForSequenceClassification(SarmConfig(facts, sae.latents, sae.k, pooling, dtype=dtype))
    made.model = decoder
    made.model.norm = nn.Identity()
    made.sae.load_state_dict(sae.state_dict())
    made.sae.requires_grad_(False)
    nn.init.zeros_(made.score.weight)
    return made
