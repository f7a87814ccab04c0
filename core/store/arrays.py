"""The activations of a run as memory-mapped arrays: what the head, the statistics and the token views read.

Derived from the shards, shared between processes by the page cache. All ids are positions: response r has the
token rows token_start[r]..token_start[r+1] and the pooled entries pooled_ptr[r]..pooled_ptr[r+1].
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from core.errors import RunError

Pool = Literal["last", "mean", "max", "boundary_sum"]


@dataclass(frozen=True)
class RunArrays:
    """Token-level and pooled activations of every answer.

    Attributes:
        token_start: int64 [n_responses + 1], first token row of each answer.
        token_ids: int32 [n_tokens], vocabulary ids of the answer's tokens, end-of-turn last.
        token_char: int32 [n_tokens, 2], start and end of the token in the answer's text (characters); equal for special tokens.
        token_boundary: bool [n_tokens], sentence-boundary tokens.
        token_features: uint16 or uint32 [n_tokens, k], the active features of each token.
        token_values: float32 [n_tokens, k], their signed activations, descending in each row.
        truncated: bool [n_responses], the answer was cut at max_length.
        pooled_ptr: int64 [n_responses + 1], CSR row pointer of the pooled activations.
        pooled_features: uint32 [nnz], ascending in each answer.
        last, mean, max, boundary_sum: float32 [nnz], the four poolings.
        states: float32 [n_responses, 4, d] or None: raw hidden state pooled by last and by mean, then the SAE's
            reconstruction of it pooled the same way. Absent in shipped runs.
        final: float32 [n_responses, d] or None: the ordinary reward model's final-layer, final-norm state at the last
            token, which its scalar head reads. None where the feature head is the model.
        latents: M, the number of features.
    """

    token_start: np.ndarray
    token_ids: np.ndarray
    token_char: np.ndarray
    token_boundary: np.ndarray
    token_features: np.ndarray
    token_values: np.ndarray
    truncated: np.ndarray
    pooled_ptr: np.ndarray
    pooled_features: np.ndarray
    last: np.ndarray
    mean: np.ndarray
    max: np.ndarray
    boundary_sum: np.ndarray
    states: np.ndarray | None
    latents: int
    final: np.ndarray | None = None

    @property
    def n_responses(self) -> int:
        return len(self.token_start) - 1

    def pooled(self, pool: Pool) -> sp.csr_matrix:
        """The [n_responses, M] float32 matrix of one pooling (shares memory with the arrays)."""
        shape = (self.n_responses, self.latents)
        return sp.csr_matrix((getattr(self, pool), self.pooled_features.astype(np.int32), self.pooled_ptr), shape=shape)

    def tokens_of(self, response: int) -> slice:
        """The token rows of one answer."""
        return slice(int(self.token_start[response]), int(self.token_start[response + 1]))


def save_arrays(folder: Path, arrays: RunArrays) -> None:
    """Writes each array as `<name>.npy` into `folder` (which must not be in use by a reader)."""
    folder.mkdir(parents=True, exist_ok=True)
    for field in fields(RunArrays):
        value: Any = getattr(arrays, field.name)
        if field.name == "latents":
            value = np.int64(value)
        if value is not None:
            np.save(folder / f"{field.name}.npy", value, allow_pickle=False)


def load_arrays(folder: Path) -> RunArrays:
    """Opens the arrays memory-mapped.

    Raises:
        RunError: the folder or one of its arrays is missing or damaged.
    """
    loaded: dict[str, Any] = {}
    for field in fields(RunArrays):
        path = folder / f"{field.name}.npy"
        if field.name in ("states", "final") and not path.exists():
            loaded[field.name] = None
            continue
        try:
            mapped = np.load(path, mmap_mode=None if field.name == "latents" else "r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}); build the run again to make it anew.") from None
        loaded[field.name] = int(mapped) if field.name == "latents" else mapped
    return RunArrays(**loaded)
