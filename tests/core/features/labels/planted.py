"""A finished run whose features are known exactly, and a server that speaks the endpoint's protocol over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.config import FeaturesConfig
from core.features.contexts import context_tables
from core.features.labels import prompts
from core.features.labels.offline import label_table
from core.features.pieces import token_pieces
from core.store.arrays import save_arrays
from core.store.manifest import Manifest, write_manifest
from core.store.writer import new_database
from tests.core.features.synthetic import END_TOKEN, SyntheticRun, random_answers, synthetic_run

SORRY, ALWAYS, END, OFTEN, RARE, NOISE, DEAD = 0, 2, 3, 8, 7, 40, 10
LATENTS = 64
SAE = "5ae" * 20
NEIGHBOURS = {"feature_id": pl.UInt32, "other_id": pl.UInt32, "kind": pl.String, "score": pl.Float64, "rank": pl.UInt16}


def planted() -> SyntheticRun:
    """Features that are active on the word sorry, on every token, on the end, on some rivers, on three zebras."""
    answers = random_answers(150, np.random.default_rng(11), extra=("sorry", "17"))
    answers[0] = ("A zebra and a zebra walk by the zebra.", "No animals here.")
    return synthetic_run(
        answers,
        {
            SORRY: lambda t, i: 1.0 + i / 50 if t[i].lower() == "sorry" else 0,
            ALWAYS: lambda t, i: len(t) / 100,
            END: lambda t, i: 0.8 * (t[i] == END_TOKEN),
            OFTEN: lambda t, i: 0.55 * (t[i] == "river" and len(t) % 3 > 0),
            RARE: lambda t, i: 2.0 * (t[i] == "zebra"),
        },
        latents=LATENTS,
        k=8,
        filler=range(NOISE, LATENTS),
    )


def write_planted_run(folder: Path) -> Path:
    """Writes the planted run as a finished one and returns its folder."""
    run = planted()
    arrays, n = run.arrays, len(run.pairs)
    pieces = token_pieces(arrays, run.responses)
    contexts, bands = context_tables(arrays, pieces, pl.DataFrame(schema=NEIGHBOURS), FeaturesConfig())
    active = np.bincount(np.asarray(arrays.token_features).reshape(-1), minlength=LATENTS)
    features = pl.DataFrame({"feature_id": np.arange(LATENTS), "n_tokens": active}).with_columns(
        weight=pl.col("feature_id") / LATENTS - 0.3,
        weight_rank=pl.lit(1),
        density=pl.lit(0.1),
        n_responses=pl.lit(1),
        n_pairs=pl.lit(1),
        mean_contribution=pl.lit(0.0),
        alive=pl.col("n_tokens") > 0,
    )
    facts = {"source": "planted", "split": "train", "domain": "chat", "prompt": "?", "messages": "[]", "labels": "{}"}
    pair = run.pairs.with_columns(*(pl.lit(text).alias(name) for name, text in facts.items()), n_responses=pl.lit(2))
    response = run.responses.with_columns(
        n_boundary=pl.lit(1),
        token_start=pl.Series(arrays.token_start[:-1]),
        truncated=pl.lit(False),
        reward=pl.lit(0.0),
    )
    folder.mkdir(parents=True)
    with new_database(folder / "run-planted.duckdb") as db:
        db.insert_all(
            {
                "pair": pair,
                "response": response,
                "feature": features,
                "context": contexts,
                "band": bands,
                "label": label_table(arrays, run.pairs, run.responses, pieces),
            }
        )
        db.insert_activations(arrays)
    save_arrays(folder / "arrays", arrays)
    write_manifest(folder, manifest(folder.name, n))
    return folder


def manifest(name: str, n: int) -> Manifest:
    return Manifest(
        name=name,
        run_id="planted",
        code_version="0",
        database="run-planted.duckdb",
        shards="shards",
        arrays="arrays",
        config={"features": FeaturesConfig().model_dump()},
        model={"name": "no such model"},
        data={"n_pairs": n},
        sae={"sha256": SAE, "latents": LATENTS},
        head={"pooling": "mean"},
        health={},
        stages={},
        seeds={},
        versions={},
    )


Answer = Callable[[dict[str, Any]], Any]
"""From a request's body to the reply's text, or to (status, body text, headers), or to seconds to wait before closing."""


class Server:
    """What a test sees of the server.

    Attributes:
        url: base URL of the API.
        bodies: the requests so far.
        headers: their headers, names in lower case.
        answer: how they are answered; may be replaced at any time.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.usage: dict[str, int] | None = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        self.url = ""


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    """Serves chat completions on a free port of this machine."""
    server = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            said = server.answer(body)
            if isinstance(said, float):
                time.sleep(said)
                return
            status, text, headers = said if isinstance(said, tuple) else (200, completion(said, server.usage), {})
            data = text.encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def completion(content: str, usage: dict[str, int] | None = None, finish: str = "stop") -> str:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    )


def passages_of(body: dict[str, Any]) -> list[str]:
    """The passages that a request shows, by reading its lines."""
    lines = body["messages"][-1]["content"].split("\n")
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [one["passage"] for one in found if "passage" in one]


def numbers(passages: list[str], holds: Callable[[str], bool]) -> str:
    return json.dumps({"numbers": [i for i, passage in enumerate(passages, 1) if holds(passage)]})


def knows_sorry(body: dict[str, Any]) -> str:
    """Answers as one who knows that the feature stands for the word sorry."""
    system, passages = body["messages"][0]["content"], passages_of(body)
    if system == prompts.LABEL:
        return json.dumps({"description": "the word sorry", "safety_rating": 5, "monosemanticity": 4})
    if system == prompts.DETECTION:
        return numbers(passages, lambda text: "sorry" in text.lower())
    return numbers(passages, lambda text: any(mark in text.lower() for mark in ("⟪sorry⟫", "⟪ sorry⟫")))
