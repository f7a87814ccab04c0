"""The figures of salience: SAFER's score, effects with intervals clustered by prompt, and false discovery rates.

The unit of inference is the prompt: u_g is the mean difference chosen - rejected over the pairs of prompt g. Prompts
in which a feature is silent have u_g = 0 and count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from core.salience.differences import PromptColumns
from core.salience.kernels import kernel, over_columns

ALPHA = 0.05
SUMS = 10


@dataclass(frozen=True)
class Effects:
    """Figures of each kept feature, float64 [F], NaN where they cannot be given.

    Attributes: the columns of the table `salience` of the same names.
    """

    effect: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray
    effect_size: np.ndarray
    effect_length_adjusted: np.ndarray
    adjusted_low: np.ndarray
    adjusted_high: np.ndarray
    p_adjusted: np.ndarray
    auc: np.ndarray
    auc_low: np.ndarray
    auc_high: np.ndarray
    effect_first: np.ndarray
    effect_second: np.ndarray


def safer_salience(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """SAFER's s = (h+ - h-) / (h+ + h- + C), C = 2 x the mean of all 2M values {h+, h-} (SAFER section 3; methods 3.4).

    Args:
        chosen, rejected: float64 [M], sums of positive activations over chosen and over rejected answers, of every
            latent of the SAE (silent ones are part of the mean).

    Returns:
        float64 [M]; NaN everywhere when nothing is active.
    """
    total = chosen + rejected
    constant = total.mean() if len(total) else 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((chosen - rejected) / (total + constant))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q values over the tested (not NaN) p values; NaN stays NaN (Benjamini & Hochberg 1995)."""
    q = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def effects(columns: PromptColumns, second_half: np.ndarray, length: np.ndarray) -> Effects:
    """Effects of every kept feature.

    effect: mean of u_g over all n prompts, with the t interval of n - 1 degrees of freedom.
    effect_size: effect / standard deviation of u_g.
    effect_length_adjusted: intercept of the regression of u_g on the length covariate, with the HC3 interval of n - 2
        degrees of freedom (MacKinnon & White 1985): what remains when both answers have the same length.
    auc: mean over prompts of (1 + comparison) / 2, with a t interval cut to 0..1.
    effect_first, effect_second: the effect in either half of the prompts.

    Args:
        second_half: bool [n prompts]; length: float64 [n prompts].
    """
    n = len(second_half)
    adjust, leverage = _intercept_weights(length)
    sums = np.zeros((len(columns.features), SUMS))
    over_columns(
        lambda lo, hi: _column_sums(
            columns.pointer,
            columns.prompt,
            columns.difference,
            columns.comparison,
            second_half,
            length,
            adjust,
            leverage,
            lo,
            hi,
            sums,
        ),
        columns.pointer,
    )
    total, squares, second, wins, wins_squared, weighted, moment, hc_squares, hc_total, hc_moment = sums.T
    mean, half = _mean_interval(total, squares, n)
    auc, auc_half = _mean_interval(wins, wins_squared, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = np.sqrt(np.maximum(squares - total**2 / n, 0) / (n - 1)) if n > 1 else np.full(len(total), np.nan)
        size = np.where(deviation > 0, mean / deviation, np.nan)
        first_half = n - int(second_half.sum())
        centred = length - length.mean() if n else length
        spread = float(centred @ centred)
        slope = (moment - length.mean() * total) / spread if spread > 0 else np.zeros(len(total))
        fixed = [float(leverage.sum()), float(leverage @ length), float(leverage @ length**2)]
        variance = (
            weighted**2 * fixed[0] + 2 * weighted * slope * fixed[1] + slope**2 * fixed[2]
            + hc_squares - 2 * weighted * hc_total - 2 * slope * hc_moment
        )  # fmt: skip
        error = np.sqrt(np.maximum(variance, 0))
        score = np.abs(weighted) / error
    adjusted_half = error * student.ppf(1 - ALPHA / 2, n - 2) if n > 2 else np.full(len(total), np.nan)
    p_adjusted = 2 * student.sf(score, n - 2) if n > 2 else np.full(len(total), np.nan)
    return Effects(
        effect=mean,
        ci_low=mean - half,
        ci_high=mean + half,
        effect_size=size,
        effect_length_adjusted=weighted,
        adjusted_low=weighted - adjusted_half,
        adjusted_high=weighted + adjusted_half,
        p_adjusted=p_adjusted,
        auc=(1 + auc) / 2,
        auc_low=np.maximum((1 + auc - auc_half) / 2, 0),
        auc_high=np.minimum((1 + auc + auc_half) / 2, 1),
        effect_first=(total - second) / first_half if first_half else np.full(len(total), np.nan),
        effect_second=second / (n - first_half) if n > first_half else np.full(len(total), np.nan),
    )


def _mean_interval(total: np.ndarray, squares: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean over n prompts (silent ones are 0), and half the width of its 95 % t interval (NaN for one prompt)."""
    mean = total / n
    if n < 2:
        return mean, np.full(len(total), np.nan)
    variance = np.maximum(squares - total * mean, 0) / (n - 1)
    return mean, student.ppf(1 - ALPHA / 2, n - 1) * np.sqrt(variance / n)


def _intercept_weights(length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the intercept is made of: weights w with intercept = sum w_g u_g, and w_g^2 / (1 - h_g)^2 for HC3.

    NaN where the intercept is not determined: fewer than three prompts, or all of one length difference that is not 0.
    """
    n = len(length)
    mean = length.mean() if n else 0.0
    spread = float(((length - mean) ** 2).sum())
    if n < 3 or (spread < 1e-12 and abs(mean) > 1e-12):
        return np.full(n, np.nan), np.full(n, np.nan)
    slope_part = (length - mean) / spread if spread >= 1e-12 else np.zeros(n)
    weights = 1 / n - mean * slope_part
    hat = 1 / n + (length - mean) * slope_part
    return weights, weights**2 / np.maximum(1 - hat, 1e-9) ** 2


@kernel
def _column_sums(pointer, prompt, u, wins, second, length, adjust, leverage, lo, hi, out):  # type: ignore[no-untyped-def]
    for f in range(lo, hi):
        s = np.zeros(10)
        for j in range(pointer[f], pointer[f + 1]):
            g, x, a = prompt[j], u[j], wins[j]
            s[0] += x
            s[1] += x * x
            if second[g]:
                s[2] += x
            s[3] += a
            s[4] += a * a
            s[5] += adjust[g] * x
            s[6] += length[g] * x
            s[7] += leverage[g] * x * x
            s[8] += leverage[g] * x
            s[9] += leverage[g] * length[g] * x
        out[f] = s
