"""A published checkpoint's tokenizer: copied as it is, with a padding token that ends nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from core.data.chat import encode_pair
from core.models.backbone import load_tokenizer

FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "*.model",
    "chat_template.json",
)


def copy_tokenizer(source: Path, out: Path, rows: int) -> list[str]:
    """Copies the tokenizer's files (never code), and gives it another padding token where its own would do harm.

    Harmful is a padding token that also ends turns or texts (whoever looks for the first one finds the end of the system
    message), and one for which the model has no embedding.

    Args:
        rows: of the model's embedding.

    Returns:
        A sentence for each change.

    Raises:
        ModelError: there is no tokenizer transformers can read.
    """
    for pattern in FILES:
        for path in source.glob(pattern):
            if path.is_file() and path.suffix != ".py":
                shutil.copyfile(path, out / path.name)
    tokenizer = load_tokenizer(out)
    ends = {tokenizer.eos_token_id, end_of_turn(tokenizer)}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends and tokenizer.pad_token_id < rows:
        return []
    before = tokenizer.pad_token
    pad = _other(tokenizer, ends, rows)
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(out)
    if pad is None:
        return ["Its tokenizer has no token that could pad; none is needed here, other programs may ask for one."]
    reason = "had none" if before is None else f"was {before}, which also ends a turn or has no embedding"
    return [f"The tokenizer's padding token {reason}; it is now {pad}."]


def end_of_turn(tokenizer: Any) -> int:
    """Id of the token that ends an answer, at which rewards are read."""
    return encode_pair(tokenizer, [{"role": "user", "content": "a"}], ["b"], max_length=4096)[0].ids[-1]


def _other(tokenizer: Any, ends: set[int | None], rows: int) -> str | None:
    """A special token that could pad: one made for it, then a reserved one, then unk and bos."""
    special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= {
        token: tokenizer.convert_tokens_to_ids(token) for token in (tokenizer.unk_token, tokenizer.bos_token) if token
    }
    usable = sorted((index, token) for token, index in special.items() if index not in ends and index < rows)
    for wanted in ("pad", "reserved"):
        for _, token in usable:
            if wanted in token.lower():
                return token
    names = {token for _, token in usable}
    return next((token for token in (tokenizer.unk_token, tokenizer.bos_token) if token in names), None)
