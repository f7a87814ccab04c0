"""What of a run a steering is judged by: rewards, pairs, splits and slices as plain arrays, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl

from core.errors import DataError
from core.evaluate.clusters import Clusters
from core.rewards.steering import SteeredRewards, steering_note
from core.salience.slices import ALL, TRAIN_DOMAIN, slices_of
from core.store.reader import RunReader

Which = Literal["held-out", "train", "all"]
MIN_PAIRS = 20
"""With fewer pairs a slice is no target, and a domain is neither harmed nor unharmed."""


@dataclass(frozen=True)
class PartOf:
    """What a comparison needs to know of one slice and one choice of pairs: made once, used at every slider move."""

    target: np.ndarray
    complement: np.ndarray
    target_clusters: Clusters
    complement_clusters: Clusters
    target_prompt: np.ndarray
    complement_prompt: np.ndarray
    n_prompts: int
    in_slice: np.ndarray
    slice_clusters: Clusters


@dataclass(frozen=True)
class PairsOf:
    """The pairs of one choice (held-out, ...) and their domains, whatever the target."""

    pairs: np.ndarray
    clusters: Clusters
    order: np.ndarray
    starts: np.ndarray
    domains: list[str]
    domain: np.ndarray
    domain_n: np.ndarray
    domain_clusters: Clusters
    cluster_domain: np.ndarray
    domain_prompts: np.ndarray


@dataclass(frozen=True)
class SteeringData:
    """A run's answers and pairs as steering is judged by them, in stored order.

    Attributes:
        steered: rewards, head weights and columns (SteeredRewards; `.another()` for a session of its own).
        pair: int64 [n_responses], pair_index of each answer.
        chosen: bool [n_responses].
        prompt: int64 [n_pairs], which prompt, 0...
        held: bool [n_pairs], held-out pairs (split 'test').
        domain: str [n_pairs].
        pair_ids: str [n_pairs].
        slices: the pairs of each slice, bool [n_pairs], by name ('domain=privacy', 'category=...').
        known: bool [n_pairs], pairs with a chosen and a rejected answer and all rewards known; others are left out.
        sae: sha256 of the run's SAE.
        run_id: the run's id.
        note: what must be said before this run is steered (its reward model does not read the features), or ''.
    """

    steered: SteeredRewards
    pair: np.ndarray
    chosen: np.ndarray
    prompt: np.ndarray
    held: np.ndarray
    domain: np.ndarray
    pair_ids: np.ndarray
    slices: Mapping[str, np.ndarray]
    known: np.ndarray
    sae: str = ""
    run_id: str = ""
    note: str = ""
    _parts: dict[tuple[str, str], PartOf] = field(default_factory=dict, repr=False, compare=False)
    _pairs: dict[str, PairsOf] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, reader: RunReader) -> SteeringData:
        """Reads a finished run; no model is needed.

        Raises:
            RunError: its arrays are missing or damaged.
        """
        made = cls.of_tables(SteeredRewards.of(reader), reader.table("pair"), reader.table("response"))
        about = {"sae": str(reader.manifest.sae.get("sha256", "")), "run_id": reader.manifest.run_id}
        return SteeringData(**{**vars(made), **about, "note": steering_note(reader), "_parts": {}, "_pairs": {}})

    @classmethod
    def of_tables(cls, steered: SteeredRewards, pairs: pl.DataFrame, responses: pl.DataFrame) -> SteeringData:
        """From the tables `pair` and `response` in stored order."""
        pair = responses["pair_index"].to_numpy().astype(np.int64)
        chosen = (responses["side"] == "chosen").to_numpy()
        n = len(pairs)
        missing = np.bincount(pair, weights=~np.isfinite(steered.base), minlength=n) > 0
        both = (np.bincount(pair, chosen, minlength=n) > 0) & (np.bincount(pair, ~chosen, minlength=n) > 0)
        slices = {
            one.name: one.pairs
            for one in slices_of(pairs)
            if one.name != ALL and not one.name.startswith(("split=", f"{TRAIN_DOMAIN}="))
        }
        return cls(
            steered=steered,
            pair=pair,
            chosen=chosen,
            prompt=np.unique(pairs["prompt_id"].to_numpy(), return_inverse=True)[1].astype(np.int64),
            held=(pairs["split"] == "test").to_numpy(),
            domain=pairs["domain"].to_numpy().astype(str),
            pair_ids=pairs["pair_id"].to_numpy(),
            slices=slices,
            known=both & ~missing,
        )

    @property
    def rewards(self) -> np.ndarray:
        """The unchanged rewards, float64 [n_responses]: 'before'."""
        return self.steered.base

    def used(self, which: Which = "held-out") -> np.ndarray:
        """bool [n_pairs]: the pairs figures are about."""
        return self.known & {"held-out": self.held, "train": ~self.held, "all": np.ones_like(self.held)}[which]

    def rows(self, target: str, which: Which = "held-out") -> tuple[np.ndarray, np.ndarray]:
        """The answers (int64, ascending) of the target and of its complement.

        Raises:
            DataError: there is no such slice, or no such pair.
        """
        part = self.part(target, which)
        return part.target, part.complement

    def part(self, target: str, which: Which) -> PartOf:
        key = (target, which)
        if key not in self._parts:
            if target not in self.slices:
                known = ", ".join(targets(self)) or "none, for its pairs have no domain or label with enough of them"
                raise DataError(f"There is no slice {target!r} to steer at; this run has: {known}.")
            self._parts[key] = self._make_part(self.slices[target], which)
        return self._parts[key]

    def _make_part(self, in_slice: np.ndarray, which: Which) -> PartOf:
        used = self.used(which)[self.pair]
        aimed = in_slice[self.pair] & self.chosen
        target, complement = np.flatnonzero(used & aimed), np.flatnonzero(used & ~aimed)
        prompt = self.prompt[self.pair]
        names = np.unique(prompt[used])
        pairs = np.flatnonzero(self.used(which) & in_slice)
        return PartOf(
            target,
            complement,
            Clusters.of(prompt[target]),
            Clusters.of(prompt[complement]),
            np.searchsorted(names, prompt[target]),
            np.searchsorted(names, prompt[complement]),
            len(names),
            np.searchsorted(np.flatnonzero(self.used(which)), pairs),
            Clusters.of(self.prompt[pairs]),
        )

    def pairs_of(self, which: Which) -> PairsOf:
        if which not in self._pairs:
            pairs = np.flatnonzero(self.used(which))
            if not len(pairs):
                raise DataError(
                    f"The run has no {'' if which == 'all' else which + ' '}pairs with rewards to judge a steering by; "
                    "judge it by all pairs, or build the run with a test split."
                )
            order = np.lexsort((~self.chosen, self.pair))
            order = order[self.used(which)[self.pair[order]]]
            side = 2 * self.pair[order] + ~self.chosen[order]
            domains, domain = np.unique(self.domain[pairs], return_inverse=True)
            keys, place = np.unique(domain * (self.prompt.max() + 1) + self.prompt[pairs], return_inverse=True)
            cluster_domain = keys // (self.prompt.max() + 1)
            self._pairs[which] = PairsOf(
                pairs=pairs,
                clusters=Clusters.of(self.prompt[pairs]),
                order=order,
                starts=np.flatnonzero(np.r_[True, side[1:] != side[:-1]]),
                domains=[str(name) for name in domains],
                domain=domain,
                domain_n=np.bincount(domain).astype(np.float64),
                domain_clusters=Clusters(place, np.bincount(place).astype(np.float64)),
                cluster_domain=cluster_domain,
                domain_prompts=np.bincount(cluster_domain),
            )
        return self._pairs[which]


def targets(data: SteeringData) -> list[str]:
    """The slices a steering can aim at: those with at least MIN_PAIRS held-out pairs, domains first."""
    held = data.used("held-out")
    return [name for name, pairs in data.slices.items() if int((pairs & held).sum()) >= MIN_PAIRS]
