"""Passages that can be taken up again where they stand, so that a training resumed after days reads nothing twice.

A stream's `position` is a JSON value; opened with it, a stream of the same texts gives the same passages from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, Protocol

from core.sae.passages import (
    CHUNK_TOKENS,
    Passage,
    conversation_passages,
    sentence_passages,
    token_passages,
)
from core.sae.texts import open_texts

TEXTS_AT_ONCE = 64
CHARACTERS_AT_ONCE = 1 << 20
HELD_OUT_EVERY = 20
"""Every 20th passage never trains the SAE; quality is measured there."""


class PassageStream(Protocol):
    """Passages in a fixed order; `position` is where the next one is."""

    def __iter__(self) -> Iterator[Passage]: ...

    def __next__(self) -> Passage: ...

    @property
    def position(self) -> Any: ...


class KnownPassages:
    """Passages that cost nothing to go through again; the position is how many were given."""

    def __init__(self, passages: Iterable[Passage], position: int | None = None) -> None:
        self.position = position or 0
        self._running = islice(passages, self.position, None)

    def __iter__(self) -> Iterator[Passage]:
        return self

    def __next__(self) -> Passage:
        passage = next(self._running)
        self.position += 1
        return passage


class TextPassages:
    """The passages of one text source: texts are read and tokenised some at a time.

    The position is that of the texts at hand (in the source) and how many of their passages were given.

    Args:
        cut: makes passages of texts; what it makes of one text does not depend on the others.
    """

    def __init__(self, source: str, cut: Callable[[Iterable[str]], Iterable[Passage]], position: Any = None) -> None:
        at, given = position or (None, 0)
        self._texts, self._cut = open_texts(source, at), cut
        self._at, self._given = self._texts.position, 0
        self._running: Iterator[Passage] = iter(())
        if position:
            self._open_next()
            self._given = sum(1 for _ in islice(self._running, given))

    @property
    def position(self) -> Any:
        return [self._at, self._given]

    def __iter__(self) -> Iterator[Passage]:
        return self

    def __next__(self) -> Passage:
        while (passage := next(self._running, None)) is None:
            if not self._open_next():
                raise StopIteration
        self._given += 1
        return passage

    def _open_next(self) -> bool:
        """Cuts the next texts into passages; False at the end of the source."""
        at = self._texts.position
        texts: list[str] = []
        size = 0
        while (
            len(texts) < TEXTS_AT_ONCE and size < CHARACTERS_AT_ONCE and (text := next(self._texts, None)) is not None
        ):
            texts.append(text)
            size += len(text)
        if texts:
            self._at, self._given, self._running = at, 0, iter(self._cut(texts))
        return bool(texts)


class Interleaved:
    """Takes from the stream that has given the fewest vectors so far (the first among equals) until all are spent."""

    def __init__(self, streams: Sequence[PassageStream], given: Sequence[int] | None = None) -> None:
        self._streams = streams
        self._given = list(given or [0] * len(streams))
        self._running = list(range(len(streams)))

    @property
    def position(self) -> Any:
        return {"given": list(self._given), "streams": [stream.position for stream in self._streams]}

    def __iter__(self) -> Iterator[Passage]:
        return self

    def __next__(self) -> Passage:
        while self._running:
            turn = min(self._running, key=lambda number: (self._given[number], number))
            passage = next(self._streams[turn], None)
            if passage is not None:
                self._given[turn] += passage.n_vectors
                return passage
            self._running.remove(turn)
        raise StopIteration


class Split:
    """One side of the split: every 20th passage is held out, the others train."""

    def __init__(self, passages: Interleaved, number: int, *, held_out: bool) -> None:
        self._passages, self._number, self._held_out = passages, number, held_out

    @property
    def position(self) -> Any:
        return {"number": self._number, **self._passages.position}

    def __iter__(self) -> Iterator[Passage]:
        return self

    def __next__(self) -> Passage:
        for passage in self._passages:
            self._number += 1
            if ((self._number - 1) % HELD_OUT_EVERY == 0) is self._held_out:
                return passage
        raise StopIteration


class TrainingText:
    """Everything an SAE is trained and measured on: conversations and texts, drawn evenly by number of vectors.

    Args:
        level: `token` or `sequence` (core/sae/passages).
        latin1: at level `sequence`, leave out sentences with characters beyond U+00FF, as the papers' code does.
    """

    def __init__(
        self,
        conversations: Sequence[Sequence[int]],
        sources: Sequence[str],
        tokenizer: Any,
        level: Literal["token", "sequence"],
        *,
        context_length: int = CHUNK_TOKENS,
        paper_delimiters: bool = False,
        latin1: bool = False,
    ) -> None:
        self._conversations, self._sources, self._tokenizer, self._level = conversations, sources, tokenizer, level
        self._chunk = min(CHUNK_TOKENS, context_length)
        self._paper_delimiters, self._latin1 = paper_delimiters, latin1

    def open(self, position: Any = None, *, held_out: bool = False) -> Split:
        """The passages that train, or those held out; from the start or from a position of the same side.

        Raises:
            DataError: a source is missing or unreadable.
        """
        position = position or {"number": 0, "given": None, "streams": [None] * (1 + len(self._sources))}
        first, *rest = position["streams"]
        streams: list[PassageStream] = [KnownPassages(conversation_passages(self._conversations, self._level), first)]
        streams += [TextPassages(source, self._cut, at) for source, at in zip(self._sources, rest, strict=True)]
        return Split(Interleaved(streams, position["given"]), position["number"], held_out=held_out)

    def _cut(self, texts: Iterable[str]) -> Iterator[Passage]:
        if self._level == "token":
            return token_passages(texts, self._tokenizer, self._chunk)
        return sentence_passages(texts, self._tokenizer, paper_delimiters=self._paper_delimiters, latin1=self._latin1)
