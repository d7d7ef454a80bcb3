"""Rate limit per client: a token bucket, refilled at a constant rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_BURST_S = 10.0  # a burst may have the requests of this many seconds
_MAX_CLIENTS = 10_000


class RateLimit:
    """rate: mean requests per second; 0 means unlimited."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._burst = max(1.0, rate * _BURST_S)
        self._buckets: dict[str, tuple[float, float]] = {}  # client -> (tokens, time of count), oldest first

    def wait(self, client: str) -> int:
        """0 if the request is allowed now, else the seconds to wait, rounded up."""
        if not self._rate:
            return 0
        now = self._clock()
        tokens, counted = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - counted) * self._rate)
        self._buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > _MAX_CLIENTS:
            self._forget(now)
        return 0 if tokens >= 1 else math.ceil((1 - tokens) / self._rate)

    def _forget(self, now: float) -> None:
        """Forget clients with a full bucket; if there are none, the least recent half."""
        full = [name for name, (tokens, at) in self._buckets.items() if tokens + (now - at) * self._rate >= self._burst]
        for name in full or list(self._buckets)[: _MAX_CLIENTS // 2]:
            del self._buckets[name]
