"""The answers of a pair of the run, scored from its stored activations: what can be ranked where there is no model."""

from __future__ import annotations

import numpy as np
import polars as pl

from core.store.reader import RunReader
from dashboard.parts.open_pair import open_pair
from dashboard.scoring_process import ScoredText, dense_reward


def stored_scores(reader: RunReader, pair_id: str) -> list[ScoredText]:
    """A pair's answers as the run has them, chosen ones first.

    Returns:
        One entry an answer; none when the run has no such pair or its token arrays cannot be read.
    """
    pair = open_pair(reader, pair_id)
    if pair is None or pair.problem:
        return []
    pooling = str(reader.manifest.head["pooling"])
    weights = reader.features.column("weight").astype(np.float64)
    found = []
    for answer in (*pair.answers["chosen"], *pair.answers["rejected"]):
        rows = pair.activations.filter((pl.col("response_id") == answer.response_id) & (pl.col(pooling) != 0))
        features, pooled = rows["feature_id"].to_numpy().astype(np.int64), rows[pooling].to_numpy().astype(np.float64)
        contributions = pooled * weights[features]
        found.append(
            ScoredText(
                text=answer.row["text"],
                reward=float(contributions.sum()),
                model_reward=dense_reward(answer.features, answer.values, weights, pooling),
                features=features,
                pooled=pooled,
                contributions=contributions,
                token_features=answer.features,
                token_values=answer.values,
                char=np.asarray(reader.arrays.token_char[reader.arrays.tokens_of(answer.response_id)]),
                n_tokens=len(answer.pieces),
                n_prompt=0,
                prompt_dropped=0,
            )
        )
    return found
