"""Which training pairs a plan changes first: SAFER's pair score and the baselines it is judged against.

Every strategy gives a pair a score that is high when the pair looks like a good example of its own label. Poisoning takes the
highest first, denoising the lowest. Equal scores are ordered by the pair's place in the file; held-out pairs are never ranked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.special import expit

from core.errors import ConfigError, DataError
from core.impact.inputs import ImpactInputs
from core.impact.refit import refit
from core.store.sets import FeatureSet

Strategy = Literal["set", "random", "margin", "loss", "length"]
Direction = Literal["poison", "denoise"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
FOLDS = 5


@dataclass(frozen=True)
class Ranking:
    """The order in which training pairs are changed.

    Attributes:
        pair_index: int64 [n], first changed first; training pairs with a score.
        score: float64 [n_pairs], NaN where there is none (held-out pairs, missing rewards).
        what: the score in words.
    """

    pair_index: np.ndarray
    score: np.ndarray
    what: str


WHAT: dict[Strategy, str] = {
    "set": "SAFER's pair score: S+ minus S- activation per boundary token, chosen minus rejected answer",
    "random": "a random number",
    "margin": "the run's own reward margin, chosen minus rejected answer",
    "loss": "chance of the given label by a head that was fitted without the pair's prompt",
    "length": "log of the chosen answer's length over the rejected answer's, in tokens",
}


def rank_pairs(
    inputs: ImpactInputs,
    strategy: str,
    *,
    feature_set: FeatureSet | None = None,
    direction: str,
    seed: int = 0,
) -> Ranking:
    """The order in which a strategy changes training pairs.

    Args:
        feature_set: needed by the strategy 'set'.
        direction: 'poison' (highest score first) or 'denoise' (lowest first).
        seed: of the strategy 'random'; the others do not depend on it.

    Raises:
        ConfigError: an unknown strategy or direction, or 'set' without a set.
        DataError: the set is of another SAE, or no training pair has a score.
    """
    if direction not in get_args(Direction):
        raise ConfigError(f"Direction {direction!r} is not known; use poison or denoise.")
    score = pair_scores(inputs, strategy, feature_set=feature_set, seed=seed)
    ranked = np.flatnonzero(inputs.train & ~np.isnan(score))
    if not len(ranked):
        raise DataError(f"No training pair has a score by the strategy {strategy}; use another one.")
    # A stable sort keeps the file's order among equal scores, in both directions.
    order = np.argsort(-score[ranked] if direction == "poison" else score[ranked], kind="stable")
    return Ranking(ranked[order], score, WHAT[strategy])  # type: ignore[index]


def pair_scores(
    inputs: ImpactInputs, strategy: str, *, feature_set: FeatureSet | None = None, seed: int = 0
) -> np.ndarray:
    """The score of every training pair, float64 [n_pairs]; NaN for held-out pairs and where there is none."""
    if strategy == "set":
        if feature_set is None:
            raise ConfigError("The strategy set needs a feature set; name one, or use margin, loss, length or random.")
        score = set_score(inputs, feature_set)
    elif strategy == "random":
        score = np.random.default_rng([seed, 20250]).random(len(inputs.pair_ids))
    elif strategy == "margin":
        score = inputs.margin.copy()
    elif strategy == "loss":
        score = label_confidence(inputs)
    elif strategy == "length":
        score = _side_mean_difference(inputs, np.log(np.maximum(inputs.n_tokens, 1)))
    else:
        raise ConfigError(f"Strategy {strategy!r} is not known; use one of {', '.join(STRATEGIES)}.")
    return np.where(inputs.train, score, np.nan)


def set_score(inputs: ImpactInputs, feature_set: FeatureSet) -> np.ndarray:
    """SAFER's pair score of every pair, held-out ones too, float64 [n_pairs] (SAFER section 3.6).

    g(T) = sum over boundary tokens of (positive activations of S+ minus those of S-) / number of boundary tokens (1 if none);
    a pair's score is the mean g of its chosen answers minus the mean g of its rejected ones.

    Raises:
        DataError: the set is empty or of another SAE.
    """
    if feature_set.sae and inputs.sae and feature_set.sae != inputs.sae:
        raise DataError(
            f"The set {feature_set.name!r} was made for the SAE {feature_set.sae[:12]}, this run has "
            f"{inputs.sae[:12]}; its ids mean other features."
        )
    if not len(feature_set):
        raise DataError(f"The set {feature_set.name!r} is empty; pick features first.")
    signs = feature_set.signs(inputs.latents)
    per_boundary = (inputs.boundary @ signs) / np.maximum(inputs.n_boundary, 1)
    return _side_mean_difference(inputs, per_boundary)


def label_confidence(inputs: ImpactInputs) -> np.ndarray:
    """Out-of-fold chance of the given label, float64 [n_pairs]; NaN for held-out pairs.

    The head is fitted on the training pairs without one fifth of the prompts and judges that fifth, with the run's penalty: the
    self-confidence of confident learning (Northcutt, Jiang and Chuang 2021), the same figure as
    `cleanlab.rank.get_label_quality_scores`. A pair with several answers has the mean over its comparisons.

    Raises:
        DataError: fewer prompts than folds.
    """
    cached: np.ndarray | None = inputs.__dict__.get("_label_confidence")
    if cached is None:
        cached = _label_confidence(inputs)
        inputs.__dict__["_label_confidence"] = cached  # a property of the run's pairs, asked for by every curve
    return cached


def suspected_errors(inputs: ImpactInputs) -> int:
    """How many training pairs confident learning takes for mislabelled (cleanlab's confident joint, out-of-fold chances).

    A pair has no class of its own, so each is shown with its chosen answer on the left or on the right at random, and the label is
    the side. It is an estimate: a guide to the ratio, not to which pairs (those are `label_confidence`'s lowest).
    """
    from cleanlab.count import num_label_issues  # half a second of imports that nothing else needs

    confidence = label_confidence(inputs)[inputs.train]
    side = np.random.default_rng(inputs.settings.seed).integers(0, 2, len(confidence))
    chances = np.where(side[:, None] == np.arange(2), confidence[:, None], 1.0 - confidence[:, None])
    return int(num_label_issues(side, chances))


def _label_confidence(inputs: ImpactInputs) -> np.ndarray:
    comparisons, unchanged = inputs.comparisons, inputs.unchanged
    prompts = np.unique(inputs.prompt[inputs.train])
    if len(prompts) < FOLDS:
        raise DataError(
            f"{len(prompts)} training prompts are too few for {FOLDS} folds; use another strategy than loss."
        )
    fold_of = np.zeros(int(inputs.prompt.max()) + 1, np.int64)
    fold_of[np.random.default_rng(inputs.settings.seed).permutation(prompts)] = np.arange(len(prompts)) % FOLDS
    fold = fold_of[inputs.prompt[comparisons.pair]]
    # Leaving a fold out is a plan that drops it: the five heads are refitted as one block.
    signs = (fold[:, None] != np.arange(FOLDS)).astype(np.int8)
    fit = refit(
        inputs.differences,
        comparisons.weight,
        signs,
        l2=inputs.l2,
        start=unchanged.u,
        tolerance=inputs.settings.tolerance,
        precondition=unchanged.precondition,
    )
    margin = np.take_along_axis(inputs.differences.margins(fit.u), fold[:, None], axis=1)[:, 0]
    n = len(inputs.pair_ids)
    found = np.bincount(comparisons.pair, weights=comparisons.weight * expit(margin), minlength=n)
    return np.where(inputs.train, found, np.nan)


def _side_mean_difference(inputs: ImpactInputs, values: np.ndarray) -> np.ndarray:
    """Mean of `values` (float [n_responses]) over a pair's chosen answers minus its mean over the rejected ones."""
    n, pair = len(inputs.pair_ids), inputs.response_pair
    means = []
    for side in (inputs.chosen, ~inputs.chosen):
        total = np.bincount(pair[side], weights=values[side], minlength=n)
        with np.errstate(invalid="ignore"):
            means.append(total / np.bincount(pair[side], minlength=n))
    return means[0] - means[1]
