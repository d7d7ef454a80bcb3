"""What libraries warn of is kept from the user, also while several threads read files."""

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
    """No warning is shown as long as any thread is in here; after the last one all is as it was before the first.

    Python's `catch_warnings` puts back what it found, which with two threads at once may be what the other one left:
    warnings would be shown in here, or hidden for good.
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
