"""The map of features: like ones close together in two dimensions, cut into clusters that carry names."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter

import numpy as np
import polars as pl
from sklearn.cluster import KMeans

from core.config import FeaturesConfig
from core.features.entries import feature_counts
from core.features.labels.offline import CLASSES, EVERYWHERE, NEVER_ACTIVE, NO_PATTERN, TOO_RARE
from core.features.neighbours import kindred_neighbours
from core.store.arrays import RunArrays

MAP_NEIGHBOURS, MIN_DISTANCE = 15, 0.1
"""UMAP's n_neighbors and min_dist."""
MIN_FEATURES_FOR_MAP = 16
MIN_CLUSTER = 8
"""Features a cluster has on average at least."""
OUTLIER = 3.0
"""A feature farther from its cluster's centre than this many times the median distance is in no cluster."""
NAME_TERMS = 2
_QUOTED = re.compile("(?:[^“”,;]+ )?“([^”]+)”")  # with what stands before it, as in: after “how to”


def layout_tables(
    decoder: np.ndarray, arrays: RunArrays, labels: pl.DataFrame | None, config: FeaturesConfig
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables `layout` and `cluster` of the features that are ever active.

    The map is UMAP (McInnes, Healy & Melville, 2018) on exact nearest neighbours: features whose decoder directions
    are alike or that are active on the same tokens (`kindred_neighbours`). Clusters are compact regions of it (k-means
    on the map), so that a name can stand on it; a cluster is named by the terms of its labels that are most its own.

    Args:
        decoder: float32 [d, M], one column a feature.
        labels: the table `label`, one row a feature, or None: clusters are then called "region 1", "region 2", ...
    """
    features = np.flatnonzero(feature_counts(arrays))
    points = _map(decoder, arrays, features, config.seed)
    cluster = _clusters(points, config)
    n_clusters = int(cluster.max(initial=-1)) + 1
    size = np.bincount(cluster[cluster >= 0], minlength=n_clusters)
    centre = np.array([np.median(points[cluster == c], axis=0) for c in range(n_clusters)]).reshape(-1, 2)
    text = dict(labels.select("feature_id", "text").iter_rows()) if labels is not None else {}
    terms = [label_terms(text.get(int(feature), "")) for feature in features]
    layout = pl.DataFrame(
        {
            "feature_id": features.astype(np.uint32),
            "x": points[:, 0],
            "y": points[:, 1],
            "cluster": cluster.astype(np.int32),
        }
    )
    named = pl.DataFrame(
        {
            "cluster": np.arange(n_clusters, dtype=np.int32),
            "name": pl.Series(cluster_names(terms, cluster), dtype=pl.String),
            "x": centre[:, 0].astype(np.float32),
            "y": centre[:, 1].astype(np.float32),
            "n_features": size.astype(np.uint32),
        }
    )
    return layout, named


def _map(decoder: np.ndarray, arrays: RunArrays, features: np.ndarray, seed: int) -> np.ndarray:
    """float32 [features, 2]: the position of each feature, centred, the same for the same input and seed."""
    if len(features) < MIN_FEATURES_FOR_MAP:  # too few for UMAP: the two main directions of the decoder
        points = np.zeros((len(features), 2), np.float32)
        if len(features) > 1:
            unit = decoder[:, features].T / np.maximum(np.linalg.norm(decoder[:, features], axis=0)[:, None], 1e-12)
            left, size, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
            points[:, : min(2, left.shape[1])] = (left * size)[:, :2]
        return points
    from umap import UMAP  # seconds to import

    other, likeness = kindred_neighbours(decoder, arrays, features, MAP_NEIGHBOURS - 1)
    row_of = np.zeros(decoder.shape[1], np.int64)
    row_of[features] = np.arange(len(features))
    own = np.arange(len(features))[:, None]
    index = np.concatenate([own, row_of[other]], axis=1)
    distance = np.concatenate([np.zeros_like(own, np.float32), np.maximum(1 - likeness, 0)], axis=1).astype(np.float32)
    umap = UMAP(
        n_neighbors=MAP_NEIGHBOURS,
        min_dist=MIN_DISTANCE,
        precomputed_knn=(index, distance, None),
        random_state=seed,
        n_jobs=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fixed seed means one thread; given neighbours cannot place new points
        points = umap.fit_transform(np.ascontiguousarray(decoder[:, features].T, dtype=np.float32))
    return np.asarray(points - points.mean(axis=0), np.float32)


def _clusters(points: np.ndarray, config: FeaturesConfig) -> np.ndarray:
    """int64 [features]: the cluster of each point, largest cluster first; -1 for outliers, and for too few points."""
    count = min(config.clusters, len(points) // MIN_CLUSTER)
    if count < 2:
        return np.full(len(points), -1)
    means = KMeans(count, n_init=4, random_state=config.seed).fit(points)
    cluster = means.labels_.astype(np.int64)
    distance = np.linalg.norm(points - means.cluster_centers_[cluster], axis=1)
    median = np.array([np.median(distance[cluster == c]) if np.any(cluster == c) else 0 for c in range(count)])
    cluster[distance > OUTLIER * np.maximum(median[cluster], 1e-6)] = -1
    size = np.bincount(cluster[cluster >= 0], minlength=count)
    order = np.argsort(-size, kind="stable")
    place = np.full(count + 1, -1)
    place[order[size[order] > 0]] = np.arange(int(np.sum(size > 0)))
    return place[cluster]


def label_terms(text: str) -> list[str]:
    """The terms of a label: what it quotes and the token classes it names; its longer words where it has neither."""
    if text.startswith((NO_PATTERN, EVERYWHERE, TOO_RARE, NEVER_ACTIVE)):
        return []
    parts = {part.strip() for part in re.split("[,;]", _QUOTED.sub("", text))}
    terms = [quoted.casefold() for quoted in _QUOTED.findall(text)] + [name for name in CLASSES if name in parts]
    return terms or re.findall(r"[^\W\d_]{4,}", text.casefold())


def cluster_names(terms: list[list[str]], cluster: np.ndarray) -> list[str]:
    """A name for each cluster: its terms with the largest class-based TF-IDF, and no name twice.

    Terms that stand in one label only come last.

    The weight of term t in cluster c is tf(t, c) log(1 + A / tf(t)), where A is the mean number of terms in a cluster
    (Grootendorst, 2022, equation 2).
    """
    held = [Counter[str]() for _ in range(int(cluster.max(initial=-1)) + 1)]
    for own, place in zip(terms, cluster.tolist(), strict=True):
        if place >= 0:
            held[place].update(own)
    overall = sum(held, Counter[str]())
    average = overall.total() / max(len(held), 1)
    names: list[str] = []
    for place, counts in enumerate(held):
        weight = {term: counts[term] * math.log(1 + average / overall[term]) for term in counts}
        ranked = sorted(counts, key=lambda term: (counts[term] < 2, -weight[term], term))
        longer = (" · ".join(ranked[:n]) for n in range(min(NAME_TERMS, len(ranked)) or 1, len(ranked) + 1))
        names.append(next((name for name in longer if name not in names), f"region {place + 1}"))
    return names
