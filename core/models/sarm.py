"""A SARM reward model as a transformers model: decoder blocks, a TopK SAE and a linear head on its features.

    r(x, y) = sum_i w_i z_i,   z = TopK(W_enc (h - pre_bias) + latent_bias) pooled over the answer    (SARM section 2.1)

h is the residual stream after the last block kept, without final norm, standardised per token. The gradient flows through the
k values that are kept; which ones are kept has none. Pooling is a mean over tokens and the head is linear, so the reward is
the mean (or the last) of the tokens' own rewards, and no [tokens, M] matrix of pooled features is ever made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from core.errors import ModelError
from core.models.backbone import Backbone, cut_config, wrap_backbone
from core.models.resolve import quiet_transformers
from core.models.sarm_config import SarmConfig
from core.models.sarm_file import LoadedSarm, load_sarm, save_sarm
from core.models.sarm_rewards import packed_rewards
from core.sae.topk import TopKActivations, TopKSAE, normalise

__all__ = [
    "LoadedSarm",
    "SarmConfig",
    "SarmForSequenceClassification",
    "SarmOutput",
    "identity_sae",
    "load_sarm",
    "sarm_of",
    "save_sarm",
]

Reconstruct = Literal["joint", "detached"]


@dataclass
class SarmOutput(SequenceClassifierOutput):
    """`logits` [B, 1], the rewards; `reconstruction`: the SAE's loss on the pooled tokens, where it was asked for."""

    reconstruction: torch.Tensor | None = None


class SarmForSequenceClassification(PreTrainedModel):
    """The reward model; `save_pretrained`, `from_pretrained` and `push_to_hub` are transformers' own.

    Whatever the dtype it is loaded in, the SAE and the head are float32 and compute in float32.

    Attributes:
        model: the decoder blocks, without final norm.
        sae: the autoencoder.
        score: the linear head, `score.weight` [1, M].
    """

    config_class = SarmConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["^sae.", "^score."]  # noqa: RUF012
    pools_answers = True  # a batch must say where answers start

    def __init__(self, config: SarmConfig) -> None:
        super().__init__(config)
        self.num_labels = 1
        decoder = config.decoder_config()
        self.model = AutoModel.from_config(decoder, dtype=torch.get_default_dtype(), attn_implementation="sdpa")
        self.model.norm = nn.Identity()
        self.sae = TopKSAE(int(self.model.config.hidden_size), config.latents, config.k, initialise=False)
        self.score = nn.Linear(config.latents, 1, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        answer_start: torch.Tensor | None = None,
        reconstruct: Reconstruct | None = None,
        **kwargs: Any,
    ) -> SarmOutput:
        """Rewards as logits [B, 1].

        Padding may stand on either side and be any token: what counts is the mask alone.

        Args:
            input_ids: int64 [B, T]; attention_mask: [B, T], 0 on padding.
            answer_start: int64 [B], the column of each answer's first token (needed by the pooling 'mean').
            reconstruct: also give the SAE's loss on the pooled tokens: 'joint', with gradients into the decoder blocks, or
                'detached', with the states held fixed.

        Raises:
            ModelError: no token ids, no `answer_start` where it is needed, or an answer without tokens.
        """
        if input_ids is None:
            raise ModelError("A SARM model is given token ids, not embeddings.")
        mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).long()
        kwargs.pop("use_cache", None)
        kwargs.setdefault("position_ids", (mask.cumsum(1) - 1).clamp_min(0))
        states = self.model(input_ids, attention_mask=mask, use_cache=False, **kwargs).last_hidden_state
        pooled = self._pooled_tokens(mask, answer_start)
        kept = states[pooled]
        active = self._encode(kept)
        rewards = self._token_rewards(active)
        total = rewards.new_zeros(len(input_ids)).index_add(0, pooled.nonzero()[:, 0], rewards)
        loss = None if reconstruct is None else self._reconstruction(kept, active, reconstruct)
        return SarmOutput(logits=(total / pooled.sum(1))[:, None], reconstruction=loss)

    def token_rewards(self, states: torch.Tensor) -> torch.Tensor:
        """sum_i w_i z_i of each hidden state [n, d]: float32 [n] (float64 for a float64 model)."""
        return self._token_rewards(self._encode(states))

    def _encode(self, states: torch.Tensor) -> TopKActivations:
        with torch.autocast(states.device.type, enabled=False):
            return self.sae.encode(states)

    def _token_rewards(self, active: TopKActivations) -> torch.Tensor:
        with torch.autocast(active.values.device.type, enabled=False):
            return (active.values * self.score.weight[0].to(active.values.dtype)[active.indices]).sum(1)

    def _reconstruction(self, states: torch.Tensor, active: TopKActivations, how: Reconstruct) -> torch.Tensor:
        """mean over tokens of |h_hat - h|^2 / |h|^2, as in pretraining (core/sae/gradients)."""
        if how == "detached":
            states = states.detach()
            active = self._encode(states)
        with torch.autocast(states.device.type, enabled=False):
            h = normalise(states).h
            size = h.square().sum(1)
            error = (self.sae.decode(*active) - h).square().sum(1)
            return (error / size.clamp_min(torch.finfo(size.dtype).tiny)).sum() / (size > 0).sum().clamp_min(1)

    def _pooled_tokens(self, mask: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
        """bool [B, T]: the tokens over which the reward is averaged."""
        place = torch.arange(mask.shape[1], device=mask.device)[None]
        last = (mask * place).argmax(1, keepdim=True)
        if self.config.pooling == "last":
            pooled = (place == last) & mask.bool()
        elif start is None:
            raise ModelError("A SARM model that pools by mean must be told where answers start (answer_start).")
        else:
            pooled = (place >= start[:, None]) & mask.bool()
        if not pooled.any(1).all():
            raise ModelError("An answer in the batch has no tokens; check attention_mask and answer_start.")
        return pooled

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
        return packed_rewards(backbone, self.token_rewards, self.config.pooling, groups, tokens_per_batch)

    def packed(self, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> Backbone:
        """Its decoder set up for packed forward passes (padded ones no longer work afterwards)."""
        self.sae.to(device)
        self.score.to(device)
        return wrap_backbone(self.model, tokenizer, int(self.model.config.num_hidden_layers), device, dtype)


AutoModelForSequenceClassification.register(SarmConfig, SarmForSequenceClassification)


def sarm_of(
    path: Path,
    sae: TopKSAE,
    layer: int,
    pooling: str,
    *,
    dtype: torch.dtype = torch.float32,
    sae_facts: dict[str, str] | None = None,
) -> SarmForSequenceClassification:
    """A SARM model of a model folder's first blocks and an SAE, its head at zero.

    Raises:
        ModelError: the model cannot be loaded, its width is not the SAE's, or the SAE is no TopK SAE.
    """
    if type(sae) is not TopKSAE:
        raise ModelError(f"A SARM model needs a TopK SAE, and this is a {type(sae).__name__}; train or give another.")
    with quiet_transformers():
        try:
            whole = AutoConfig.from_pretrained(path, trust_remote_code=False)
            nested = {r"^(model\.)?language_model\.(model\.)?": ""} if whole.get_text_config() is not whole else None
            config = cut_config(whole.get_text_config(), layer)
            decoder, report = AutoModel.from_pretrained(
                path,
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
            raise ModelError(f"The model in {path} cannot be loaded: {first}") from None
    if lost := sorted(key for key in report["missing_keys"] if not key.startswith("norm.")):
        raise ModelError(f"The weights in {path} do not fit its config.json: {lost[0]} is missing; copy it again.")
    if int(config.hidden_size) != sae.d_model:
        raise ModelError(f"The SAE reads states of width {sae.d_model}, the model in {path} has {config.hidden_size}.")
    facts = {**config.to_dict(), "num_hidden_layers": layer}
    with torch.device("meta"):  # every weight is replaced below
        made = SarmForSequenceClassification(
            SarmConfig(facts, sae.latents, sae.k, pooling, dict(sae_facts or {}), dtype=dtype)
        )
    made.model = decoder
    made.model.norm = nn.Identity()
    made.sae = TopKSAE(sae.d_model, sae.latents, sae.k, initialise=False)
    made.sae.load_state_dict(sae.state_dict())
    made.sae.requires_grad_(False)
    made.score = nn.Linear(sae.latents, 1, bias=False)
    nn.init.zeros_(made.score.weight)
    return made


def identity_sae(d: int) -> TopKSAE:
    """An "SAE" whose d features are the d coordinates of the standardised state: a SARM model of it is a plain linear head.

        r = sum_j w_j h_j

    TopK keeps k < M latents, so there is one more, which is never active. It is the control of the ablation: the same
    depth, pooling and training without a dictionary.
    """
    sae = TopKSAE(d, d + 1, d, initialise=False)
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.eye(d + 1, d))
        sae.decoder.weight.copy_(torch.eye(d, d + 1))
        sae.latent_bias[d] = -1e4  # below any |h_j| <= sqrt(d); float16 can hold it
    return sae.requires_grad_(False)
