"""When a causal check counts as passed, and in words why it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MIN_RANDOM = 8
"""With fewer matched random features nothing is verified."""
VERIFIED, CORRELATED = "verified", "correlated only"


def verdict(*, effect: float, low: float, random_high: float, n_random: int, on_reward: float, sign: float) -> str:
    """'verified' or 'correlated only'.

    Verified means all of: taking the feature away lowers the margin (the effect's 95 % interval lies above 0); it does so
    more than features like it (the effect lies above the middle 95 % of matched random features); and the model uses it
    the way its salience says (a feature that is more active in chosen answers raises rewards, one that is more active
    in rejected answers lowers them). Both kinds of feature, S+ and S-, then hold the margin up. Missing figures never
    verify anything.

    Args:
        sign: of the salience, > 0 = more active in chosen answers (S+).
    """
    found = low > 0 and effect > random_high and n_random >= MIN_RANDOM and sign * on_reward > 0
    return VERIFIED if found else CORRELATED


def why_not(row: Mapping[str, Any]) -> str:
    """Which condition of `verdict` a row of the table `causal` misses first, in words; '' for a verified feature."""
    if row["verdict"] == VERIFIED:
        return ""
    if row["ci_low"] is None or row["ci_low"] <= 0:
        away = row["ci_high"] is not None and row["ci_high"] < 0
        return "its removal raises the margin" if away else "the interval holds 0"
    if row["n_random"] < MIN_RANDOM:
        return f"only {row['n_random']} matched random features"
    if row["effect"] <= row["random_high"]:
        return "random features do as much"
    return "it moves rewards against its sign"
