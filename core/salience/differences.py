"""From pooled activations to what is tested: one difference chosen - rejected for each pair, then for each prompt.

Both are kept by feature (column-major), because every figure of a feature is a walk through its column.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl

from core.salience.kernels import kernel, over_columns, runs, spread, threads
from core.salience.slices import Slice
from core.store.arrays import Pool, RunArrays


@dataclass(frozen=True)
class PairLayout:
    """Where the answers of each pair stand, pairs that share a prompt side by side.

    Attributes:
        order: int64 [n_pairs], the position in the frame of pairs of each pair here.
        prompt: int32 [n_pairs], the prompt's number, not descending.
        second_half: bool [n_prompts], the half of the prompts (by a hash of prompt_id) that confirms what the first finds.
        answers: int64 [n_pairs, 3], first chosen answer, first rejected answer, and one behind the last.
        log_ratio: float64 [n_pairs], log of mean chosen over mean rejected answer length in tokens.
        boundaries: float64 [n_pairs], mean boundary tokens of the chosen minus those of the rejected answers.
    """

    order: np.ndarray
    prompt: np.ndarray
    second_half: np.ndarray
    answers: np.ndarray
    log_ratio: np.ndarray
    boundaries: np.ndarray

    @classmethod
    def of(cls, pairs: pl.DataFrame, responses: pl.DataFrame) -> PairLayout:
        """From the frames of a run: `responses` in order of response_id, with n_tokens and n_boundary."""
        names, prompt = np.unique(pairs["prompt_id"].to_numpy().astype(str), return_inverse=True)
        order = np.argsort(prompt, kind="stable")
        sides = (
            responses.with_row_index("row")
            .group_by("pair_id", maintain_order=True)
            .agg(
                pl.col("row").min().cast(pl.Int64).alias("first"),
                (pl.col("side") == "chosen").sum().cast(pl.Int64).alias("chosen"),
                pl.len().cast(pl.Int64).alias("all"),
                *(
                    pl.col(name).filter(pl.col("side") == side).mean().alias(f"{side}_{name}")
                    for name in ("n_tokens", "n_boundary")
                    for side in ("chosen", "rejected")
                ),
            )
        )
        sides = pairs.select("pair_id").join(sides, on="pair_id", how="left", maintain_order="left")[order]
        first, chosen, total = (sides[name].to_numpy() for name in ("first", "chosen", "all"))
        return cls(
            order=order,
            prompt=prompt[order].astype(np.int32),
            second_half=np.array([hashlib.blake2b(name.encode(), digest_size=1).digest()[0] & 1 for name in names], bool),
            answers=np.stack([first, first + chosen, first + total], axis=1),
            log_ratio=np.log(sides["chosen_n_tokens"].to_numpy() / sides["rejected_n_tokens"].to_numpy()),
            boundaries=sides["chosen_n_boundary"].to_numpy() - sides["rejected_n_boundary"].to_numpy(),
        )  # fmt: skip

    @property
    def n_prompts(self) -> int:
        return len(self.second_half)


@dataclass(frozen=True)
class PairColumns:
    """Every pair in which a feature is active (pooled value not zero in some answer), by feature, then by prompt.

    Attributes:
        pointer: int64 [M + 1], where each feature begins.
        pair: int32 [nnz], in the order of PairLayout.
        values: float32 [nnz, 4]: difference (mean chosen - mean rejected, signed values), comparison (mean over chosen
            x rejected answers of +1 where the chosen one has more, -1 where it has less, 0 for a tie), and the sums of
            positive values over the chosen and over the rejected answers.
    """

    pointer: np.ndarray
    pair: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, arrays: RunArrays, layout: PairLayout, pooling: Pool) -> PairColumns:
        """Reads the pooled activations twice: to count, and to put each entry in its place."""
        start, features = np.asarray(arrays.pooled_ptr), arrays.pooled_features
        values = np.asarray(getattr(arrays, pooling))
        answers, latents = layout.answers, arrays.latents
        entries = start[answers[:, 2]] - start[answers[:, 0]]
        room = int(entries.max(initial=0)), int((answers[:, 2] - answers[:, 0]).max(initial=0))
        parts = runs(np.concatenate([[0], np.cumsum(entries)]), threads())
        counts = np.array(
            spread(lambda lo, hi: _count_entries(start, features, values, answers, lo, hi, latents, room[0]), parts)
        ).reshape(-1, latents)
        pointer = np.concatenate([[0], np.cumsum(counts.sum(axis=0))]).astype(np.int64)
        cursors = pointer[:-1] + np.cumsum(counts, axis=0) - counts
        pair = np.empty(pointer[-1], np.int32)
        table = np.empty((pointer[-1], 4), np.float32)
        cursor_of = {lo: cursor for (lo, _), cursor in zip(parts, cursors, strict=True)}
        spread(
            lambda lo, hi: _place_entries(
                start, features, values, answers, lo, hi, cursor_of[lo], room[0], room[1], pair, table
            ),
            parts,
        )
        return cls(pointer, pair, table)


@dataclass(frozen=True)
class SlicePrompts:
    """The prompts of a slice.

    Attributes:
        name: the slice.
        share: float64 [n_pairs] in the order of PairLayout: 1 / (pairs of the slice with this pair's prompt), 0 outside.
        prompt: int32 [n_pairs]: each pair's prompt, 0..n-1 among those of the slice; meaningless outside it.
        second_half: bool [n].
        length: float64 [n], mean length covariate over the prompt's pairs, for each of the two kinds (see `of`).
        n_pairs: pairs in the slice.
    """

    name: str
    share: np.ndarray
    prompt: np.ndarray
    second_half: np.ndarray
    log_ratio: np.ndarray
    boundaries: np.ndarray
    n_pairs: int

    @classmethod
    def of(cls, part: Slice, layout: PairLayout) -> SlicePrompts:
        member = part.pairs[layout.order]
        count = np.bincount(layout.prompt[member], minlength=layout.n_prompts)
        inside = np.flatnonzero(count)
        number = np.zeros(layout.n_prompts, np.int32)
        number[inside] = np.arange(len(inside))
        share = np.where(member, 1.0 / np.maximum(count, 1)[layout.prompt], 0.0)
        prompt = number[layout.prompt]

        def mean(values: np.ndarray) -> np.ndarray:
            return np.bincount(prompt[member], weights=(values * share)[member], minlength=len(inside))

        return cls(
            part.name,
            share,
            prompt,
            layout.second_half[inside],
            mean(layout.log_ratio),
            mean(layout.boundaries),
            int(member.sum()),
        )

    @property
    def n_prompts(self) -> int:
        return len(self.second_half)

    def length(self, pooling: Pool) -> np.ndarray:
        """The length covariate [n]: sums over boundary tokens grow with their number, the others with length."""
        return self.boundaries if pooling == "boundary_sum" else self.log_ratio


@dataclass(frozen=True)
class PromptColumns:
    """One value of each feature for each prompt of a slice in which it is active, by feature.

    Attributes:
        features: int64 [F], the features kept, ascending.
        pointer: int64 [F + 1].
        prompt: int32 [nnz], ascending in each column.
        difference: float64 [nnz], u: the mean over the prompt's pairs of their differences.
        comparison: float64 [nnz], the mean over the prompt's pairs of their comparisons, -1..1.
        n_active: int64 [F, 2], pairs in which the feature is active, of prompts in the first and in the second half.
        chosen, rejected: float64 [M], SAFER's h+ and h- of every feature, kept or not.
    """

    features: np.ndarray
    pointer: np.ndarray
    prompt: np.ndarray
    difference: np.ndarray
    comparison: np.ndarray
    n_active: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @classmethod
    def of(cls, columns: PairColumns, part: SlicePrompts, min_active: int) -> PromptColumns:
        """Averages a slice's pairs by prompt; features active in fewer than `min_active` of its pairs are left out."""
        m = len(columns.pointer) - 1
        count, active, sums = np.zeros(m, np.int64), np.zeros((m, 2), np.int64), np.zeros((m, 2))
        table = (columns.pointer, columns.pair, columns.values, part.share, part.prompt)
        over_columns(
            lambda lo, hi: _count_prompts(*table, part.second_half, lo, hi, count, active, sums), columns.pointer
        )
        kept = np.flatnonzero(active.sum(axis=1) >= min_active)
        pointer = np.concatenate([[0], np.cumsum(count[kept])])
        n = pointer[-1]
        prompt, difference, comparison = np.empty(n, np.int32), np.empty(n), np.empty(n)
        over_columns(
            lambda lo, hi: _fill_prompts(*table, kept, pointer, lo, hi, prompt, difference, comparison), pointer
        )
        return cls(kept, pointer, prompt, difference, comparison, active[kept], sums[:, 0], sums[:, 1])


@kernel
def _count_entries(start, features, values, answers, lo, hi, latents, room):  # type: ignore[no-untyped-def]
    counts = np.zeros(latents, np.int64)
    last = np.full(latents, -1, np.int64)
    for p in range(lo, hi):
        for j in range(start[answers[p, 0]], start[answers[p, 2]]):
            f = features[j]
            if values[j] != 0 and last[f] != p:
                last[f] = p
                counts[f] += 1
    return counts


@kernel
def _place_entries(start, features, values, answers, lo, hi, cursor, room, widest, pair, table):  # type: ignore[no-untyped-def]
    slot = np.full(len(cursor), -1, np.int64)
    seen = np.empty(room, np.int64)
    block = np.zeros((room, widest), np.float64)  # activations of the pair's features in each of its answers
    for p in range(lo, hi):
        first, split, stop = answers[p]
        n = 0
        for r in range(first, stop):
            for j in range(start[r], start[r + 1]):
                if values[j] != 0:
                    f = features[j]
                    if slot[f] < 0:
                        slot[f] = n
                        seen[n] = f
                        n += 1
                    block[slot[f], r - first] = values[j]
        n_chosen, n_rejected = split - first, stop - split
        for i in range(n):
            f = seen[i]
            slot[f] = -1
            chosen = rejected = positive = negative = wins = 0.0
            for a in range(n_chosen):
                chosen += block[i, a]
                positive += max(block[i, a], 0.0)
                for b in range(n_chosen, stop - first):
                    if block[i, a] > block[i, b]:
                        wins += 1
                    elif block[i, a] < block[i, b]:
                        wins -= 1
            for b in range(n_chosen, stop - first):
                rejected += block[i, b]
                negative += max(block[i, b], 0.0)
            block[i, : stop - first] = 0.0
            at = cursor[f]
            cursor[f] += 1
            pair[at] = p
            table[at, 0] = chosen / n_chosen - rejected / n_rejected
            table[at, 1] = wins / (n_chosen * n_rejected)
            table[at, 2] = positive
            table[at, 3] = negative


@kernel
def _count_prompts(pointer, pair, values, share, prompt, second, lo, hi, count, active, sums):  # type: ignore[no-untyped-def]
    for f in range(lo, hi):
        last, n, chosen, rejected = -1, 0, 0.0, 0.0
        for j in range(pointer[f], pointer[f + 1]):
            p = pair[j]
            if share[p] == 0:
                continue
            g = prompt[p]
            if g != last:
                n += 1
                last = g
            active[f, 1 if second[g] else 0] += 1
            chosen += values[j, 2]
            rejected += values[j, 3]
        count[f] = n
        sums[f, 0], sums[f, 1] = chosen, rejected


@kernel
def _fill_prompts(pointer, pair, values, share, prompt, kept, out, lo, hi, out_prompt, difference, comparison):  # type: ignore[no-untyped-def]
    for i in range(lo, hi):
        f = kept[i]
        at, last = out[i] - 1, -1
        for j in range(pointer[f], pointer[f + 1]):
            p = pair[j]
            if share[p] == 0:
                continue
            if prompt[p] != last:
                at += 1
                last = prompt[p]
                out_prompt[at] = last
                difference[at] = 0.0
                comparison[at] = 0.0
            difference[at] += share[p] * values[j, 0]
            comparison[at] += share[p] * values[j, 1]
