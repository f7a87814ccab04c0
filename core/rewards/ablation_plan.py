"""What a causal check by re-running measures: which pairs, and against which random features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from core.rewards.ablation import MIN_PROMPTS, Sides, token_density
from core.rewards.matching import nearest, within_factor
from core.store.arrays import RunArrays
from core.store.reader import RunReader
from core.store.sets import FeatureSet

POOL = 8
"""At most POOL x `random` random features are measured, shared by all members of a set."""
ALIKE = 2.0
"""A random feature serves every member of the set whose density and |weight| are within this factor of its own."""


@dataclass(frozen=True)
class CheckPlan:
    """What will be measured.

    Attributes:
        members: int64, features of the set that can be checked, ascending.
        pool: int64, the random features.
        matched: for each member the random features it is compared with.
        sampled: for each feature the pairs it is measured on.
        not_checked: for each other feature of the set, why.
    """

    members: np.ndarray
    pool: np.ndarray
    matched: dict[int, np.ndarray]
    sampled: dict[int, np.ndarray]
    not_checked: dict[int, str]


def plan_checks(
    reader: RunReader,
    one: FeatureSet,
    *,
    pairs: int = 24,
    random: int = 8,
    seed: int = 0,
) -> CheckPlan:
    """Chooses random features and pairs for the checks of a set.

    Pairs come in one random order for all features, a prompt's first pair before the second of any, so that features share
    pairs where they can.

    Args:
        pairs: at most so many for each feature.
        random: random features matched to each member; they also serve other members that are like them.

    Raises:
        DataError: the set is of another SAE.
    """
    arrays, weights = reader.arrays, reader.features.frame.sort("feature_id")["weight"].to_numpy()
    one.signs(arrays.latents)
    table = Sides.of(reader.table("pair"), reader.table("response"))
    active = _active_pairs(arrays, table, _head_pooling(reader))
    prompts = np.array([len(np.unique(table.prompt[_pairs_of(active, f)])) for f in range(arrays.latents)])
    members = np.array(one.features, np.int64)
    few = {int(f): f"active in {prompts[f]} prompts, {MIN_PROMPTS} needed" for f in members if prompts[f] < MIN_PROMPTS}
    members = members[prompts[members] >= MIN_PROMPTS]
    density = token_density(arrays)
    able = np.setdiff1d(np.flatnonzero((prompts >= MIN_PROMPTS) & (weights != 0)), one.features)
    close = nearest(density, weights, members, able, random)
    pool = _round_robin(close, POOL * random)
    matched = {}
    for member, own in zip(members.tolist(), nearest(density, weights, members, pool, random), strict=True):
        alike = pool[within_factor(density, weights, member, pool, ALIKE)]
        matched[member] = np.union1d(own, alike)
    order = np.random.default_rng(seed).permutation(len(table.prompt))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    features = np.union1d(members, pool).tolist()
    sampled = {f: _sample(_pairs_of(active, f), rank, table.prompt, pairs) for f in features}
    return CheckPlan(members, pool, matched, sampled, few)


def is_classifier(reader: RunReader) -> bool:
    """Whether the run's SAE stands beside an ordinary reward model."""
    return bool(reader.manifest.config.get("reward_model", {}).get("kind") == "classifier")


def _head_pooling(reader: RunReader) -> str:
    """Where a feature must be active to count: at the pooled token for a head on `last`, anywhere in the answer else."""
    return "mean" if is_classifier(reader) else str(reader.manifest.head["pooling"])


def _active_pairs(arrays: RunArrays, table: Sides, pooling: str) -> sp.csc_matrix:
    """[n_pairs, M], a stored entry where a feature is active in at least one answer of the pair."""
    pooled = arrays.pooled("last" if pooling == "last" else "mean")
    if pooling == "last":
        pooled = pooled.copy()
        pooled.eliminate_zeros()
    pattern = sp.csr_matrix((np.ones(pooled.nnz, np.float32), pooled.indices, pooled.indptr), pooled.shape)
    n = len(table.response_pair)
    belongs = sp.csr_matrix((np.ones(n, np.float32), (table.response_pair, np.arange(n))), (len(table.prompt), n))
    return sp.csc_matrix(belongs @ pattern)


def _pairs_of(active: sp.csc_matrix, feature: int) -> np.ndarray:
    return active.indices[active.indptr[feature] : active.indptr[feature + 1]]


def _sample(pairs: np.ndarray, rank: np.ndarray, prompt: np.ndarray, n: int) -> np.ndarray:
    """The first n pairs by rank, the first pair of each prompt before the others; ascending."""
    ordered = pairs[np.argsort(rank[pairs])]
    first = np.zeros(len(ordered), bool)
    first[np.unique(prompt[ordered], return_index=True)[1]] = True
    return np.sort(np.concatenate([ordered[first], ordered[~first]])[:n]).astype(np.int64)


def _round_robin(lists: Sequence[np.ndarray], most: int) -> np.ndarray:
    """Everybody's nearest, then everybody's second nearest, ..., at most so many; ascending."""
    chosen: dict[int, None] = {}
    for place in range(max(map(len, lists), default=0)):
        for one in lists:
            if place < len(one) and len(chosen) < most:
                chosen[int(one[place])] = None
    return np.array(sorted(chosen), np.int64)
