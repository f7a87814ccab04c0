"""Small SAEs: one thread is faster than sharing the work. And a small model with text for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tests.core.models.architectures import save_model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words in a folder that goes through `datasets`."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    rows = [" ".join(f"w{i}" for i in rng.integers(4, 97, 60)) for _ in range(120)]
    for part in range(3):
        pl.DataFrame({"text": rows[part::3]}).write_parquet(folder / "data" / f"train-{part}.parquet")
    return folder
