"""Notes every attempt to reach another machine, below all libraries, and lets none through."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_watched: list[list[str]] = []
_EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event in _EVENTS:
        _watched[-1].append(f"{event} {arguments[-1] if event == 'socket.connect' else arguments[:2]}")
        raise OSError("this test has no network")


sys.addaudithook(_hook)  # it cannot be removed again, and does nothing outside of `no_network`


@contextmanager
def no_network() -> Iterator[None]:
    """Fails at its end where anything within asked for a network, even if a library went on without."""
    attempts: list[str] = []
    _watched.append(attempts)
    try:
        yield
    finally:
        _watched.remove(attempts)
    assert not attempts, attempts
