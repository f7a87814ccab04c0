"""Everything a ranking or a refit needs of a run, read once and shared by all plans. No model and no torch is needed."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl
import scipy.sparse as sp
from scipy.special import expit

from core.config import HeadConfig, ImpactConfig
from core.errors import RunError
from core.impact.differences import Differences, SparseRows, differences_of
from core.impact.preconditioner import Preconditioner, preconditioner
from core.impact.refit import refit
from core.rewards.head import Comparisons, all_comparisons, choose_l2
from core.store.arrays import Pool, RunArrays
from core.store.reader import RunReader

RANK = 128
"""Directions of the preconditioner."""
SOFTEN = 0.5
"""The preconditioner's curvature is taken at margins shrunk by this: edited pairs make a head less sure."""


@dataclass(frozen=True)
class Unchanged:
    """The head fitted on the unchanged training pairs: where every refit starts and what it is compared with.

    Attributes:
        u: float64 [m], in the coordinates of the differences.
        weights: float64 [features], reward per unit of pooled activation (of final state, for a classifier).
        precondition: for refits that start here.
        gradient_norm: of the objective at `u`.
    """

    u: np.ndarray
    weights: np.ndarray
    precondition: Preconditioner
    gradient_norm: float


@dataclass(frozen=True)
class ImpactInputs:
    """What of a run decides which pairs a plan takes and what a refit gives.

    Attributes:
        run, run_id: the run's name and id.
        sae: sha256 of its SAE, to which feature sets belong.
        data_sha256: hash of the pairs (`data_hash`), which every plan carries.
        kind: 'head' (the head fitted on SAE features is the model), 'sarm' (it was trained with its blocks) or
            'classifier' (an ordinary reward model's scalar head).
        pair_ids: the ids in order of pair_index.
        train: bool [n_pairs]; prompt: int64 [n_pairs]; domain: str [n_pairs].
        response_pair: int64 [n_responses]; chosen: bool [n_responses]; n_tokens, n_boundary: int64 [n_responses].
        boundary: [n_responses, M] float32 CSR, sums of positive activations over boundary tokens (SAFER's pair score).
        features: [n_responses, M] float32 CSR pooled activations, or dense [n_responses, d] final states.
        head: float64 [M] the run's head on `features`, or None for a classifier or a SARM model, whose head is refitted first.
        fixed_l2: the penalty of the run's head; None = chosen on the unchanged pairs as the build does.
        margin: float64 [n_pairs], the run's own reward margin; NaN where it has none.
        latents: M.
        settings, impact: validation, tolerance and seeds as in the run's configuration.
    """

    run: str
    run_id: str
    sae: str
    data_sha256: str
    kind: str
    pair_ids: tuple[str, ...]
    train: np.ndarray
    prompt: np.ndarray
    domain: np.ndarray
    response_pair: np.ndarray
    chosen: np.ndarray
    n_tokens: np.ndarray
    n_boundary: np.ndarray
    boundary: sp.csr_matrix
    features: sp.csr_matrix | np.ndarray
    head: np.ndarray | None
    fixed_l2: float | None
    margin: np.ndarray
    latents: int
    settings: HeadConfig = field(default_factory=HeadConfig)
    impact: ImpactConfig = field(default_factory=ImpactConfig)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        arrays: RunArrays,
        pairs: pl.DataFrame,
        responses: pl.DataFrame,
        weights: np.ndarray | None,
        *,
        l2: float | None,
        pooling: Pool = "mean",
        kind: str = "head",
        margin: np.ndarray | None = None,
        run: str = "",
        run_id: str = "",
        sae: str = "",
        settings: HeadConfig | None = None,
        impact: ImpactConfig | None = None,
    ) -> ImpactInputs:
        """From what the build has at hand; `load_inputs` does the same for a finished run.

        Args:
            pairs: columns of PAIR_SCHEMA (`messages` is not read).
            responses: columns of RESPONSE_SCHEMA, with `reward` (and `model_reward` for a classifier) unless `margin` is
                given.
            weights: float64 [M], the run's head; not used for a classifier.
            l2: the penalty of the run's head; None = chosen again.
            kind: 'classifier' refits the scalar head of an ordinary reward model on `arrays.final`.

        Raises:
            RunError: a classifier's run without its final states.
        """
        features: sp.csr_matrix | np.ndarray = arrays.pooled(pooling)
        if kind == "classifier":
            final = getattr(arrays, "final", None)
            if final is None:
                raise RunError(
                    "This run has no final states of its reward model, so its head cannot be refitted; build it again."
                )
            features, weights, l2 = np.asarray(final), None, None
        if kind == "sarm":  # trained with its blocks: not the minimum of any ridge on its features, so refitted first
            weights, l2 = None, None
        start = np.asarray(arrays.token_start)
        boundary = responses["n_boundary"] if "n_boundary" in responses.columns else None
        if boundary is None:
            boundary = pl.Series(np.add.reduceat(np.asarray(arrays.token_boundary, np.int64), start[:-1]))
        response_pair = responses["pair_index"].to_numpy().astype(np.int64)
        chosen = (responses["side"] == "chosen").to_numpy()
        return cls(
            run=run,
            run_id=run_id,
            sae=sae,
            data_sha256=data_hash(pairs, responses),
            kind=kind,
            pair_ids=tuple(pairs["pair_id"].to_list()),
            train=(pairs["split"] == "train").to_numpy(),
            prompt=np.unique(pairs["prompt_id"].to_numpy(), return_inverse=True)[1].astype(np.int64),
            domain=pairs["domain"].to_numpy(),
            response_pair=response_pair,
            chosen=chosen,
            n_tokens=np.diff(start).astype(np.int64),
            n_boundary=boundary.to_numpy().astype(np.int64),
            boundary=arrays.pooled("boundary_sum"),
            features=features,
            head=None if weights is None else np.asarray(weights, np.float64),
            fixed_l2=l2,
            margin=_own_margin(pairs, responses, response_pair, chosen, kind) if margin is None else margin,
            latents=arrays.latents,
            settings=settings or HeadConfig(),
            impact=impact or ImpactConfig(),
        )

    @cached_property
    def index_of(self) -> Mapping[str, int]:
        """pair_id -> pair_index."""
        return {pair_id: i for i, pair_id in enumerate(self.pair_ids)}

    @cached_property
    def comparisons(self) -> Comparisons:
        """Every chosen answer against every rejected one, training pairs only."""
        return all_comparisons(self.response_pair, self.chosen).of(self.train)

    @cached_property
    def differences(self) -> Differences:
        """Chosen - rejected features of `comparisons`, built once."""
        with self._lock:
            return differences_of(self.features, self.comparisons)

    @cached_property
    def held_out_features(self) -> SparseRows | np.ndarray:
        """Rows of `features` of the held-out answers, in order of response_id; dense ones in float64."""
        rows = np.flatnonzero(~self.train[self.response_pair])
        if isinstance(self.features, np.ndarray):
            return self.features[rows].astype(np.float64)
        return SparseRows.of(self.features[rows])

    @cached_property
    def l2(self) -> float:
        """The penalty every refit uses: the run's own, else chosen by validation on the unchanged training pairs."""
        if self.fixed_l2 is not None:
            return self.fixed_l2
        fit = choose_l2(
            self.features,
            self.comparisons,
            self.prompt,
            validation_fraction=self.settings.validation_fraction,
            seed=self.settings.seed,
            standardise=isinstance(self.features, np.ndarray),
            tolerance=self.settings.tolerance,
        )
        return fit.l2

    @cached_property
    def unchanged(self) -> Unchanged:
        """The unchanged refit; it starts at the run's head and stays there when that is the minimum."""
        with self._lock:
            d, weight = self.differences, self.comparisons.weight
            u = np.zeros(d.shape[1]) if self.head is None else d.unit(self.head)
            share = weight / weight.sum()

            def softened(at: np.ndarray) -> Preconditioner:
                probability = expit(SOFTEN * d.margins(at[:, None])[:, 0])
                return preconditioner(d, share * probability * (1.0 - probability), self.l2, RANK, seed=0)

            precondition = softened(u)
            signs = np.ones((len(weight), 1), np.int8)
            fit = refit(
                d, weight, signs, l2=self.l2, start=u, tolerance=self.settings.tolerance, precondition=precondition
            )
            if self.head is None:
                precondition = softened(fit.u[:, 0])
            return Unchanged(fit.u[:, 0], d.weights(fit.u)[:, 0], precondition, float(fit.gradient_norm[0]))


def load_inputs(reader: RunReader) -> ImpactInputs:
    """Reads what a finished run needs for plans and previews.

    Raises:
        RunError: its arrays are missing, or it has no training pairs or no held-out ones.
    """
    manifest = reader.manifest
    config = manifest.config
    kind = (config.get("reward_model") or {}).get("kind", "head")
    pairs, responses = reader.table("pair"), reader.table("response")
    weights = reader.features.frame.sort("feature_id")["weight"].to_numpy()
    l2 = manifest.head.get("l2")
    inputs = ImpactInputs.of(
        reader.arrays,
        pairs,
        responses,
        weights,
        l2=None if l2 is None else float(l2),
        pooling=manifest.head["pooling"],
        kind=kind,
        run=manifest.name,
        run_id=manifest.run_id,
        sae=str(manifest.sae.get("sha256", "")),
        settings=HeadConfig.model_validate(config.get("head") or {}),
        impact=ImpactConfig.model_validate(config.get("impact") or {}),
    )
    if not inputs.train.any() or inputs.train.all():
        which = "training" if not inputs.train.any() else "held-out"
        raise RunError(f"The run {reader.name} has no {which} pairs, so no plan can be previewed on it.")
    return inputs


def data_hash(pairs: pl.DataFrame, responses: pl.DataFrame) -> str:
    """sha256 over every pair's id, prompt id and split, and every answer's side and text, in order."""
    digest = hashlib.sha256()
    for frame, columns in ((pairs, ("pair_id", "prompt_id", "split")), (responses, ("pair_index", "side", "text"))):
        for row in frame.select(columns).iter_rows():
            digest.update(json.dumps(row, ensure_ascii=True).encode())
            digest.update(b"\n")
    return digest.hexdigest()


def _own_margin(
    pairs: pl.DataFrame, responses: pl.DataFrame, response_pair: np.ndarray, chosen: np.ndarray, kind: str
) -> np.ndarray:
    """Lowest chosen minus highest rejected reward of the run's model; NaN for a pair with a missing reward."""
    column = "model_reward" if kind == "classifier" and "model_reward" in responses.columns else "reward"
    if column not in responses.columns:
        return np.full(len(pairs), np.nan)
    rewards = responses[column].cast(pl.Float64).fill_null(np.nan).to_numpy()
    low, high = np.full(len(pairs), np.inf), np.full(len(pairs), -np.inf)
    np.minimum.at(low, response_pair[chosen], rewards[chosen])  # NaN stays NaN
    np.maximum.at(high, response_pair[~chosen], rewards[~chosen])
    margin = low - high
    margin[~np.isfinite(margin)] = np.nan
    return margin
