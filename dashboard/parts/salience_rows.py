"""What the Salience view knows about every feature of one slice and pooling: one frame for plot, table and download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from core.store.sets import FeatureSet

LEVEL = 0.05
"""Features with q at most this are called significant."""
CAUSAL = ("verified", "correlated only", "not checked")
AXES = {"effect": "effect", "effect_size": "size", "s": "s"}
"""Values of `state.volcano` and the column of `Rows` that each one draws."""
SORTS = (
    "feature_id", "label", "member", "effect", "size", "q", "s", "auc", "replication", "rating", "detection", "causal",
)  # fmt: skip
NOTHING_KNOWN = pl.DataFrame(
    schema={
        "feature_id": pl.Int64,
        "text": pl.String,
        "rating": pl.Int64,
        "detection": pl.Float64,
        "causal": pl.String,
    }
)
"""The frame `evidence` of `rows_of` when nobody has labelled or checked anything."""


@dataclass(frozen=True)
class Rows:
    """The features of one slice and pooling, ordered by feature_id.

    Attributes:
        frame: feature_id, label, tested, significant, direction (+1 more in chosen, -1 more in rejected, 0 not
            significant), effect, low, high, size, q, s, auc, auc_low, auc_high, replication, rating, detection,
            causal, n_active; null where not computed. With length control effect, low, high, size and q are those at
            equal length.
        n_pairs, n_prompts: of the slice.
        length_control: which of both the figures are.
    """

    frame: pl.DataFrame
    n_pairs: int
    n_prompts: int
    length_control: bool

    def __len__(self) -> int:
        return len(self.frame)

    def column(self, name: str) -> np.ndarray:
        """A numeric column as float64 [n], NaN where missing."""
        return self.frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()

    @property
    def ids(self) -> np.ndarray:
        """int64 [n]."""
        return self.frame["feature_id"].to_numpy()

    @property
    def tested(self) -> np.ndarray:
        """bool [n]."""
        return self.frame["tested"].to_numpy()

    @property
    def direction(self) -> np.ndarray:
        """int64 [n]: +1 significantly more in chosen, -1 in rejected, else 0."""
        return self.frame["direction"].to_numpy()

    def place(self, feature: int | None) -> int | None:
        """The row of a feature, None when it has none."""
        if feature is None:
            return None
        at = int(np.searchsorted(self.ids, feature))
        return at if at < len(self) and int(self.ids[at]) == feature else None


def rows_of(salience: pl.DataFrame, evidence: pl.DataFrame, length_control: bool) -> Rows:
    """The view's rows.

    Args:
        salience: `reader.salience(slice, pooling)`.
        evidence: feature_id, text (best label), rating (1..5), detection, causal; null or no row = not known.
        length_control: take the figures at equal length. The effect size at equal length is the adjusted effect over
            the same standard deviation as the plain one's.
    """
    if length_control:
        scale = pl.when(pl.col("effect") != 0).then(pl.col("effect_size") / pl.col("effect"))
        figures = {
            "effect": pl.col("effect_length_adjusted"),
            "low": pl.col("adjusted_low"),
            "high": pl.col("adjusted_high"),
            "size": pl.col("effect_length_adjusted") * scale,
            "q": pl.col("q_adjusted"),
        }
    else:
        figures = {
            "effect": pl.col("effect"),
            "low": pl.col("ci_low"),
            "high": pl.col("ci_high"),
            "size": pl.col("effect_size"),
            "q": pl.col("q"),
        }
    chosen = salience.select(
        pl.col("feature_id").cast(pl.Int64),
        pl.col("label"),
        pl.col("detection_score"),
        *(expression.alias(name) for name, expression in figures.items()),
        *("s", "auc", "auc_low", "auc_high", "replication", "n_active"),
    )
    significant = pl.col("tested") & (pl.col("q") <= LEVEL)
    frame = (
        chosen.join(evidence, on="feature_id", how="left")
        .with_columns(
            label=pl.coalesce("text", "label"),
            detection=pl.when(pl.col("text").is_not_null()).then("detection").otherwise("detection_score"),
            causal=pl.col("causal").fill_null("not checked"),
            tested=pl.col("q").is_not_null(),
        )
        .with_columns(significant=significant.fill_null(False))
        .with_columns(
            direction=pl.when("significant").then(pl.col("effect").sign().fill_null(0)).otherwise(0).cast(pl.Int64)
        )
        .drop("text", "detection_score")
        .sort("feature_id")
    )
    first = salience.head(1)
    n_pairs, n_prompts = (int(first[name][0]) if len(first) else 0 for name in ("n_pairs", "n_prompts"))
    return Rows(frame, n_pairs, n_prompts, length_control)


def members(rows: Rows, one: FeatureSet | None) -> np.ndarray:
    """int64 [n]: +1 in S+, -1 in S-, 0 in neither."""
    signs = np.zeros(len(rows), dtype=np.int64)
    if one is not None:
        signs[np.isin(rows.ids, one.plus)] = 1
        signs[np.isin(rows.ids, one.minus)] = -1
    return signs


@dataclass(frozen=True)
class Listing:
    """Which rows the table lists and how; the plot's region is given to `listed` apart from it.

    Attributes:
        search: words looked for in labels; digits also find that feature.
        significant: only significant features.
        members: only those of the open set.
        sort, descending: a column of SORTS; missing figures come last either way. 'strength' (the default) puts the
            smallest q first, and of equal ones the largest |effect size|.
    """

    search: str = ""
    significant: bool = False
    members: bool = False
    sort: str = "strength"
    descending: bool = False


def listed(rows: Rows, signs: np.ndarray, listing: Listing, region: np.ndarray | None = None) -> np.ndarray:
    """int64 [m]: positions of the rows the table lists, in order.

    Args:
        signs: what `members` says.
        region: bool [n], features in the region drawn on the plot; None = no region.
    """
    keep = np.ones(len(rows), dtype=bool) if region is None else region.copy()
    if listing.significant:
        keep &= rows.direction != 0
    if listing.members:
        keep &= signs != 0
    if needle := listing.search.strip().lower():
        hit = rows.frame["label"].fill_null("").str.to_lowercase().str.contains(needle, literal=True).to_numpy()
        digits = needle.removeprefix("#")
        if digits.isascii() and digits.isdigit() and len(digits) <= 9:
            hit = hit | (rows.ids == int(digits))
        keep &= hit
    at = np.flatnonzero(keep)
    if listing.sort == "strength":
        return at[np.lexsort((-np.nan_to_num(np.abs(rows.column("size")[at])), rows.column("q")[at]))]
    values = _sort_values(rows, signs, listing.sort)[at]
    return at[np.argsort(-values if listing.descending else values, kind="stable")]  # NaN sorts last either way


def _sort_values(rows: Rows, signs: np.ndarray, sort: str) -> np.ndarray:
    if sort == "member":
        return np.where(signs == 0, np.nan, signs)
    if sort == "label":
        ranks = rows.frame["label"].str.to_lowercase().rank("dense").cast(pl.Float64)
        return ranks.fill_null(float("nan")).to_numpy()
    if sort in ("causal", "replication"):
        order = CAUSAL[:2] if sort == "causal" else ("replicated", "not replicated")
        words = rows.frame[sort].to_list()
        return np.array([float(order.index(word)) if word in order else np.nan for word in words])
    return rows.column(sort)


def counts(rows: Rows) -> dict[str, int]:
    """Of the slice: features, tested, significant, up (more in chosen), down."""
    direction = rows.direction
    return {
        "features": len(rows),
        "tested": int(rows.tested.sum()),
        "significant": int((direction != 0).sum()),
        "up": int((direction > 0).sum()),
        "down": int((direction < 0).sum()),
    }


def csv_text(rows: Rows, signs: np.ndarray, at: np.ndarray, facts: dict[str, Any]) -> str:
    """What the table lists, as CSV: exact figures, empty where missing, what they are of in the first columns.

    A label that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    frame = rows.frame[at].with_columns(
        pl.Series("set", np.array(["S-", "", "S+"])[signs[at] + 1].tolist(), dtype=pl.String),
        pl.when(pl.col("label").str.contains(r"^[=+\-@\t\r]"))
        .then("'" + pl.col("label"))
        .otherwise("label")
        .alias("label"),
    )
    named = [pl.lit(value).alias(name) for name, value in facts.items()]
    renamed = frame.rename({"low": "ci_low", "high": "ci_high", "size": "effect_size", "rating": "safety_rating"})
    return renamed.select(*named, pl.all().exclude("direction")).write_csv()
