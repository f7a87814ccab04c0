"""Small impact inputs with known contents: sparse or dense features, several answers in some pairs, shared prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import scipy.sparse as sp

from core.config import HeadConfig
from core.impact.inputs import ImpactInputs
from core.rewards.head import all_comparisons, fit_head
from core.store.arrays import RunArrays

L2 = 0.05


def small_inputs(
    seed: int = 0, *, pairs: int = 150, features: int = 40, dense: bool = False, l2: float | None = L2, fit: bool = True
) -> ImpactInputs:
    """Three pairs a prompt, a fifth of the prompts held out, every seventh pair with two rejected answers and every
    eleventh with two chosen ones; preferences follow a direction with noise. With `fit`, the head is fit_head's."""
    rng = np.random.default_rng(seed)
    sides = []
    for i in range(pairs):
        sides.append(["chosen"] * (2 if i % 11 == 3 else 1) + ["rejected"] * (2 if i % 7 == 5 else 1))
    pair_index = np.repeat(np.arange(pairs), [len(one) for one in sides])
    side = [name for one in sides for name in one]
    n = len(side)
    values = rng.exponential(size=(n, features)) * (rng.random((n, features)) < 0.3)
    values *= 10.0 ** rng.uniform(-0.5, 0.5, features)
    truth = rng.normal(size=features)
    good = np.array([name == "chosen" for name in side])
    values += 0.25 * np.where(good, 1, -1)[:, None] * truth * (values > 0) * rng.random((n, 1))
    matrix = sp.csr_matrix(values.astype(np.float32))
    arrays = arrays_of(matrix, rng.integers(5, 60, n), states=values.astype(np.float32) if dense else None)
    prompt = np.arange(pairs) // 3
    table = pl.DataFrame(
        {
            "pair_id": [f"pair-{i}" for i in range(pairs)],
            "pair_index": np.arange(pairs, dtype=np.uint32),
            "prompt_id": [f"prompt-{p}" for p in prompt],
            "split": ["test" if p % 5 == 0 else "train" for p in prompt],
            "domain": [("safety", "chat")[i % 2] for i in range(pairs)],
        }
    )
    responses = pl.DataFrame(
        {
            "pair_index": pair_index.astype(np.uint32),
            "side": side,
            "text": [f"answer {i}" for i in range(n)],
            "n_boundary": rng.integers(0, 5, n).astype(np.uint32),
        }
    )
    settings = HeadConfig(bootstrap=200)
    margin = rng.normal(size=pairs)
    kind = "classifier" if dense else "head"
    inputs = ImpactInputs.of(
        arrays, table, responses, None, l2=l2, kind=kind, margin=margin, sae="s" * 64, run="small", settings=settings
    )
    if dense:
        return replace(inputs, fixed_l2=l2)
    if not fit:
        return inputs
    comparisons = all_comparisons(inputs.response_pair, inputs.chosen).of(inputs.train)
    return replace(inputs, head=fit_head(inputs.features, comparisons, l2=l2 or L2).weights)


def arrays_of(matrix: sp.csr_matrix, n_tokens: np.ndarray, states: np.ndarray | None = None) -> RunArrays:
    """Run arrays that hold just pooled activations, the same for every pooling (boundary sums: the positive part)."""
    empty = np.empty(0)
    arrays = RunArrays(
        token_start=np.concatenate([[0], np.cumsum(n_tokens)]).astype(np.int64), token_ids=empty, token_char=empty,
        token_boundary=empty, token_features=empty, token_values=empty, truncated=empty,
        pooled_ptr=matrix.indptr.astype(np.int64), pooled_features=matrix.indices.astype(np.uint32), last=matrix.data,
        mean=matrix.data, max=matrix.data, boundary_sum=np.maximum(matrix.data, 0), states=None, latents=matrix.shape[1],
    )  # fmt: skip
    return replace(arrays, final=states)
