"""What a streamed pretraining keeps in memory, and what it costs to take it up again.

    python benchmarks/pretraining.py [--steps 4000] [--texts 60000]

A tiny random backbone reads a local Parquet folder through `datasets` in streaming mode, so that what is measured is
the pipeline (reading, sentences, tokens, shuffling, steps), not a model: the process's memory after every tenth of the
steps, and the seconds until the first batch from the start, from a stored position late in the text, and from the same
step without one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from core.config import SaeConfig
from core.models.backbone import Backbone, wrap_backbone
from core.sae.streams import TrainingText
from core.sae.train import train_sae
from core.sae.vectors import StreamedVectors

BATCH, BLOCK = 256, 1 << 14


class Watching:
    """A Progress that notes the process's memory at every tenth of the steps."""

    def __init__(self, every: int) -> None:
        self.every, self.done = every, 0
        self.process = psutil.Process()

    @contextmanager
    def task(self, name: str, total: float | None, unit: str) -> Iterator[Watching]:
        yield self

    def advance(self, n: float = 1) -> None:
        self.done += int(n)
        if n and self.done % self.every == 0:
            print(f"  step {self.done:6,}: {self.process.memory_info().rss / 1e6:,.0f} MB", flush=True)


def tiny_backbone() -> Backbone:
    """One block of width 64 with 3,000 words, random weights."""
    words = {"[UNK]": 0} | {f"w{i}": i for i in range(1, 3000)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = LlamaConfig(
        vocab_size=3000,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    return wrap_backbone(LlamaModel(config), fast, 1, torch.device("cpu"), torch.float32)


def write_texts(folder: Path, texts: int) -> None:
    """Parquet files of texts of 20 sentences, in a folder that goes through `datasets`."""
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    for part in range(10):
        rows = [
            " ".join(
                f"W{a} " + " ".join(f"w{i}" for i in words) + "."
                for a, words in enumerate(rng.integers(1, 3000, (20, 14)))
            )
            for _ in range(texts // 10)
        ]
        pl.DataFrame({"text": rows}).write_parquet(folder / "data" / f"train-{part}.parquet", row_group_size=500)


def seconds_to_first_batch(source: StreamedVectors, step: int, position: Any) -> float:
    begin = time.perf_counter()
    next(source.batches(step, position))
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--texts", type=int, default=60_000)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_texts(root, options.texts)
        size = sum(path.stat().st_size for path in root.rglob("*.parquet"))
        backbone = tiny_backbone()
        text = TrainingText([], [str(root)], backbone.tokenizer, "sequence")

        def source() -> StreamedVectors:
            return StreamedVectors(backbone, text.open, BATCH, 0, key="benchmark", block_vectors=BLOCK)

        print(f"{options.texts:,} texts, {size / 1e6:,.0f} MB of Parquet, {BATCH} vectors a step, blocks of {BLOCK:,}")
        running = source()
        config = SaeConfig(latents=256, k=8, batch=BATCH)
        begin = time.perf_counter()
        train_sae(
            running,
            config,
            total_steps=options.steps,
            device="cpu",
            work=root / "work",
            progress=Watching(options.steps // 10),
        )
        seconds = time.perf_counter() - begin
        print(f"{options.steps * BATCH:,} vectors in {seconds:.0f} s ({options.steps * BATCH / seconds:,.0f}/s)")
        late = options.steps - 1
        print(f"first batch of step 0: {seconds_to_first_batch(source(), 0, None):.2f} s")
        print(
            f"first batch of step {late:,} from its position: {seconds_to_first_batch(source(), late, running.position):.2f} s"
        )
        print(f"first batch of step {late:,} from the start: {seconds_to_first_batch(source(), late, None):.2f} s")


if __name__ == "__main__":
    main()
