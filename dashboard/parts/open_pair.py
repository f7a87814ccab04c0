"""Everything the pair panel draws of one pair, read from the run in a few milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from core.errors import RunError
from core.features.pieces import pieces_of
from core.store import pair_queries
from core.store.reader import RunReader


@dataclass(frozen=True)
class Answer:
    """One answer with its tokens.

    Attributes:
        row: its `response` row.
        pieces: the text of each token; together the text the model read.
        unread: what lies behind the last token, when the answer was cut.
        features, values: [n_tokens, k], the active features of each token and their activations.
    """

    row: dict[str, Any]
    pieces: list[str]
    unread: str
    features: np.ndarray
    values: np.ndarray

    @property
    def response_id(self) -> int:
        return int(self.row["response_id"])


@dataclass(frozen=True)
class OpenPair:
    """A pair with its answers.

    Attributes:
        row: its `pair` row.
        answers: chosen and rejected ones by side, by rank.
        activations: the `activation` rows of all its answers.
        problem: why tokens cannot be shown, or ''.
    """

    row: dict[str, Any]
    answers: dict[str, list[Answer]]
    activations: pl.DataFrame
    problem: str

    def best(self, side: str) -> int:
        """Position within its side of the answer with the highest reward."""
        rewards = [answer.row["reward"] for answer in self.answers[side]]
        known = [-np.inf if reward is None or np.isnan(reward) else reward for reward in rewards]
        return int(np.argmax(known))


def open_pair(reader: RunReader, pair_id: str) -> OpenPair | None:
    """Reads a pair; None when the run has no such pair."""
    with reader.cursor() as cursor:
        found = pair_queries.pair_row(cursor, pair_id)
        if not len(found):
            return None
        row = found.row(0, named=True)
        responses = pair_queries.pair_responses(cursor, row["pair_index"]).to_dicts()
        activations = pair_queries.response_activations(cursor, [answer["response_id"] for answer in responses])
    try:
        arrays, problem = reader.arrays, ""
    except RunError as error:
        arrays, problem = None, str(error)
    answers: dict[str, list[Answer]] = {"chosen": [], "rejected": []}
    for response in responses:
        if arrays is None:
            empty = np.empty((0, 0))
            answers[response["side"]].append(Answer(response, [], "", empty, empty))
            continue
        tokens = arrays.tokens_of(response["response_id"])
        char = np.asarray(arrays.token_char[tokens])
        answers[response["side"]].append(
            Answer(
                row=response,
                pieces=pieces_of(response["text"], char),
                unread=unread_text(response["text"], char) if response["truncated"] else "",
                features=np.asarray(arrays.token_features[tokens]),
                values=np.asarray(arrays.token_values[tokens]),
            )
        )
    return OpenPair(row, answers, activations, problem)


def unread_text(text: str, char: np.ndarray) -> str:
    """What of a cut answer lies behind its last token of text.

    Args:
        char: int [n_tokens, 2], start and end of each token in the text; equal for special tokens, whose place says nothing
            (an end-of-turn token is put at the end of the whole text).
    """
    read = char[char[:, 0] < char[:, 1], 1]
    return text[int(read.max(initial=0)) :]
