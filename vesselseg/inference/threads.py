"""Threads beside the model: what is made side by side, and what is made one ahead of its use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")
THREADS = min(8, os.cpu_count() or 1)  # that make the views of images


def side_by_side(make: Callable[[int], _Made], count: int) -> list[_Made]:
    """What is made of each number below count. Pillow resizes without holding Python's lock, so threads save time."""
    if count < 2:
        return [make(number) for number in range(count)]
    with ThreadPoolExecutor(min(count, THREADS)) as pool:
        return list(pool.map(make, range(count)))


def one_ahead(make: Callable[[_Item], _Made], items: Iterable[_Item]) -> Iterator[_Made]:
    """What is made of each item, in order. While the caller is busy with one, a thread draws and makes the next."""
    made, end = map(make, items), object()
    with ThreadPoolExecutor(1) as thread:
        coming: Future[_Made | object] = thread.submit(next, made, end)
        while (one := coming.result()) is not end:
            coming = thread.submit(next, made, end)
            yield cast(_Made, one)
