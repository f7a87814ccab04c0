"""The sign-flip test: whole prompts change sides.

If a feature says nothing about the preference, the two answers of a prompt could change places, so every u_g could as
well have the other sign. p is the share of all 2^n sign patterns of the n prompts with u_g != 0 whose |sum| is at
least the observed one. Dividing by the standard error changes nothing: sum u_g^2 is the same for every pattern, so the
studentised statistic rises with |sum|. A number of random patterns B cannot give p below 1 / (B + 1), which is useless
for tens of thousands of features, so the share is computed and not drawn:

- in general by a saddlepoint expansion of the tail of sum eps_g |u_g| (Robinson 1982, Daniels 1987), whose relative
  error stays small however far out the tail is;
- where that expansion is not to be trusted (few prompts, a few that outweigh the others, values that repeat), by
  counting the patterns on a grid. The prompts that point against the observed sign sum to y; p counts the subsets that
  sum to at most y. Values are rounded down to the grid, so no such subset is missed: p is at least the exact share.

The smallest possible p is 2 x 2^-n. Random patterns serve for what needs all features at once: the distribution of the
largest statistic of any feature under the same flips (`family_p`).
"""

from __future__ import annotations

import math

import numpy as np

from core.salience.differences import PromptColumns
from core.salience.kernels import kernel, over_columns

SMALLEST = 1e-300
"""Smaller p are stored as this."""
GRID_MIN, GRID_MAX, GRID_PER_PROMPT = 1024, 32768, 64
TRUST, TRUST_MANY, GRID_LIMIT = 0.1, 0.5, 2000
"""The expansion is trusted where its higher terms are at most this share of the first (the second share for more than
GRID_LIMIT prompts, where counting takes long and only p far below any threshold come near it) ..."""
CROWD = 10
"""... and where the tilted variance is shared by at least as many prompts as this (the inverse of its concentration)."""
ROOT_2PI = math.sqrt(2 * math.pi)
LOG2 = math.log(2.0)
LOG_PATTERNS = math.log(256.0)


def signflip_p(columns: PromptColumns, tested: np.ndarray, use: np.ndarray | None = None) -> np.ndarray:
    """The two-sided sign-flip p of every tested feature.

    Args:
        tested: bool [F].
        use: bool [n prompts], the prompts to use; None = all.

    Returns:
        float64 [F], NaN where not tested.
    """
    everyone = use is None
    chosen = np.ones(1, bool) if use is None else use
    p = np.full(len(columns.features), np.nan)
    longest = int(np.diff(columns.pointer).max(initial=0))
    over_columns(
        lambda lo, hi: _tails(
            columns.pointer, columns.prompt, columns.difference, tested, chosen, everyone, longest, lo, hi, p
        ),
        columns.pointer,
    )
    return p


def random_signs(n_prompts: int, draws: int, seed: int) -> np.ndarray:
    """int8 [n_prompts, draws], -1 or +1: the flips of every draw, the same for all features."""
    bits = np.random.default_rng(seed).bytes(n_prompts * ((draws + 7) // 8))
    table = np.frombuffer(bits, np.uint8).reshape(n_prompts, -1)
    return np.unpackbits(table, axis=1, count=draws).view(np.int8) * np.int8(2) - np.int8(1)


def family_p(columns: PromptColumns, tested: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """p of each feature against the largest statistic of any tested feature (single-step max of Westfall & Young 1993).

    The statistic is |sum u_g| / sqrt(sum u_g^2); whole prompts are flipped for all features together, so their
    dependence is kept.

    Args:
        signs: int8 [n_prompts, draws] of `random_signs`.

    Returns:
        float64 [F], (1 + draws whose largest statistic is at least the feature's) / (draws + 1); NaN where not tested.
    """
    draws = signs.shape[1]
    observed = np.full(len(columns.features), np.nan)
    parts = over_columns(
        lambda lo, hi: _largest(columns.pointer, columns.prompt, columns.difference, tested, signs, lo, hi, observed),
        columns.pointer,
    )
    largest = np.sort(np.max(parts, axis=0)) if parts else np.zeros(draws)
    # A draw that equals the observed pattern must count although it was summed in float32.
    at_least = draws - np.searchsorted(largest, observed * (1 - 1e-5), side="left")
    return np.where(np.isnan(observed), np.nan, (1 + at_least) / (draws + 1))


@kernel
def _largest(pointer, prompt, u, tested, signs, lo, hi, observed):  # type: ignore[no-untyped-def]
    draws = signs.shape[1]
    best = np.zeros(draws, np.float32)
    total = np.empty(draws, np.float32)
    for f in range(lo, hi):
        if not tested[f]:
            continue
        square = plain = 0.0
        for j in range(pointer[f], pointer[f + 1]):
            square += u[j] * u[j]
            plain += u[j]
        if square == 0:
            observed[f] = 0.0
            continue
        scale = 1 / math.sqrt(square)
        observed[f] = abs(plain) * scale
        total[:] = 0
        for j in range(pointer[f], pointer[f + 1]):
            x = np.float32(u[j] * scale)
            row = signs[prompt[j]]
            for b in range(draws):
                total[b] += x * np.float32(row[b])
        for b in range(draws):
            best[b] = max(best[b], abs(total[b]))
    return best


@kernel
def _tails(pointer, prompt, u, tested, use, everyone, longest, lo, hi, p):  # type: ignore[no-untyped-def]
    sizes = np.empty(longest)
    ways = np.empty((2, GRID_MAX + 1))
    for f in range(lo, hi):
        if not tested[f]:
            continue
        n, up, down = 0, 0.0, 0.0
        for j in range(pointer[f], pointer[f + 1]):
            if u[j] != 0 and (everyone or use[prompt[j]]):
                sizes[n] = abs(u[j])
                n += 1
                up += max(u[j], 0.0)
                down += max(-u[j], 0.0)
        p[f] = tail_p(sizes, n, min(up, down), ways)


@kernel
def tail_p(sizes, n, against, ways):  # type: ignore[no-untyped-def]
    """Two-sided p of one column: `sizes` holds n values |u_g| > 0, `against` the sum of those of the rarer direction.

    `ways` [2, GRID_MAX + 1] is room to count in.
    """
    if n == 0:
        return 1.0
    if against == 0:  # every prompt points the same way
        return max(min(1.0, 2.0 * 0.5**n), SMALLEST)
    whole = 0.0
    for i in range(n):
        whole += sizes[i]
    one_sided, doubt = 0.0, math.inf
    many = n > GRID_LIMIT
    repeated = _repeats(sizes, n)
    if many or not repeated:
        # Repeated values lie on a lattice of step 2 x (smallest value) or finer; half a step makes p an upper bound.
        shift = 0.0
        if repeated:
            shift = sizes[0]
            for i in range(n):
                shift = min(shift, sizes[i])
        one_sided, doubt = _saddlepoint(sizes, n, max(whole - 2 * against - shift, 0.0))
    if doubt > (TRUST_MANY if many else TRUST):
        one_sided = _count_on_grid(sizes, n, against, ways)
    return max(min(1.0, 2.0 * max(one_sided, 0.5**n)), SMALLEST)


@kernel
def _repeats(sizes, n):  # type: ignore[no-untyped-def]
    """Whether more than an eighth of (a sample of 64 of) the values stand there twice."""
    m = min(n, 64)
    sample = np.empty(m)
    for i in range(m):
        sample[i] = sizes[i * n // m]
    sample.sort()
    equal = 0
    for i in range(1, m):
        if sample[i] - sample[i - 1] <= 1e-6 * sample[i]:
            equal += 1
    return equal * 8 > m


@kernel
def _saddlepoint(sizes, n, x):  # type: ignore[no-untyped-def]
    """P(sum eps_i a_i >= x) for x >= 0 by the saddlepoint expansion, and how far its terms are from having converged.

    The second is the share of the higher terms in the first; infinite where the expansion says nothing.

    K(t) = sum log cosh(t a_i); t solves K'(t) = x. Under the tilt exp(t s) the sum has mean x, variance K''(t) and
    standardised cumulants l3, l4; with an Edgeworth expansion of that distribution
    P = exp(K - t x) [J0 + l3 J3 / 6 + l4 J4 / 24 + l3^2 J6 / 72], J_k the integral over z > 0 of
    exp(-v z) H_k(z) phi(z), v = t sqrt(K''), H_k the Hermite polynomials (Daniels 1987, section 3).
    """
    square = 0.0
    for i in range(n):
        square += sizes[i] * sizes[i]
    t, k2, converged = x / square, square, False
    for _ in range(60):
        k1 = k2 = 0.0
        for i in range(n):
            a = sizes[i]
            e = math.exp(-2 * t * a)
            h = (1 - e) / (1 + e)
            k1 += a * h
            k2 += a * a * (1 - h * h)
        if not k2 > 1e-12 * square:
            return 0.0, math.inf  # nearly every pattern is settled: only counting helps
        if abs(x - k1) <= 1e-5 * math.sqrt(k2):
            converged = True
            break
        t += (x - k1) / k2  # K' is concave for t > 0: from the left each step stays on the left
    k = k3 = k4 = concentration = 0.0
    for i in range(n):
        a = sizes[i]
        e = math.exp(-2 * t * a)
        h = (1 - e) / (1 + e)
        c = 1 - h * h
        k += t * a + math.log1p(e) - LOG2
        k3 -= 2 * a**3 * h * c
        k4 += a**4 * c * (6 * h * h - 2)
        concentration += a**4 * c * c
    v = t * math.sqrt(k2)
    l3, l4 = k3 / k2**1.5, k4 / k2**2
    h0 = 1 / ROOT_2PI
    if v < 15:
        j0 = 0.5 * math.exp(v * v / 2) * math.erfc(v / math.sqrt(2.0))
        j1 = h0 - v * j0
        j2 = -v * j1
        j3 = -h0 - v * j2
        j4 = -v * j3
        j5 = 3 * h0 - v * j4
        j6 = -v * j5
    else:  # the same integrals by their asymptotic series, where the recursion would cancel
        j0 = h0 / v * (1 - 1 / v**2 + 3 / v**4)
        j3 = -h0 / v**2 * (3 - 15 / v**2)
        j4 = h0 / v * (3 - 15 / v**2)
        j6 = -h0 / v * (15 - 105 / v**2)
    more = l3 * j3 / 6 + l4 * j4 / 24 + l3 * l3 * j6 / 72
    share = math.exp(k - t * x) * (j0 + more)
    # Where few patterns are left, the sum moves in steps that no smooth curve follows.
    enough = share > 0 and math.log(share) + n * LOG2 > LOG_PATTERNS
    crowd = k2 * k2 >= CROWD * concentration
    return share, abs(more) / j0 if converged and enough and crowd else math.inf


@kernel
def _count_on_grid(sizes, n, against, ways):  # type: ignore[no-untyped-def]
    """Share of the 2^n subsets whose sum is at most `against`, values rounded down to a grid (an upper bound)."""
    cells = min(max(GRID_PER_PROMPT * n, GRID_MIN), GRID_MAX)
    limit = against * (1 + 1e-9)
    smallest = sizes[:n].min()
    step = limit / cells
    if smallest > step:  # values that are multiples of the smallest then lie on the grid and are not rounded at all
        step = smallest / int(smallest / step)
        cells = int(limit / step)
    now, then = ways[0], ways[1]
    ways[:, : cells + 1] = 0.0
    now[0] = 1.0
    top = 0
    for i in range(n):
        if sizes[i] > limit:
            for c in range(top + 1):  # never part of such a subset
                now[c] *= 0.5
            continue
        a = min(int(sizes[i] / step * (1 + 1e-12)), cells)
        reach = min(top + a, cells)
        for c in range(a):
            then[c] = 0.5 * now[c]
        target, without, with_it = then[a : reach + 1], now[a : reach + 1], now[: reach + 1 - a]
        for c in range(len(target)):
            target[c] = 0.5 * (without[c] + with_it[c])
        now, then, top = then, now, reach
    share = 0.0
    for c in range(top + 1):
        share += now[c]
    return share
