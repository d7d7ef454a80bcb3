"""Suppress warnings of libraries, also while several threads read files."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_caught = warnings.catch_warnings()


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Suppress warnings while any thread is inside; the last one to leave restores the filters.

    Python's `catch_warnings` is not thread-safe: with two threads, one may restore the filters that the other one set,
    and warnings would be shown inside or hidden for good.
    """
    global _inside, _caught
    with _lock:
        if not _inside:
            _caught = warnings.catch_warnings()
            _caught.__enter__()
            warnings.simplefilter("ignore")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _caught.__exit__(None, None, None)
