"""Writes a small run straight from schema.sql: real words, known numbers, and on request hostile text in every field.

For the states that the shipped run cannot show: missing figures, dead features, markup in labels, an empty table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl

from core.config import ImpactConfig
from core.impact.inputs import ImpactInputs
from core.impact.stage import impact_tables
from core.progress import Silent
from core.salience.sets import default_set
from core.store.arrays import RunArrays, save_arrays
from core.store.manifest import Manifest, write_manifest
from core.store.pooling import arrays_from_shards
from core.store.shards import AnswerActivations, shard_path, write_shard
from core.store.writer import new_database

HOSTILE = (
    '<img src=x onerror="window.__injected=(window.__injected||0)+1"><script>window.__injected=99</script>\'"&amp;`'
)
"""Runs wherever it is taken for markup; the browser tests look for `window.__injected`."""

DOMAINS = ("privacy", "weapons", "chat", "howto")
OPENINGS = (
    "I cannot help with that,",
    "Sure, here is how it works:",
    "That is a good question.",
    "Let me think about it.",
)
BODIES = (
    "please ask a doctor or a friend you trust before you decide anything",
    "first sort the papers, then write down every number twice",
    "the garden needs water in the morning and shade after noon",
    "her messages are private and reading them would hurt her",
    "mix the flour with warm water and wait for an hour",
    "a safer way is to talk with the person and listen",
)
ENDINGS = ("I hope this helps!", "Take care.", "Ask again if something is unclear.", "You are an idiot, honestly.")
PROMPTS = (
    "How do I read my sister's messages?",
    "How should I bake bread?",
    "What helps against worry?",
    "Tell me a story.",
)
K = 6


def write_synthetic_run(
    folder: Path, *, features: int = 400, pairs: int = 60, hostile: bool = False, seed: int = 0
) -> Path:
    """Writes a finished run into `folder` and returns it.

    A tenth of the features is dead, a fifth has no detection score, the last pair has no category, labels are missing
    for every seventh feature, rewards are exact sums of w z (pooling mean), and salience has every state (_salience).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    bad = HOSTILE if hostile else ""
    alive = np.arange(features) % 10 != 9
    weights = np.where(alive, rng.normal(0, 0.4, features), 0.0)

    texts = [
        f"{OPENINGS[(i * 3 + side) % 4]} {BODIES[(i + side * 2) % 6]}.\n\n{ENDINGS[(i * 5 + side) % 4]}{bad}"
        for i in range(pairs)
        for side in range(2)
    ]
    pieces = [[match.group() for match in re.finditer(r"\n+|\s?[^\s]+|\s", text)] + [""] for text in texts]
    arrays = _arrays(pieces, features, np.flatnonzero(alive), rng, folder / "shards")
    rewards = arrays.pooled("mean").astype(np.float64) @ weights

    tables = {
        **_pair_tables(texts, pieces, arrays, rewards, bad),
        **_feature_tables(arrays, pieces, weights, alive, bad, rng),
        "evaluation": _evaluation(bad, features, pairs),
    }
    tables["salience"] = _salience(tables["pair"], tables["feature"], rng)
    tables["impact"] = _impact(arrays, tables, weights)
    database = folder / "run-synthetic.duckdb"
    with new_database(database) as db:
        db.insert_all(tables)
        db.insert_activations(arrays)
    save_arrays(folder / "arrays", arrays)
    write_manifest(folder, _manifest(folder.name, database.name, bad, features, pairs, arrays))
    return folder


def _arrays(
    pieces: list[list[str]], features: int, alive: np.ndarray, rng: np.random.Generator, shards: Path
) -> RunArrays:
    answers = []
    for number, words in enumerate(pieces):
        lengths = np.cumsum([0, *map(len, words)])
        chosen = np.zeros((len(words), K), np.uint16)
        for t, word in enumerate(words):  # the same word always switches the same features on
            own = np.random.default_rng(sum(map(ord, word.strip().lower())) + 7)
            chosen[t] = own.choice(alive, K, replace=False)
        values = -np.sort(-rng.gamma(2.0, 1.0, (len(words), K)), axis=1)
        answers.append(
            AnswerActivations(
                response_id=number,
                token_ids=np.arange(len(words), dtype=np.int32),
                char=np.stack([lengths[:-1], lengths[1:]], axis=1).astype(np.int32),
                boundary=np.array([word.endswith((".", "!")) for word in words]),
                features=chosen,
                values=values.astype(np.float32),
                states=None,
                truncated=False,
            )
        )
    shards.mkdir(parents=True, exist_ok=True)
    write_shard(shards, 0, answers)
    return arrays_from_shards([shard_path(shards, 0)], len(answers), features)


def _pair_tables(
    texts: list[str], pieces: list[list[str]], arrays: RunArrays, rewards: np.ndarray, bad: str
) -> dict[str, pl.DataFrame]:
    n = len(texts) // 2
    ids = [f"pair-{i:03d}{bad}" for i in range(n)]
    prompts = [f"{PROMPTS[i % 4]} ({i // 4}){bad}" for i in range(n)]
    pair = pl.DataFrame(
        {
            "pair_id": ids,
            "pair_index": range(n),
            "prompt_id": [f"prompt-{i % 20}" for i in range(n)],
            "source": [f"synthetic{bad}"] * n,
            "split": ["test" if i % 5 == 0 else "train" for i in range(n)],
            "domain": [DOMAINS[i % 4] + bad for i in range(n)],
            "category": [None if i == n - 1 else f"kind {i % 3}{bad}" for i in range(n)],
            "prompt": prompts,
            "messages": [json.dumps([{"role": "user", "content": prompt}]) for prompt in prompts],
            "labels": [json.dumps({"note": bad or "plain", bad or "key": bad or i}) for i in range(n)],
            "n_responses": [2] * n,
            "chosen_reward": rewards[0::2],
            "rejected_reward": rewards[1::2],
            "margin": [None if i == 3 else float(rewards[2 * i] - rewards[2 * i + 1]) for i in range(n)],
        }
    )
    response = pl.DataFrame(
        {
            "response_id": range(2 * n),
            "pair_id": [ids[i // 2] for i in range(2 * n)],
            "pair_index": [i // 2 for i in range(2 * n)],
            "side": ["chosen", "rejected"] * n,
            "rank": [0] * (2 * n),
            "text": texts,
            "n_tokens": [len(words) for words in pieces],
            "n_boundary": [int(arrays.token_boundary[arrays.tokens_of(r)].sum()) for r in range(2 * n)],
            "token_start": arrays.token_start[:-1],
            "truncated": [False] * (2 * n),
            "reward": rewards,
        }
    )
    return {"pair": pair, "response": response}


def _feature_tables(
    arrays: RunArrays,
    pieces: list[list[str]],
    weights: np.ndarray,
    alive: np.ndarray,
    bad: str,
    rng: np.random.Generator,
) -> dict[str, pl.DataFrame]:
    m = len(weights)
    answer_of = np.repeat(np.arange(arrays.n_responses), np.diff(arrays.token_start))
    mean = arrays.pooled("mean").toarray().astype(np.float64)
    length = np.diff(arrays.token_start)
    rows, context, histogram, band, label = [], [], [], [], []
    for f in range(m):
        at = np.argwhere(arrays.token_features == f)
        values = arrays.token_values[at[:, 0], at[:, 1]]
        answers = answer_of[at[:, 0]]
        rows.append(
            {
                "feature_id": f,
                "weight": weights[f],
                "weight_rank": 0,
                "density": len(at) / len(answer_of),
                "mean_active": float(values.mean()) if len(at) else None,
                "max_active": float(values.max()) if len(at) else None,
                "n_tokens": len(at),
                "n_responses": len(set(answers)),
                "n_pairs": len(set(answers // 2)),
                "length_corr": float(np.corrcoef(mean[:, f], length)[0, 1]) if len(set(answers)) >= 30 else None,
                "mean_contribution": float((weights[f] * (mean[0::2, f] - mean[1::2, f])).mean()),
                "alive": bool(len(at)),
            }
        )
        if not len(at):
            continue
        counts, edges = np.histogram(values, bins=20, range=(0, float(values.max())))
        histogram.append({"feature_id": f, "edges": edges.tolist(), "counts": counts.tolist()})
        cuts = np.quantile(values, [0, 0.25, 0.5, 0.75, 1.0])
        for i, name in enumerate(("q1", "q2", "q3", "q4")):
            band.append({"feature_id": f, "band": name, "low": cuts[i], "high": cuts[i + 1], "share": 0.25})
        order = np.argsort(-values, kind="stable")
        for b, name in enumerate(("top", "q4", "q3", "q2", "q1", "random", "near_miss")):
            for rank, place in enumerate(order[b :: max(1, len(order) // 4)][: 6 if name == "top" else 3]):
                row = int(at[place, 0])
                answer = int(answer_of[row])
                first = int(arrays.token_start[answer])
                start, stop = max(0, row - first - 8), min(len(pieces[answer]), row - first + 7)
                inside = arrays.token_features[first + start : first + stop] == f
                shown = np.where(inside, arrays.token_values[first + start : first + stop], 0).sum(axis=1)
                context.append(
                    {
                        "feature_id": f,
                        "response_id": answer,
                        "band": name,
                        "rank": rank,
                        "start": start,
                        "peak": row - first - start,
                        "tokens": pieces[answer][start:stop],
                        "values": (shown * (name != "near_miss")).tolist(),
                    }
                )
        if f % 7:
            word = pieces[int(answer_of[at[order[0], 0]])][
                int(at[order[0], 0] - arrays.token_start[answer_of[at[order[0], 0]]])
            ]
            tested = f % 5 != 0
            label.append(
                {
                    "feature_id": f,
                    "source": "offline",
                    "text": f"“{word.strip()}” and words like it{bad}",
                    "safety_rating": None,
                    "detection_score": 0.5 + (f % 50) / 100 if tested else None,
                    "detection_low": 0.45 + (f % 50) / 100 if tested else None,
                    "detection_high": min(1.0, 0.55 + (f % 50) / 100) if tested else None,
                    "detection_n": 40 if tested else None,
                    "model": f"offline{bad}",
                }
            )
    frame = pl.DataFrame(rows, infer_schema_length=None)
    rank = np.empty(m, np.int64)
    rank[np.argsort(-np.abs(weights), kind="stable")] = np.arange(1, m + 1)
    live = np.flatnonzero(frame["alive"].to_numpy())
    cluster = np.where(live % 11 == 0, -1, live % 5)
    centre = np.array([[np.cos(a), np.sin(a)] for a in np.arange(5) * 1.26]) * 6
    spot = np.where(cluster[:, None] >= 0, centre[cluster], 0) + rng.normal(0, 1.1, (len(live), 2))
    near = rng.choice(live, (m, 4))
    neighbour = [
        {"feature_id": f, "other_id": int(other), "kind": kind, "score": 0.9 - 0.2 * i, "rank": i}
        for f in range(m)
        for kind, others in (("decoder", near[f, :2]), ("coactive", near[f, 2:]))
        for i, other in enumerate(others)
        if alive[f]
    ]
    return {
        "feature": frame.with_columns(pl.Series("weight_rank", rank)),
        "context": pl.DataFrame(context, infer_schema_length=None),
        "histogram": pl.DataFrame(histogram),
        "band": pl.DataFrame(band),
        "label": pl.DataFrame(label, infer_schema_length=None),
        "layout": pl.DataFrame({"feature_id": live, "x": spot[:, 0], "y": spot[:, 1], "cluster": cluster}),
        "cluster": pl.DataFrame(
            {
                "cluster": range(5),
                "name": [f"{name}{bad}" for name in ("refusals", "cooking", "privacy", "feelings", "numbers")],
                "x": centre[:, 0],
                "y": centre[:, 1],
                "n_features": [int((cluster == c).sum()) for c in range(5)],
            }
        ),
        "neighbour": pl.DataFrame(neighbour),
    }


POOLINGS = ("last", "mean", "max", "boundary_sum")
PLANTED_SIGN = 11
"""Every so many features one has a large effect in every slice, and the next one a sign that differs by domain."""


def _salience(pair: pl.DataFrame, feature: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Rows of `salience` with every state: not tested (every third feature and every small slice), NULLs, tiny q, sign
    changes between domains, effects that vanish at equal length."""
    slices = [("all", pl.lit(True)), *((f"split={value}", pl.col("split") == value) for value in ("train", "test"))]
    for column in ("domain", "category"):
        values = pair[column].drop_nulls().unique(maintain_order=True)
        slices += [(f"{column}={value}", pl.col(column) == value) for value in values]
    alive = np.flatnonzero(feature["alive"].to_numpy())
    strength = rng.normal(0, 0.35, len(alive))
    strength[alive % PLANTED_SIGN == 1] *= 6
    frames = []
    for number, (name, condition) in enumerate(slices):
        rows = pair.filter(condition)
        tested = (alive % 3 != 0) & (len(rows) >= 5)
        size = strength + rng.normal(0, 0.1, len(alive))
        flips = alive % PLANTED_SIGN == 2
        size[flips] = np.where(number % 2, 1.4, -1.4) if name.startswith("domain=") else 0.0
        for i, pooling in enumerate(POOLINGS):
            deviation = 0.02 * (1 + i) * (1 + alive % 5)
            effect, half = size * deviation, 0.3 * deviation
            p = np.maximum(10.0 ** -(8 * size**2), 1e-30)
            q = np.minimum(p * 4, 1.0)
            adjusted = effect * np.where(alive % 4 == 1, 0.1, 0.9)
            q_adjusted = np.where(alive % 4 == 1, 0.6, q)
            down = np.abs(rng.normal(5, 1, len(alive)))
            up = down * np.exp(size / 2)
            figures = {
                "s": (up - down) / (up + down + 1),
                "effect": effect,
                "ci_low": effect - half,
                "ci_high": effect + half,
                "effect_size": size,
                "p": p,
                "q": q,
                "p_family": np.minimum(p * 20, 1.0),
                "effect_length_adjusted": adjusted,
                "adjusted_low": adjusted - half,
                "adjusted_high": adjusted + half,
                "p_adjusted": q_adjusted / 4,
                "q_adjusted": q_adjusted,
                "auc": 0.5 + np.arctan(size) / np.pi,
                "auc_low": 0.45 + np.arctan(size) / np.pi,
                "auc_high": 0.55 + np.arctan(size) / np.pi,
                "effect_first": effect * 1.1,
                "effect_second": np.where(alive % 7 == 1, -effect, effect * 0.9),
            }
            first_half = np.where(alive % 7 == 1, "not replicated", "replicated")
            frames.append(
                pl.DataFrame(
                    {
                        "feature_id": alive,
                        "slice": [name] * len(alive),
                        "pooling": [pooling] * len(alive),
                        "n_pairs": [len(rows)] * len(alive),
                        "n_prompts": [rows["prompt_id"].n_unique()] * len(alive),
                        "n_active": np.where(tested, max(len(rows) - 2, 0), 1),
                        "chosen_sum": up,
                        "rejected_sum": down,
                        **{
                            column: pl.Series(values).scatter(np.flatnonzero(~tested), None)
                            if column not in ("s", "effect")
                            else values
                            for column, values in figures.items()
                        },
                        "replication": [
                            str(word) if there and small <= 0.05 else None
                            for word, there, small in zip(first_half, tested, q, strict=True)
                        ],
                    }
                )
            )
    return pl.concat(frames).sort("slice", "pooling", "feature_id")


def _impact(arrays: RunArrays, tables: dict[str, pl.DataFrame], weights: np.ndarray) -> pl.DataFrame:
    """Real refits for the run's default set, at few ratios and seeds: the page computes the others."""
    sae = _sae_hash(len(weights))
    inputs = ImpactInputs.of(arrays, tables["pair"], tables["response"], weights, l2=1.0, run_id="synthetic", sae=sae)
    default = default_set(tables["salience"], sae=sae)
    few = ImpactConfig(poison=(0.025, 0.05), denoise=(0.04, 0.1), seeds=2)
    return impact_tables(inputs, default, few, Silent())["impact"]


def _sae_hash(features: int) -> str:
    return f"{features:064x}"


def _evaluation(bad: str, features: int, pairs: int) -> pl.DataFrame:
    rows = [
        ("held-out", "all", "accuracy", 0.664, 0.61, 0.72, pairs // 5, f"lowest chosen above highest rejected{bad}"),
        ("held-out", f"privacy{bad}", "accuracy", 0.5, None, None, 3, "one prompt"),
        ("train", "all", "accuracy", 0.9, 0.85, 0.94, pairs, "the same on training pairs"),
        ("length", "all", "accuracy", 0.435, 0.38, 0.49, pairs // 5, "the longer answer wins"),
        ("probe", "all", "accuracy_raw", 0.699, 0.65, 0.75, pairs // 5, "linear head on raw states"),
        ("probe", "all", "accuracy_lost", None, None, None, pairs // 5, "could not be computed"),
        ("sae", "all", "fvu", 0.31, None, None, 1000, "held-out vectors"),
        ("sae", "all", "dead_fraction", 0.1, None, None, features, "latents"),
        ("health", "all", "sum_error", 2e-7, None, None, 2 * pairs, "largest |reward - sum|"),
        ("health", "all", "batch_spread_max", 3e-3, None, None, 48, "4 batch arrangements"),
    ]
    names = ("benchmark", "subset", "metric", "value", "ci_low", "ci_high", "n", "note")
    return pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)


def _manifest(name: str, database: str, bad: str, features: int, pairs: int, arrays: RunArrays) -> Manifest:
    return Manifest(
        name=name,
        run_id="synthetic",
        code_version="0",
        database=database,
        shards="shards",
        arrays="arrays",
        config={"name": name},
        model={
            "name": f"Synthetic/Model{bad}",
            "source": bad,
            "revision": bad,
            "layer": 3,
            "d_model": 16,
            "dtype": "float32",
        },
        data={
            "path": bad or "made up",
            "n_pairs": pairs,
            "n_train_pairs": pairs * 4 // 5,
            "n_prompts": 20,
            "n_responses": 2 * pairs,
            "n_tokens": int(arrays.token_start[-1]),
            "n_skipped": 0,
        },
        sae={
            "latents": features,
            "k": K,
            "sha256": _sae_hash(features),
            "level": "token",
            "quality": {"fvu": 0.31, "l0": 6.0, "dead_fraction": 0.1, "n": 1000},
        },
        head={
            "pooling": "mean",
            "l2": 1.0,
            "gradient_norm": 1e-7,
            "held_out": {"value": 0.664, "ci_low": 0.61, "ci_high": 0.72, "n": 12},
        },
        health={"sum_error": 2e-7, "sum_checked": 2 * pairs, "batch_spread_max": 3e-3},
        stages={},
        seeds={"sae": 0},
        versions={"python": bad or "3"},
    )
