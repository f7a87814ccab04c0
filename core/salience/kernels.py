"""How the loops over columns are compiled and spread over threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

import numba
import numpy as np

T = TypeVar("T")


def kernel(function: Any) -> Any:
    """Compiles a loop with numba, without the interpreter's lock; kept on disk where some folder can be written.

    Plain threads share the work (`over_columns`), because numba's own thread pool must not be entered by two threads
    of a server at once.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no folder to cache in: a read-only installation without a home
        return numba.njit(nogil=True)(function)


def threads() -> int:
    """Threads to use: the cores this process may run on, fewer where OMP_NUM_THREADS says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return max(1, min(cores, int(limit))) if limit.isdigit() else cores


def runs(pointer: np.ndarray, parts: int) -> list[tuple[int, int]]:
    """Cuts the rows of a pointer [n + 1] into at most `parts` runs lo..hi-1 of about equal size."""
    n = len(pointer) - 1
    cuts = np.searchsorted(pointer, np.linspace(pointer[0], pointer[-1], parts + 1)[1:-1])
    edges = np.unique(np.concatenate([[0], np.clip(cuts, 0, n), [n]])).tolist()
    return list(pairwise(edges))


def spread(work: Callable[[int, int], T], parts: list[tuple[int, int]], workers: int | None = None) -> list[T]:
    """Calls `work(lo, hi)` for every part, in threads, and returns the results in order.

    `work` calls a kernel; its result must not depend on how the whole is cut.
    """
    workers = workers or threads()
    if workers == 1 or len(parts) < 2:
        return [work(lo, hi) for lo, hi in parts]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda part: work(*part), parts))


def over_columns(work: Callable[[int, int], T], pointer: np.ndarray) -> list[T]:
    """`spread` over columns that begin at `pointer`; more parts than threads even out their different lengths."""
    workers = threads()
    return spread(work, runs(pointer, 1 if workers == 1 else 4 * workers), workers)
