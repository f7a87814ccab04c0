"""What labelling will take, counted before it starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.features.labels.prompts import LABEL_SCHEMA, NUMBERS_SCHEMA, Messages

MESSAGE_TOKENS = 8
"""What a chat template adds to a message, about."""
BYTES_A_TOKEN = 3.5

Counter = Callable[[str], int]


@dataclass(frozen=True)
class Cost:
    """An estimate; retries are not in it.

    Attributes:
        requests: number of requests.
        prompt_tokens: tokens of all prompts, as counted by `counted_with`.
        completion_tokens: at most so many tokens of replies.
        price: at most so much, in the currency of the prices; None without prices.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    price: float | None
    counted_with: str


def estimate(
    requests: Sequence[Messages],
    count: Counter,
    counted_with: str,
    *,
    max_tokens: int,
    price_in: float | None = None,
    price_out: float | None = None,
) -> Cost:
    """Adds up requests.

    Args:
        price_in, price_out: per million tokens; one that is missing leaves the price missing.
    """
    schema = count(json.dumps(max(LABEL_SCHEMA, NUMBERS_SCHEMA, key=lambda one: len(str(one)))))
    known: dict[str, int] = {}

    def tokens(text: str) -> int:
        if text not in known:
            known[text] = count(text)
        return known[text]

    prompt = sum(schema + sum(MESSAGE_TOKENS + tokens(part["content"]) for part in messages) for messages in requests)
    completion = max_tokens * len(requests)
    price = None
    if price_in is not None and price_out is not None:
        price = (prompt * price_in + completion * price_out) / 1e6
    return Cost(len(requests), prompt, completion, price, counted_with)


def token_counter(model: dict[str, Any]) -> tuple[Counter, str]:
    """Counts tokens with the tokenizer of the run's own model where it is on this machine, else by bytes.

    Args:
        model: the manifest's `model`.

    Returns:
        The counter, and what it counts with, in words. The endpoint's own tokenizer is not known here, so this is an
        estimate either way.
    """
    folder = _model_folder(str(model.get("name")))
    if folder is not None and (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception:  # the library raises bare exceptions; an estimate can do without it
            pass
        else:
            return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), "the run's own tokenizer"
    return lambda text: round(len(text.encode()) / BYTES_A_TOKEN), f"{BYTES_A_TOKEN} bytes a token"


def _model_folder(name: str) -> Path | None:
    """Where the model's files are, without asking any network."""
    from core.models.resolve import cached_models

    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    return next((found.path for found in cached_models() if found.name == name), None)
