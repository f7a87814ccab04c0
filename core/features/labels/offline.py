"""Offline labels: the words, token classes and places that best tell where a feature is active, and how well they do.

A label is chosen on one half of the prompts and scored on the other, on which nothing else of it depends.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import polars as pl

from core.features.entries import entries_by_feature, peak_tokens, rank_in_group
from core.features.labels.accuracy import Z_95, balanced_accuracy
from core.features.labels.marks import moved_marks
from core.features.pieces import END_OF_TURN, Pieces
from core.features.samples import ABSENT, Contexts, Half, choosing_pairs
from core.features.words import (
    AFTER,
    AFTER_PAIR,
    ENDS,
    FLAG,
    FLAGS,
    KINDS,
    LINE_BREAK,
    NEAR,
    OPENS,
    PAIR,
    PIECE,
    SPACES,
    STARTS_SENTENCE,
    TRIPLE,
    WORD,
    Words,
    decode,
    kind_of,
    read_words,
)
from core.store.arrays import RunArrays

MODEL = "rewardscope-offline-1"
NEVER_ACTIVE = "never active"
TOO_RARE = "too rare to label"
NO_PATTERN = "no clear token pattern"
EVERYWHERE = "active on nearly every token"

MIN_CHOSEN_FROM, MIN_SCORED_ON = 5, 10
"""Fewer active contexts in the one half: no label is tried. In the other half: no score is given."""
TERMS, MIN_GAIN = 3, 0.02
"""A label has at most so many terms, and each after the first raises the balanced accuracy by so much."""
MIN_HELD, MIN_HELD_AROUND, MIN_SHARE = 3, 6, 0.05
"""A term holds in so many of the active contexts it is chosen from (words around the token: in more, since there are so
many of them), and in this share of them."""
_MIN_HELD = np.full(KINDS, MIN_HELD)
_MIN_HELD[[NEAR, OPENS, ENDS]] = MIN_HELD_AROUND
CLEAR_ACCURACY, CLEAR_Z = 0.65, 4.0
"""A pattern is clear when, on the half that chose it, it tells active from inactive contexts this well, and better
than chance by this many standard errors (four, for many terms were tried)."""
SHORTLIST = 32
FEATURES_AT_ONCE = 512
_NAMED = {END_OF_TURN: "end of turn", LINE_BREAK: "line break", SPACES: "spaces"}
KINDS_OF_SCORE = ("detection", "fuzzing")
CLASSES = tuple(dict.fromkeys([*FLAGS, *_NAMED.values()]))
"""Terms that are no quotation."""
_HANDICAP = np.zeros(KINDS)
_HANDICAP[[PIECE, PAIR, TRIPLE, STARTS_SENTENCE, FLAG]] = 0.01
_HANDICAP[[AFTER, AFTER_PAIR]] = 0.02
_HANDICAP[[NEAR, OPENS, ENDS]] = 0.06
"""Balanced accuracy that a kind of term must have in excess of a plain word, which reads better ..."""
_LATER_HANDICAP = 0.03 * (np.arange(KINDS) == FLAG)
"""... and a class that is not the first term, in excess of that."""


@dataclass(frozen=True)
class Detection:
    """How well terms tell active from inactive contexts.

    Attributes:
        accuracy, low, high: float64 [features], balanced accuracy and its interval; NaN without contexts.
        n_active, n_inactive: int64 [features], contexts behind it.
    """

    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_active: np.ndarray
    n_inactive: np.ndarray


def label_table(
    arrays: RunArrays, pairs: pl.DataFrame, responses: pl.DataFrame, pieces: Pieces, seed: int = 0
) -> pl.DataFrame:
    """The table `label`: one offline label for each of the M features.

    A term is something true of a token: its word or class, the words before it, a word near before it (words.py). On
    one half of the prompts, contexts are drawn in which the feature is active (its peak in each answer) and in which
    it is not (half of them near misses, samples.py), and up to three terms are taken, one after the other, whose
    disjunction has the highest balanced accuracy. The score is its balanced accuracy on contexts drawn in the same way
    from the other half: (share of active contexts where a term holds + share of inactive ones where none does) / 2.
    Fuzzing is the same figure on the active contexts of the other half alone, every second of them with its mark moved
    to a token nearby at which the feature is not active (marks.py): does a term hold on the marked token?

    Args:
        pairs: PAIR_SCHEMA; responses: RESPONSE_SCHEMA, ordered by response_id.
    """
    chooses = responses["pair_id"].is_in(choosing_pairs(pairs)).to_numpy()
    words = read_words(arrays, responses, pieces, chooses)
    choosing, scoring = Half(arrays, chooses, seed), Half(arrays, ~chooses, seed)
    peaks = peak_tokens(arrays)
    text = [NEVER_ACTIVE] * arrays.latents
    scores = {kind: np.full((3, arrays.latents), np.nan) for kind in KINDS_OF_SCORE}
    n = {kind: np.zeros(arrays.latents, np.int64) for kind in KINDS_OF_SCORE}
    for block in entries_by_feature(arrays, most=FEATURES_AT_ONCE):
        peak_row = np.asarray(arrays.token_start)[block.response] + peaks[block.position]
        seen, unseen = choosing.draw(block, peak_row), scoring.draw(block, peak_row)
        terms = choose_terms(words, seen)
        chosen = detection(words, seen, terms, CLEAR_Z)
        scored = {
            "detection": detection(words, unseen, terms),
            "fuzzing": detection(words, moved_marks(arrays, unseen, block.lo, seed), terms),
        }
        clear = (chosen.low > 0.5) & (chosen.accuracy >= CLEAR_ACCURACY)
        for row in block.feature[np.diff(block.feature, prepend=-1) > 0] - block.lo:
            if chosen.n_active[row] < MIN_CHOSEN_FROM:
                text[block.lo + row] = TOO_RARE + _often(words, seen, row, "seen on")
            elif chosen.n_inactive[row] < MIN_SCORED_ON:
                text[block.lo + row] = EVERYWHERE
            elif not clear[row]:
                text[block.lo + row] = NO_PATTERN + _often(words, seen, row, "most often")
            else:
                text[block.lo + row] = describe(words, terms[row])
        for kind, found in scored.items():
            tested = (terms[:, 0] != ABSENT) & (np.minimum(found.n_active, found.n_inactive) >= MIN_SCORED_ON)
            at = block.lo + np.flatnonzero(tested)
            scores[kind][:, at] = np.stack([found.accuracy, found.low, found.high])[:, tested]
            n[kind][at] = (found.n_active + found.n_inactive)[tested]
    return pl.DataFrame(
        {
            "feature_id": np.arange(arrays.latents, dtype=np.uint32),
            "source": ["offline"] * arrays.latents,
            "text": text,
            "safety_rating": pl.Series([None] * arrays.latents, dtype=pl.UInt8),
            **{
                f"{kind}_{name}": pl.Series(column).fill_nan(None)
                for kind in KINDS_OF_SCORE
                for name, column in zip(("score", "low", "high"), scores[kind], strict=True)
            },
            **{f"{kind}_n": pl.Series(n[kind].astype(np.uint32)).replace(0, None) for kind in KINDS_OF_SCORE},
            "model": [MODEL] * arrays.latents,
        }
    )


def choose_terms(words: Words, contexts: Contexts) -> np.ndarray:
    """Greedily takes the terms whose disjunction best tells the active from the inactive contexts of each feature.

    Returns:
        int64 [features, TERMS]: predicates, ABSENT where fewer terms are worth having; none at all where the feature
        has fewer than MIN_CHOSEN_FROM active contexts or no term holds in enough of them.
    """
    features, samples = contexts.rows.shape
    n_active, n_inactive = _sizes(contexts)
    sign = np.where(contexts.active, 0.5 / np.maximum(n_active, 1)[:, None], -0.5 / np.maximum(n_inactive, 1)[:, None])

    flat = np.flatnonzero(contexts.rows >= 0)
    held = words.predicates(contexts.rows.reshape(-1)[flat])
    at, column = np.nonzero(held >= 0)
    predicate = held[at, column]
    feature, sample = np.divmod(flat[at], samples)
    # Candidates are what holds in enough active contexts; each (feature, predicate) is one number.
    known, code = np.unique(predicate, return_inverse=True)
    candidate = feature * len(known) + code
    candidates, count = np.unique(candidate[contexts.active[sample]], return_counts=True)
    owner, code = np.divmod(candidates, max(len(known), 1))
    candidates = candidates[count >= np.maximum(_MIN_HELD[kind_of(known[code])], MIN_SHARE * n_active[owner])]
    if not len(candidates):
        return np.full((features, TERMS), ABSENT, np.int64)
    place = np.minimum(np.searchsorted(candidates, candidate), len(candidates) - 1)
    kept = candidates[place] == candidate
    feature, sample, place = feature[kept], sample[kept], place[kept]

    owner, code = np.divmod(candidates, len(known))
    gain = np.bincount(place, sign[feature, sample], minlength=len(candidates)) - _HANDICAP[kind_of(known[code])]
    best = np.lexsort((known[code], -gain, owner))
    best = best[rank_in_group(owner[best]) < SHORTLIST]
    slot = np.full(len(candidates), ABSENT)
    slot[best] = rank_in_group(owner[best])
    shortlist = np.full((features, SHORTLIST), ABSENT, np.int64)
    shortlist[owner[best], slot[best]] = known[code[best]]
    listed = slot[place] >= 0
    holds = np.zeros((features, SHORTLIST, samples), bool)
    holds[feature[listed], slot[place[listed]], sample[listed]] = True

    terms = np.full((features, TERMS), ABSENT, np.int64)
    handicap = np.where(shortlist >= 0, _HANDICAP[kind_of(shortlist)], 2)
    covered, reached = np.zeros((features, samples), bool), np.zeros(features)
    going = n_active >= MIN_CHOSEN_FROM
    every = np.arange(features)
    for term in range(TERMS):
        either = holds | covered[:, None, :]
        value = np.einsum("fks,fs->fk", either, sign)
        handicap += _LATER_HANDICAP[kind_of(shortlist)] if term == 1 else 0
        choice = np.argmax(value - handicap, axis=1)
        going &= (value - handicap)[every, choice] - reached >= (MIN_GAIN if term else -1)
        going &= shortlist[every, choice] != ABSENT
        terms[going, term] = shortlist[every, choice][going]
        covered[going] = either[every, choice][going]
        reached[going] = value[every, choice][going]
    return terms


def detection(words: Words, contexts: Contexts, terms: np.ndarray, z: float = Z_95) -> Detection:
    """Balanced accuracy of "one of the terms holds at the anchor" as a sign that the feature is active there.

    Args:
        terms: int64 [features, t], predicates; ABSENT ones never hold.
        z: standard normal quantile of the interval (default: 95 %).
    """
    samples = contexts.rows.shape[1]
    flat = np.flatnonzero(contexts.rows >= 0)
    held = words.predicates(contexts.rows.reshape(-1)[flat])
    wanted = np.where(terms == ABSENT, ABSENT - 1, terms)[flat // samples]
    holds = np.zeros(contexts.rows.shape, bool)
    holds.reshape(-1)[flat] = np.any([np.any(held == wanted[:, [t]], axis=1) for t in range(terms.shape[1])], axis=0)
    n_active, n_inactive = _sizes(contexts)
    hits, false_alarms = holds[:, contexts.active].sum(axis=1), holds[:, ~contexts.active].sum(axis=1)
    accuracy, low, high = balanced_accuracy(hits, n_active, false_alarms, n_inactive, z)
    return Detection(accuracy, low, high, n_active, n_inactive)


def describe(words: Words, terms: np.ndarray) -> str:
    """Terms as a person reads them: `“sorry”, “I can’t”; after “how to”`."""
    said = [_said(words, int(term)) for term in terms if term != ABSENT]
    prefixes = [prefix for prefix, _ in said]
    groups = groupby(sorted(said, key=lambda part: prefixes.index(part[0])), key=lambda part: part[0])
    return "; ".join(f"{prefix} {', '.join(shown for _, shown in group)}".strip() for prefix, group in groups)


def _said(words: Words, term: int) -> tuple[str, str]:
    """What stands before a term's quotation, if anything, and the term."""
    kind, codes = decode(term)
    if kind == FLAG:
        return "", FLAGS[codes[0]]
    texts = [words.vocabulary[code] for code in codes]
    if kind == WORD and texts[0] in _NAMED:
        return "", _NAMED[texts[0]]
    prefix = {
        PIECE: "word part",
        STARTS_SENTENCE: "sentence start",
        AFTER: "after",
        AFTER_PAIR: "after",
        NEAR: "near",
        OPENS: "in an answer that opens with",
        ENDS: "end of an answer with",
    }.get(kind, "")
    if kind == WORD and not any(character.isalnum() for character in texts[0]):
        prefix = "punctuation"
    return prefix, quoted(texts)


def quoted(texts: list[str]) -> str:
    """Words in quotation marks; marks close up to the word before them, what cannot be seen is spelled out."""
    joined = ""
    for text in texts:
        shown = {LINE_BREAK: "⏎", END_OF_TURN: END_OF_TURN}.get(text) or "".join(
            character if character.isprintable() else f"U+{ord(character):04X}" for character in text[:40]
        )
        close = not joined or text[0] in ".,;:!?)]}’'-/" or joined[-1] in "([{-/"
        joined += shown if close else f" {shown}"
    return f"“{joined}”"


def _often(words: Words, contexts: Contexts, row: int, how: str) -> str:
    """The word on which a feature peaks most often in the half its label is chosen on, in brackets."""
    rows = contexts.rows[row, contexts.active]
    codes, count = np.unique(words.word[rows[rows >= 0]], return_counts=True)
    codes, count = codes[codes >= 0], count[codes >= 0]
    if not len(codes):
        return ""
    text = words.vocabulary[codes[np.argmax(count)]]
    return f" ({how} {_NAMED.get(text) or quoted([text])})"


def _sizes(contexts: Contexts) -> tuple[np.ndarray, np.ndarray]:
    there = contexts.rows >= 0
    return there[:, contexts.active].sum(axis=1), there[:, ~contexts.active].sum(axis=1)
