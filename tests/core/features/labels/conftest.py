"""The planted run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.store.reader import RunReader
from tests.core.features.labels.planted import write_planted_run


@pytest.fixture(scope="session")
def planted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with the run `planted`."""
    runs = tmp_path_factory.mktemp("labels") / "runs"
    write_planted_run(runs / "planted")
    return runs


@pytest.fixture(scope="session")
def reader(planted_folder: Path) -> Iterator[RunReader]:
    with RunReader.open(planted_folder / "planted") as found:
        yield found
