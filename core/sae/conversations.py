"""The conversations of preference pairs as token sequences that train an SAE, without a run around them."""

from __future__ import annotations

from typing import Any

from core.config import PairsConfig
from core.data.chat import encode_pairs
from core.data.load import check_prompt_lengths, load_pairs


def training_conversations(config: PairsConfig, tokenizer: Any, max_length: int) -> list[list[int]]:
    """The whole formatted conversations of the train split, answers to one prompt next to each other.

    The same token ids in the same order as a run on these pairs trains its SAE on.

    Args:
        max_length: longest sequence in tokens.

    Raises:
        DataError: the pairs are missing or damaged.
    """
    pairs = load_pairs(config)
    pairs = check_prompt_lengths(pairs, tokenizer, config.max_prompt_tokens or max_length, config.on_bad_rows)
    texts = pairs.responses.group_by("pair_index", maintain_order=True).agg("text")["text"].to_list()
    conversations = list(zip(pairs.pairs["messages"].to_list(), texts, strict=True))
    groups: dict[str, list[list[int]]] = {}
    rows = pairs.pairs.select("prompt_id", "split").iter_rows()
    for (prompt, split), answers in zip(
        rows, encode_pairs(tokenizer, conversations, max_length=max_length), strict=True
    ):
        if split == "train":
            groups.setdefault(prompt, []).extend(answer.ids for answer in answers)
    return [ids for group in groups.values() for ids in group]
