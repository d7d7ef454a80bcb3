"""Threads next to the model: map in parallel, and prefetch one item ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

from vesselseg.machine import available_cores

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
MAX_THREADS = min(8, available_cores())  # threads that preprocess images


def map_in_threads(function: Callable[[int], _Result], count: int) -> list[_Result]:
    """`function` of every index below count, in order. Pillow resizes without the GIL, so threads save time."""
    if count < 2:
        return [function(index) for index in range(count)]
    with ThreadPoolExecutor(min(count, MAX_THREADS)) as pool:
        return list(pool.map(function, range(count)))


def prefetch(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """`function` of every item, in order. A thread draws and computes the next one while the caller uses the last."""
    results, end = map(function, items), object()
    with ThreadPoolExecutor(1) as thread:
        pending: Future[_Result | object] = thread.submit(next, results, end)
        while (result := pending.result()) is not end:
            pending = thread.submit(next, results, end)
            yield cast(_Result, result)
