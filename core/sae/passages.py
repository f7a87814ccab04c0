"""Which tokens train an SAE: text becomes passages, token sequences with the positions whose hidden states are kept.

Level `token` keeps every position but the first of a sequence: whatever token stands there, attention parks its spare
weight on it, and its state is a huge constant that says nothing about the text. Level `sequence` keeps the last token
of each sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import sentencex

from core.models.packing import common_prefix_length

CHUNK_TOKENS = 512
SENTENCE_TOKENS = (10, 96)
"""Shortest and longest sentence kept, in tokens with the tokenizer's own prefix (papers: more than 9, at most 96)."""
PAPER_DELIMITERS = (",", "?", "--", ";", "!", '"')


class Passage(NamedTuple):
    """Token sequences that go through the backbone together (they may share a prefix), and the positions kept."""

    sequences: Sequence[Sequence[int]]
    keep: Sequence[Sequence[int]]

    @property
    def n_vectors(self) -> int:
        return sum(len(positions) for positions in self.keep)


def token_passages(texts: Iterable[str], tokenizer: Any, chunk_tokens: int = CHUNK_TOKENS) -> Iterator[Passage]:
    """Level `token`: each document in chunks of at most `chunk_tokens`; all positions but the first of a chunk.

    Every chunk starts with what the tokenizer itself puts before a text (Llama's BOS; nothing for SmolLM2).
    """
    prefix = leading_tokens(tokenizer)
    step = chunk_tokens - len(prefix)
    for document in _token_ids(texts, tokenizer):
        for start in range(0, len(document), step):
            chunk = prefix + document[start : start + step]
            if len(chunk) > 1:
                yield Passage([chunk], [range(1, len(chunk))])


def sentence_passages(
    texts: Iterable[str], tokenizer: Any, *, paper_delimiters: bool = False, latin1: bool = False
) -> Iterator[Passage]:
    """Level `sequence`: each sentence alone, without the text around it; its last token.

    Args:
        paper_delimiters: also keep the tokens of , ? -- ; ! " (alone or after a space), as the papers' code does.
        latin1: leave out sentences with a character beyond U+00FF, as the papers' code does.
    """
    prefix = leading_tokens(tokenizer)
    delimiters = delimiter_ids(tokenizer) if paper_delimiters else frozenset()
    shortest, longest = SENTENCE_TOKENS
    found = (sentence for text in texts for sentence in sentences(text))
    for ids in _token_ids((sentence for sentence in found if not latin1 or max(sentence) <= "\xff"), tokenizer):
        sentence = prefix + ids
        if shortest <= len(sentence) <= longest:
            last = len(sentence) - 1
            inside = [at for at in range(1, last) if sentence[at] in delimiters]
            yield Passage([sentence], [[*inside, last]])


def conversation_passages(
    conversations: Iterable[Sequence[int]], level: Literal["token", "sequence"]
) -> Iterator[Passage]:
    """Whole formatted conversations: all positions but the first, or the last, which the reward reads (`sequence`).

    Neighbours that share a prefix (answers to one prompt) become one passage, so the prefix is computed and kept once.
    """
    for group in sharing_groups(conversations):
        shared = common_prefix_length(group)
        keep: list[Sequence[int]] = []
        for number, sequence in enumerate(group):
            first = max(1, shared) if number else 1
            keep.append(range(first, len(sequence)) if level == "token" else [len(sequence) - 1])
        yield Passage(group, keep)


def sentences(text: str) -> list[str]:
    """The sentences of an English text, stripped, without blank ones."""
    return [sentence.strip() for sentence in sentencex.segment("en", text) if sentence.strip()]


def leading_tokens(tokenizer: Any) -> list[int]:
    """The tokens a tokenizer puts before any text by itself."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    return next((full[:at] for at in range(len(full)) if full[at : at + len(bare)] == bare), [])


def delimiter_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the delimiters of the papers' code that are one token, alone or after a space."""
    ids = [
        tokenizer(space + mark, add_special_tokens=False)["input_ids"]
        for mark in PAPER_DELIMITERS
        for space in ("", " ")
    ]
    return frozenset(found[0] for found in ids if len(found) == 1)


def sharing_groups(sequences: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Joins up to 16 neighbours into a group as long as that makes the sum of the shared prefixes larger."""
    group: list[Sequence[int]] = []
    shared = 0
    for sequence in sequences:
        common = common_prefix_length([group[-1], sequence]) if group else 0
        together = min(shared, common) if len(group) > 1 else common
        if group and (len(group) == 16 or together * len(group) <= shared * (len(group) - 1)):
            yield group
            group, together = [], 0
        group.append(sequence)
        shared = together
    if group:
        yield group


def _token_ids(texts: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    running = iter(texts)
    while some := list(islice(running, 64)):
        yield from tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
