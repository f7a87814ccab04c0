"""What a labeller is shown of a feature and what its label is tested on: passages with marked tokens.

Passages that are shown come from one half of the prompts, those that test a label from the other half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from core.config import FeaturesConfig
from core.features.entries import FeatureEntries, mix, values_at
from core.features.pieces import pieces_of
from core.features.samples import SAMPLES, Half, choosing_pairs
from core.store import label_queries
from core.store.reader import RunReader

LEAST_SHOWN = 5
"""Features with fewer passages to show are not labelled (SAFER asks for more than four)."""
MARKS, MARK_SHARE = 3, 0.5
"""At most so many tokens of a passage are marked: those with at least this share of its largest activation."""


@dataclass(frozen=True)
class Passage:
    """Some tokens of an answer.

    Attributes:
        tokens: pieces of text.
        marked: places in `tokens`.
        strength: largest activation in it.
        truth: of a test passage: the feature is active in it (detection), its marks are right (fuzzing).
        silent: places of tokens with text on which the feature is not active, where wrong marks can go.
    """

    tokens: tuple[str, ...]
    marked: tuple[int, ...] = ()
    strength: float = 0.0
    truth: bool = True
    silent: tuple[int, ...] = ()


@dataclass(frozen=True)
class FeaturePassages:
    """The passages of one feature: shown to the labeller, and for either score, in the order in which they are asked."""

    feature: int
    shown: tuple[Passage, ...]
    detection: tuple[Passage, ...] = ()
    fuzzing: tuple[Passage, ...] = ()


def feature_passages(
    reader: RunReader, features: Sequence[int], *, shown: int, scored: int, seed: int = 0
) -> Iterator[FeaturePassages]:
    """Yields the passages of each feature, in the order given.

    Args:
        shown: at most so many for the labeller, strongest first.
        scored: at most so many for either score; half of them active and half inactive (of these half near misses) for
            detection, half of them rightly and half wrongly marked for fuzzing. 0 leaves them out.
    """
    with reader.cursor() as cursor:
        pairs, pair_of = label_queries.pair_prompts(cursor), label_queries.response_pairs(cursor)
        contexts = label_queries.strong_contexts(cursor, features).partition_by("feature_id", as_dict=True)
        active = label_queries.active_responses(cursor, features).partition_by("feature_id", as_dict=True)
    chooses = pair_of.is_in(choosing_pairs(pairs)).to_numpy()
    tests = _Tests(reader, ~chooses, scored, seed) if scored else None
    for feature in features:
        stored = contexts.get((feature,))
        seen = _shown(stored, chooses, shown) if stored is not None else ()
        if tests is None or (feature,) not in active or len(seen) < LEAST_SHOWN:
            yield FeaturePassages(feature, seen)
        else:
            response = active[(feature,)]["response_id"].to_numpy().astype(np.int64)
            yield FeaturePassages(feature, seen, *tests.of(feature, response, seen))


def _shown(stored: pl.DataFrame, chooses: np.ndarray, most: int) -> tuple[Passage, ...]:
    own = stored.filter(pl.Series(chooses[stored["response_id"].to_numpy()])).head(most)
    rows = own.select("tokens", "values", "peak").iter_rows()
    return tuple(
        Passage(tuple(tokens), strong_tokens(tokens, values, peak), float(max(values))) for tokens, values, peak in rows
    )


def strong_tokens(tokens: Sequence[str], values: Sequence[float], peak: int) -> tuple[int, ...]:
    """Places of the tokens that are marked, ascending: the peak, and what comes near it.

    A token without text of its own (the rest of a character) is marked at the one before it.
    """
    enough = MARK_SHARE * values[peak]
    near = [i for i, value in enumerate(values) if i != peak and value > 0 and value >= enough]
    near.sort(key=lambda i: (-values[i], i))
    places = set()
    for place in [peak, *near[: MARKS - 1]]:
        while place and not tokens[place]:
            place -= 1
        places.add(place)
    return tuple(sorted(places))


class _Tests:
    """Draws the passages that test a label, from the half of the prompts that the labeller is not shown."""

    def __init__(self, reader: RunReader, member: np.ndarray, n: int, seed: int) -> None:
        self.reader, self.arrays, self.n, self.seed = reader, reader.arrays, n, seed
        self.half = Half(self.arrays, member, seed)
        self.start = np.asarray(self.arrays.token_start)
        settings = FeaturesConfig(**reader.manifest.config.get("features", {}))
        self.before, self.after = settings.context_before, settings.context_after

    def of(
        self, feature: int, response: np.ndarray, seen: Sequence[Passage]
    ) -> tuple[tuple[Passage, ...], tuple[Passage, ...]]:
        """The passages for detection and for fuzzing.

        Args:
            response: int64, all answers in which the feature is active.
        """
        # `draw` takes the first by this order: only their peaks need looking up.
        own = response[self.half.member[response]]
        own = own[np.argsort(mix(self.seed, np.full(len(own), feature), own), kind="stable")][:SAMPLES]
        peaks = np.array([self._peak(feature, int(r)) for r in own], np.int64)
        block = FeatureEntries(feature, feature + 1, np.full(len(own), feature), own, np.zeros(len(own), np.int64))
        drawn = self.half.draw(block, peaks)
        rows = [drawn.rows[0, columns][drawn.rows[0, columns] >= 0] for columns in (drawn.active, ~drawn.active)]
        texts = self._texts(np.concatenate(rows))
        known = {passage.tokens for passage in seen}
        active = self._passages(feature, rows[0], texts, known, active=True)
        split = int(np.sum(drawn.rows[0, SAMPLES : SAMPLES + SAMPLES // 2] >= 0))
        near = self._passages(feature, rows[1][:split], texts, known, active=False)
        anywhere = self._passages(feature, rows[1][split:], texts, known, active=False)
        near = near[: max(self.n // 4, self.n // 2 - len(anywhere))]
        inactive = [*near, *anywhere][: self.n // 2]
        marked = [*active[self.n // 2 :], *active[: self.n // 2]][: self.n]
        fuzzing = [
            one if i % 2 == 0 else moved
            for i, one in enumerate(marked)
            if (moved := _moved(one, mix(self.seed + 4, np.array([feature]), np.array([i])))) is not None
        ]
        plain = [replace(one, marked=()) for one in (*active[: self.n // 2], *inactive)]
        return self._shuffled(feature, plain), self._shuffled(feature, fuzzing)

    def _peak(self, feature: int, response: int) -> int:
        """The token row of an answer at which the feature is largest."""
        rows = self.arrays.tokens_of(response)
        at, slot = np.nonzero(np.asarray(self.arrays.token_features[rows]) == feature)
        return rows.start + int(at[np.argmax(np.asarray(self.arrays.token_values[rows])[at, slot])])

    def _texts(self, rows: np.ndarray) -> dict[int, list[str]]:
        """The pieces of every answer that one of the token rows is in."""
        responses = np.unique(np.searchsorted(self.start, rows, side="right") - 1).tolist()
        with self.reader.cursor() as cursor:
            texts = label_queries.answer_texts(cursor, responses)
        return {r: pieces_of(texts[r], self.arrays.token_char[self.arrays.tokens_of(r)]) for r in responses}

    def _passages(
        self, feature: int, rows: np.ndarray, texts: dict[int, list[str]], known: set[tuple[str, ...]], active: bool
    ) -> list[Passage]:
        """Windows around token rows, without those that read like one before; inactive ones are so at every token."""
        found = []
        for row in rows.tolist():
            response = int(np.searchsorted(self.start, row, side="right")) - 1
            first, last = self.start[response], self.start[response + 1]
            window = np.arange(max(row - self.before, first), min(row + self.after + 1, last))
            values = values_at(self.arrays, window, np.full(len(window), feature)).tolist()
            tokens = tuple(texts[response][window[0] - first : window[-1] + 1 - first])
            if tokens in known or (not active and any(values)):
                continue
            known.add(tokens)
            if active:
                marks = strong_tokens(tokens, values, row - int(window[0]))
                silent = (i for i, value in enumerate(values) if not value and tokens[i] and i not in marks)
                found.append(Passage(tokens, marks, max(values), True, tuple(silent)))
            else:
                found.append(Passage(tokens, truth=False))
        return found

    def _shuffled(self, feature: int, passages: Sequence[Passage]) -> tuple[Passage, ...]:
        order = np.argsort(mix(self.seed + 5, np.array([feature]), np.arange(len(passages))), kind="stable")
        return tuple(passages[i] for i in order)


def _moved(one: Passage, draw: np.ndarray) -> Passage | None:
    """The same passage with as many marks on other tokens, at which the feature is not active; None if there are too few."""
    if len(one.silent) < len(one.marked):
        return None
    order = np.argsort(mix(0, draw, np.array(one.silent, np.int64)), kind="stable")
    places = tuple(sorted(one.silent[i] for i in order[: len(one.marked)]))
    return replace(one, marked=places, truth=False)
