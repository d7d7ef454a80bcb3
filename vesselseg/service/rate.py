"""How many requests a client may make: a bucket of tokens per client, filled at a steady rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_BURST_S = 10.0  # seconds' worth of requests that may come at once
_MOST_CLIENTS = 10_000


class RateLimit:
    """rate: requests per second on average, 0 for any number."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._burst = max(1.0, rate * _BURST_S)
        self._buckets: dict[str, tuple[float, float]] = {}  # client -> (tokens, when they were counted)

    def wait(self, client: str) -> int:
        """0 if the client may go on now, else the whole seconds after which it may."""
        if not self._rate:
            return 0
        now = self._clock()
        tokens, counted = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - counted) * self._rate)
        self._buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > _MOST_CLIENTS:
            self._forget(now)
        return 0 if tokens >= 1 else math.ceil((1 - tokens) / self._rate)

    def _forget(self, now: float) -> None:
        """Clients with a full bucket, and if those are too few, the ones that were away longest."""
        full = [name for name, (tokens, at) in self._buckets.items() if tokens + (now - at) * self._rate >= self._burst]
        for name in full or list(self._buckets)[: _MOST_CLIENTS // 2]:
            del self._buckets[name]
