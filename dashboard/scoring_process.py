"""What the scoring process does: holds the model, SAE and head of a run, and scores what visitors type.

The functions run in a process of their own (a second dashboard/worker.py beside the one that refits heads, so that
neither waits for the other) and are only named here by the server, which is why torch is imported inside them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.data.schema import Message
from core.errors import ModelError
from dashboard.worker_said import say

if TYPE_CHECKING:
    from core.rewards.score import ScoredAnswer, Scorer

MOST_HELD = 1
"""Models kept in memory; another run's takes the place of the one used longest ago."""


@dataclass(frozen=True)
class Held:
    """The model of a run, as the process holds it.

    Attributes:
        runs: folders of all runs whose models are held now, last used last.
        about: what it is, in words.
        limit: longest sequence it reads, tokens.
        seconds: what reading it took; 0 when it was there already.
    """

    runs: tuple[str, ...]
    about: str
    limit: int
    seconds: float


@dataclass(frozen=True)
class ScoredText:
    """One answer with all that is drawn of it.

    Attributes:
        text: the answer.
        reward: sum of `contributions`, as `rewardscope score` prints it.
        model_reward: the same computed apart: token activations pooled densely in float32, then the head.
        features: int64 [n] active features, ascending; pooled: float64 [n]; contributions: float64 [n], w_i z_i.
        token_features, token_values: [T, k], active features of each token that was read and their activations.
        char: int32 [T, 2], where each token lies in the text.
        n_tokens: tokens the whole answer has; T of them were read.
        n_prompt, prompt_dropped: tokens before the answer, and how many of them were left out at the front.
    """

    text: str
    reward: float
    model_reward: float
    features: np.ndarray
    pooled: np.ndarray
    contributions: np.ndarray
    token_features: np.ndarray
    token_values: np.ndarray
    char: np.ndarray
    n_tokens: int
    n_prompt: int
    prompt_dropped: int

    @property
    def n_read(self) -> int:
        """Tokens of the answer that the model read."""
        return len(self.char)


@dataclass(frozen=True)
class Scored:
    """The answers to one prompt.

    Attributes:
        answers: in the order given.
        held: the model that scored them.
        seconds: what scoring took, without reading the model.
    """

    answers: list[ScoredText]
    held: Held
    seconds: float


_held: dict[str, tuple[Scorer, str]] = {}  # least recently used first


def load(run: str) -> Held:
    """Reads the model of a run, unless it is held already.

    Raises:
        RewardscopeError: it is not there, or not the one the run was made with.
    """
    begin = time.perf_counter()
    fresh = run not in _held
    scorer = _scorer(run)
    held = Held(tuple(_held), _held[run][1], scorer.max_length, time.perf_counter() - begin if fresh else 0.0)
    say(held)
    return held


def score(run: str, messages: Sequence[Message], answers: Sequence[str]) -> Scored:
    """Scores answers to one conversation, reading the model first where it is not held.

    Raises:
        RewardscopeError: no model (see `load`), or a text that cannot be scored.
    """
    from core.data.chat import encode_pair

    held = load(run)
    say(f"scoring {len(answers)} answer{'' if len(answers) == 1 else 's'}")
    begin = time.perf_counter()
    scorer = _held[run][0]
    scored = scorer.score(messages, answers)
    tokenizer = scorer.backbone.tokenizer
    whole = encode_pair(tokenizer, messages, answers, max_length=1 << 30)
    cut = [0] * len(whole)
    if max(len(one.ids) for one in whole) > held.limit:
        cut = [one.prompt_dropped for one in encode_pair(tokenizer, messages, answers, max_length=held.limit)]
    texts = [
        _scored_text(scorer, one, len(all_.ids) - all_.answer_start, all_.answer_start, dropped)
        for one, all_, dropped in zip(scored, whole, cut, strict=True)
    ]
    return Scored(texts, held, time.perf_counter() - begin)


def _scored_text(scorer: Scorer, one: ScoredAnswer, n_tokens: int, n_prompt: int, dropped: int) -> ScoredText:
    tokens = one.tokens
    return ScoredText(
        text=one.text,
        reward=one.reward,
        model_reward=dense_reward(tokens.features, tokens.values, scorer.head.weights, scorer.head.pooling),
        features=one.features,
        pooled=one.pooled,
        contributions=one.contributions,
        token_features=tokens.features,
        token_values=tokens.values,
        char=tokens.char,
        n_tokens=n_tokens,
        n_prompt=n_prompt,
        prompt_dropped=dropped,
    )


def dense_reward(features: np.ndarray, values: np.ndarray, weights: np.ndarray, pooling: str) -> float:
    """The reward of an answer the long way, in float32: what its sum of contributions is checked against.

    Args:
        features: int [T, k]; values: float32 [T, k]; weights: float64 [M]; pooling: 'last' or 'mean'.
    """
    rows = slice(-1, None) if pooling == "last" else slice(None)
    dense = np.zeros(len(weights), np.float32)
    used = values[rows].astype(np.float32)
    np.add.at(dense, features[rows].reshape(-1).astype(np.int64), used.reshape(-1) / np.float32(len(used)))
    return float(dense @ weights.astype(np.float32))


def _scorer(run: str) -> Scorer:
    if run in _held:
        _held[run] = _held.pop(run)
        return _held[run][0]
    about = _check_there(Path(run))
    say("starting")
    from core.rewards.score import load_scorer

    while len(_held) >= MOST_HELD:  # before the next one is read, so that two never fill the memory
        del _held[next(iter(_held))]
    scorer = load_scorer(Path(run), tell=say)
    _held[run] = (scorer, about)
    return scorer


def _check_there(run: Path) -> str:
    """What the run's model is, in words; nothing is ever fetched because a page was opened.

    Raises:
        ModelError: its files are not on this machine.
    """
    from core.models.resolve import EMBEDDED_MODEL, cached_models
    from core.store.manifest import read_manifest

    manifest = read_manifest(run)
    model = manifest.model
    name, layer = str(model["name"]), model["layer"]
    source = "wheel" if manifest.config.get("model", {}).get("weights") == "wheel" else None
    local = Path(name).expanduser().is_dir()
    there = (
        bool(model.get("checkpoint"))
        or local
        or any(one.name == name and source in (None, one.source) for one in cached_models())
    )
    if not there:
        get = "rewardscope doctor --fetch" if name == EMBEDDED_MODEL else f"hf download {name}"
        raise ModelError(f"The model of this run, {name}, is not on this machine; `{get}` fetches it.")
    return f"{Path(name).name if local else name}, layer {layer}"  # where folders lie is nothing for visitors
