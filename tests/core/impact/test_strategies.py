"""Pair scores are the published ones; rankings are of training pairs alone, ordered as they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from core.errors import ConfigError, DataError
from core.impact.inputs import ImpactInputs
from core.impact.strategies import FOLDS, STRATEGIES, label_confidence, rank_pairs, set_score, suspected_errors
from core.rewards.head import fit_head
from core.store.pooling import pool_answer
from core.store.sets import FeatureSet
from core.store.shards import AnswerActivations
from tests.core.impact.problem import L2, arrays_of, small_inputs

SAE = "s" * 64
SET = FeatureSet("golden", (0, 2), (1,), SAE)


def answer(tokens: list[dict[int, float]], boundary: list[bool]) -> AnswerActivations:
    """An answer of tokens with the given activations among three features."""
    k = 3
    features = np.tile(np.arange(k, dtype=np.uint16), (len(tokens), 1))
    values = np.array([[token.get(f, 0.0) for f in range(k)] for token in tokens], np.float32)
    n = len(tokens)
    ids = np.zeros(n, np.int32)
    return AnswerActivations(
        response_id=0, token_ids=ids, char=np.zeros((n, 2), np.int32), boundary=np.array(boundary), features=features,
        values=values, states=None, truncated=False,
    )  # fmt: skip


def inputs_of(answers: list[tuple[int, str, AnswerActivations]], train: list[bool] | None = None) -> ImpactInputs:
    """Inputs of (pair, side, answer), pooled as the store pools them."""
    pooled = np.zeros((len(answers), 3), np.float32)
    for row, (_, _, one) in enumerate(answers):
        features, values = pool_answer(one)
        pooled[row, features] = values[3]
    pairs = max(pair for pair, _, _ in answers) + 1
    sides = train or [True] * pairs
    table = pl.DataFrame(
        {
            "pair_id": [f"p{i}" for i in range(pairs)],
            "prompt_id": [f"q{i}" for i in range(pairs)],
            "split": ["train" if one else "test" for one in sides],
            "domain": ["safety"] * pairs,
        }
    )
    responses = pl.DataFrame(
        {
            "pair_index": [pair for pair, _, _ in answers],
            "side": [side for _, side, _ in answers],
            "text": [str(i) for i in range(len(answers))],
            "n_boundary": [int(one.boundary.sum()) for _, _, one in answers],
        }
    )
    lengths = np.array([len(one.token_ids) for _, _, one in answers])
    return ImpactInputs.of(
        arrays_of(sp.csr_matrix(pooled), lengths), table, responses, None, l2=1.0, margin=np.zeros(pairs), sae=SAE
    )


def test_the_pair_score_is_safers() -> None:
    """Worked by hand: g(chosen) = ((2 - 1) + 3) / 2 = 2, g(rejected) = -4, score 6."""
    chosen = answer([{0: 2.0, 1: 1.0}, {2: 3.0}], [True, True])
    rejected = answer([{1: 4.0}], [True])
    assert set_score(inputs_of([(0, "chosen", chosen), (0, "rejected", rejected)]), SET).tolist() == [6.0]


def test_only_positive_activations_at_boundaries_count_and_no_boundary_divides_by_one() -> None:
    chosen = answer([{0: -5.0, 2: 1.0}, {0: 7.0}], [True, False])
    rejected = answer([{0: 9.0}], [False])
    assert set_score(inputs_of([(0, "chosen", chosen), (0, "rejected", rejected)]), SET).tolist() == [1.0]


def test_several_answers_count_as_their_mean() -> None:
    ones = [answer([{0: value}], [True]) for value in (4.0, 2.0, 1.0, 6.0)]
    inputs = inputs_of(
        [(0, "chosen", ones[0]), (0, "chosen", ones[1]), (0, "rejected", ones[2]), (0, "rejected", ones[3])]
    )
    assert set_score(inputs, SET).tolist() == [3.0 - 3.5]


def test_equal_scores_keep_the_order_of_the_file() -> None:
    same = [(i, side, answer([{0: 1.0}], [True])) for i in range(5) for side in ("chosen", "rejected")]
    inputs = inputs_of(same, train=[True, False, True, True, True])
    for direction in ("poison", "denoise"):
        ranking = rank_pairs(inputs, "set", feature_set=SET, direction=direction)
        assert ranking.pair_index.tolist() == [0, 2, 3, 4]
        assert np.isnan(ranking.score[1])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 30), st.sampled_from(STRATEGIES), st.integers(0, 3))
def test_rankings_hold_training_pairs_once_in_score_order(seed: int, strategy: str, draw: int) -> None:
    inputs = small_inputs(seed, pairs=60, features=12)
    chosen = FeatureSet("some", (0, 3), (5,), SAE)
    up = rank_pairs(inputs, strategy, feature_set=chosen, direction="poison", seed=draw)
    down = rank_pairs(inputs, strategy, feature_set=chosen, direction="denoise", seed=draw)
    for ranking, sign in ((up, -1), (down, 1)):
        assert sorted(ranking.pair_index) == np.flatnonzero(inputs.train).tolist()
        assert (np.diff(sign * ranking.score[ranking.pair_index]) >= 0).all()
        assert np.isnan(ranking.score[~inputs.train]).all()
        assert ranking.what


def test_random_depends_on_its_seed_alone() -> None:
    inputs = small_inputs(0)
    orders = [rank_pairs(inputs, "random", direction="poison", seed=seed).pair_index.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_length_is_the_log_ratio_in_tokens() -> None:
    answers = [(0, "chosen", answer([{}] * 8, [False] * 8)), (0, "rejected", answer([{}] * 2, [False] * 2))]
    score = rank_pairs(inputs_of(answers), "length", direction="poison").score
    assert score.tolist() == [pytest.approx(np.log(4))]


def test_a_pair_without_a_margin_is_not_ranked() -> None:
    inputs = small_inputs(1)
    margin = inputs.margin.copy()
    gone = np.flatnonzero(inputs.train)[3]
    margin[gone] = np.nan
    ranking = rank_pairs(replace(inputs, margin=margin), "margin", direction="poison")
    assert gone not in ranking.pair_index
    assert len(ranking.pair_index) == inputs.train.sum() - 1


def test_the_loss_judges_a_pair_by_a_head_that_never_saw_its_prompt() -> None:
    """Refits one fold with fit_head on its own and compares; cleanlab's self-confidence is the same figure."""
    inputs = small_inputs(2)
    found = label_confidence(inputs)
    assert np.isnan(found[~inputs.train]).all()
    prompts = np.unique(inputs.prompt[inputs.train])
    fold_of = dict(
        zip(
            np.random.default_rng(inputs.settings.seed).permutation(prompts),
            np.arange(len(prompts)) % FOLDS,
            strict=True,
        )
    )
    fold = np.array([fold_of.get(prompt, -1) for prompt in inputs.prompt])
    c = inputs.comparisons
    scale_ratio = []
    for held in range(FOLDS):
        out = fold == held
        rest = c.of(~out & inputs.train)
        # fit_head takes the penalty's scale from the pairs it sees; the refit keeps the run's, so hand it over.
        own = np.median(inputs.features.toarray()[np.unique(np.r_[rest.chosen, rest.rejected])].std(axis=0))
        ratio = inputs.differences.scale / own  # type: ignore[attr-defined]
        scale_ratio.append(ratio)
        weights = fit_head(inputs.features, rest, l2=L2 * ratio**2, tolerance=1e-9).weights
        rewards = inputs.features @ weights
        judged = c.of(out & inputs.train)
        chance = np.bincount(
            judged.pair,
            weights=judged.weight * expit(rewards[judged.chosen] - rewards[judged.rejected]),
            minlength=len(out),
        )
        np.testing.assert_allclose(found[out & inputs.train], chance[out & inputs.train], atol=1e-4)
    from cleanlab.rank import get_label_quality_scores

    p = found[inputs.train]
    side = np.arange(len(p)) % 2
    chances = np.where(side[:, None] == np.arange(2), p[:, None], 1 - p[:, None])
    np.testing.assert_allclose(get_label_quality_scores(side, chances, method="self_confidence"), p)


def test_flipped_labels_are_noticed() -> None:
    """With a fifth of the labels flipped, those found first are flipped far more often than others, and more are suspected."""
    clean = small_inputs(3, pairs=900, features=30)
    rng = np.random.default_rng(0)
    wrong = (rng.random(len(clean.train)) < 0.2) & clean.train
    noisy = replace(clean, chosen=clean.chosen ^ wrong[clean.response_pair], head=None)
    lowest = rank_pairs(noisy, "loss", direction="denoise").pair_index[: wrong.sum()]
    assert wrong[lowest].mean() > 1.5 * 0.2  # picked blindly it would be 0.2
    assert suspected_errors(noisy) > suspected_errors(clean)


def test_what_cannot_be_ranked_is_said() -> None:
    inputs = small_inputs(4)
    with pytest.raises(ConfigError, match="needs a feature set"):
        rank_pairs(inputs, "set", direction="poison")
    with pytest.raises(ConfigError, match="'best' is not known"):
        rank_pairs(inputs, "best", direction="poison")
    with pytest.raises(ConfigError, match="use poison or denoise"):
        rank_pairs(inputs, "random", direction="up")
    with pytest.raises(DataError, match="is empty"):
        rank_pairs(inputs, "set", feature_set=FeatureSet("none", (), (), SAE), direction="poison")
    with pytest.raises(DataError, match="was made for the SAE"):
        rank_pairs(inputs, "set", feature_set=FeatureSet("other", (1,), (), "t" * 64), direction="poison")
    with pytest.raises(DataError, match="only"):
        rank_pairs(inputs, "set", feature_set=FeatureSet("far", (4000,), (), SAE), direction="poison")
    with pytest.raises(DataError, match="No training pair has a score"):
        rank_pairs(replace(inputs, margin=np.full(len(inputs.margin), np.nan)), "margin", direction="poison")
