"""A decoder backbone cut at a layer: hidden_states[layer] of packed sequences, without the final norm.

Every architecture goes the same way: transformers builds the model with only the first `layer` blocks (the others
are never read from disk), the final norm is taken out, and attention is routed through the packed form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.errors import ModelError
from core.models.packing import Pack, block_mask, pack_groups, segment_attention
from core.models.resolve import quiet_transformers

PACKED = "rewardscope_packed"


class Backbone:
    """The first blocks of a decoder model, ready for packed forward passes.

    Attributes:
        model: the cut transformers model, in evaluation mode.
        tokenizer: its tokenizer.
        layer: how many blocks it has; its output is hidden_states[layer].
        d_model: width of the residual stream.
        context_length: longest sequence it was made for.
        device, dtype: where and in what it computes.
    """

    def __init__(self, model: Any, tokenizer: Any, layer: int, device: torch.device, dtype: torch.dtype) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.layer = layer
        self.device = device
        self.dtype = dtype
        self.d_model = int(model.config.hidden_size)
        self.context_length = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 30)

    @torch.inference_mode()
    def forward(self, pack: Pack) -> torch.Tensor:
        """hidden_states[layer] of every row of a pack: float32 [T, d_model] on the backbone's device.

        With a bfloat16 backbone the matrix products are bfloat16 and the residual stream is float32, which halves the
        rounding error of an all-bfloat16 pass (docs/measurements.md).
        """
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.model(
                inputs_embeds=self.model.embed_tokens(pack.ids.to(self.device)[None]).float(),
                position_ids=pack.positions.to(self.device)[None],
                use_cache=False,
                pack=PackedAttention(pack, self.device),
            ).last_hidden_state[0]

    def states_of_groups(
        self, groups: Iterable[Sequence[Sequence[int]]], max_tokens: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields (index of the sequence over all groups, its [T, d_model] states) in order."""
        for pack in pack_groups(groups, max_tokens):
            states = self.forward(pack)
            for index, rows in zip(pack.sequence_index, pack.rows, strict=True):
                yield index, states[torch.from_numpy(rows).to(states.device)]

    def states(self, sequences: Sequence[Sequence[int]], max_tokens: int = 2048) -> list[torch.Tensor]:
        """hidden_states[layer] of each token sequence, [T_i, d_model], in the order given."""
        return [states for _, states in self.states_of_groups(([s] for s in sequences), max_tokens)]


class PackedAttention:
    """How the rows of one pack look at each other; handed down to every attention layer.

    One masked kernel keeps an accelerator busy where many small ones would not; a CPU is faster segment by segment.
    """

    def __init__(self, pack: Pack, device: torch.device, masked: bool | None = None) -> None:
        self.pack = pack
        self.device = device
        self.masked = device.type != "cpu" if masked is None else masked
        self._masks: dict[int | None, torch.Tensor] = {}

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
    ) -> torch.Tensor:
        if not self.masked:
            return segment_attention(query, key, value, self.pack.segments, scaling=scaling, window=window)
        if window not in self._masks:
            self._masks[window] = block_mask(self.pack, window).to(self.device)
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._masks[window], scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )


def _packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    pack: PackedAttention | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function transformers calls in each layer ([1, heads, T, head_dim] in, [1, T, heads, dim] out)."""
    if softcap is not None or kwargs.get("s_aux") is not None:
        raise ModelError(
            f"{type(module).__name__} uses attention soft-capping or sinks, which packed extraction does not compute; "
            "use a Llama, Qwen2/3, Mistral or Gemma-3 backbone."
        )
    if pack is None:
        raise ModelError("This backbone is set up for packed sequences; call Backbone.forward.")
    return pack(query, key, value, scaling, sliding_window).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The packed attention brings its own mask."""


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, _packed_attention)
    AttentionMaskInterface.register(PACKED, _no_mask)


def pick_device(wanted: str) -> torch.device:
    """Turns 'auto', 'cpu', 'mps', 'cuda' or 'cuda:N' into a device that exists.

    Raises:
        ModelError: the named device is not there.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ModelError(f"{wanted!r} is not a device; use auto, cpu, mps, cuda or cuda:N.") from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }.get(device.type, False)
    if not there:
        raise ModelError(f"The device {wanted} is not available on this machine; use model.device: auto or cpu.")
    return device


def load_backbone(
    path: Path, layer: int | None, *, dtype: str = "bfloat16", device: str = "auto", final_norm: bool = False
) -> Backbone:
    """Loads the first `layer` blocks of a model folder (a causal model or a sequence classifier), and its tokenizer.

    Args:
        layer: how many blocks; None keeps all.
        final_norm: keep the model's final norm, so that `forward` gives what its own head reads.

    Raises:
        ModelError: not a decoder transformers knows, fewer layers than asked, or weights missing for a kept block.
    """
    from transformers import AutoConfig, AutoModel

    _register()
    where = pick_device(device)
    torch_dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"{path} does not hold a model configuration transformers knows: {_first(error)}") from None
    # A vision-language checkpoint keeps its language model one level down; a SARM folder its decoder's configuration.
    renamed = {r"^(model\.)?language_model\.(model\.)?": ""} if config.get_text_config() is not config else None
    config = decoder_config(config)
    layer = config.num_hidden_layers if layer is None else layer
    config = cut_config(config, layer)
    tokenizer = load_tokenizer(path)
    with quiet_transformers():
        try:
            model, report = AutoModel.from_pretrained(
                path,
                config=config,
                dtype=torch_dtype,
                attn_implementation=PACKED,
                trust_remote_code=False,
                use_safetensors=True,
                key_mapping=renamed,
                output_loading_info=True,
            )
        except (ValueError, OSError, KeyError, RuntimeError) as error:
            raise ModelError(f"The model in {path} cannot be loaded: {_first(error)}") from None
    lost = sorted(key for key in report["missing_keys"] if final_norm or not key.startswith("norm."))
    if lost or report.get("mismatched_keys"):
        raise ModelError(
            f"The weights in {path} do not fit its config.json: {len(lost)} tensors are missing "
            f"(first: {lost[0] if lost else report['mismatched_keys']}); nothing is guessed."
        )
    return wrap_backbone(model, tokenizer, layer, where, torch_dtype, final_norm=final_norm)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a model folder.

    Raises:
        ModelError: there is none transformers can read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"The tokenizer in {path} cannot be loaded: {_first(error)}") from None


def context_length(path: Path) -> int:
    """The longest sequence the model in a folder was made for, from its configuration.

    Raises:
        ModelError: not a configuration transformers knows.
    """
    from transformers import AutoConfig

    try:
        config = decoder_config(AutoConfig.from_pretrained(path, trust_remote_code=False))
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"{path} does not hold a model configuration transformers knows: {_first(error)}") from None
    return int(getattr(config, "max_position_embeddings", 0) or 1 << 30)


def wrap_backbone(
    model: Any, tokenizer: Any, layer: int, device: torch.device, dtype: torch.dtype, *, final_norm: bool = False
) -> Backbone:
    """Takes the final norm, unless it is to stay, out of a base model that already has only `layer` blocks."""
    _register()
    if not isinstance(getattr(model, "norm", None), nn.Module):
        raise ModelError(f"{type(model).__name__} has no final `norm`, so its residual stream cannot be read here.")
    if not final_norm:
        model.norm = nn.Identity()
    model.config._attn_implementation = PACKED
    model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return Backbone(model, tokenizer, layer, device, dtype)


def decoder_config(config: Any) -> Any:
    """The configuration of the decoder inside a model: of a SARM model, of a vision-language model, or its own."""
    return config.decoder_config() if hasattr(config, "decoder_config") else config.get_text_config()


def cut_config(config: Any, layer: int) -> Any:
    """The configuration of the same model with only its first `layer` blocks.

    Raises:
        ModelError: the model has fewer layers than that.
    """
    if layer > config.num_hidden_layers:
        raise ModelError(
            f"model.layer is {layer}, but the model has {config.num_hidden_layers} layers; choose 1..{config.num_hidden_layers}."
        )
    config.num_hidden_layers = layer
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layer]
    return config


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
