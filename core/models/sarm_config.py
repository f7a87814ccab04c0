"""What a SARM checkpoint says of itself in config.json."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class SarmConfig(PreTrainedConfig):
    """The configuration of a SARM reward model.

    Attributes:
        backbone: the decoder's own configuration as a dictionary, cut at the SAE's layer.
        latents, k: M and the active latents of each token.
        pooling: 'last' (the end-of-turn token) or 'mean' (over the answer's tokens, end-of-turn included).
        sae_facts: what is known of the SAE (level, seed, ...), strings; the metadata of its own file.
    """

    model_type = "rewardscope_sarm"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        latents: int = 9216,
        k: int = 27,
        pooling: str = "mean",
        sae_facts: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone or {}
        self.latents, self.k, self.pooling = latents, k, pooling
        self.sae_facts = sae_facts or {}
        super().__init__(**{"num_labels": 1, **kwargs})

    @property
    def layer(self) -> int:
        """The blocks it has: the SAE reads hidden_states[layer]."""
        return int(self.backbone["num_hidden_layers"])

    def decoder_config(self) -> Any:
        """The decoder's configuration as transformers knows it."""
        facts = dict(self.backbone)
        return AutoConfig.for_model(facts.pop("model_type"), **facts)


AutoConfig.register(SarmConfig.model_type, SarmConfig)
