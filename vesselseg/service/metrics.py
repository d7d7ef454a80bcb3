"""Metrics of the service in the Prometheus format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics of one service, including memory and CPU time of the process (process_*, on Linux)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "vesselseg_requests",
            "Answered requests; 499: the client disconnected",
            ["route", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "vesselseg_request_seconds",
            "Time from request to response",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue_seconds = Histogram(
            "vesselseg_queue_seconds",
            "Time an image waits for the model",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.model_seconds = Histogram(
            "vesselseg_model_seconds",
            "Time per model call: a batch, or a part of a failed batch",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_images = Histogram(
            "vesselseg_batch_images", "Images per model call", ["model"], buckets=_IMAGES, registry=self.registry
        )
        self.queue_length = Gauge(
            "vesselseg_queue_length", "Images waiting for the model", ["model"], registry=self.registry
        )
        self.running = Gauge("vesselseg_requests_running", "Requests being served", registry=self.registry)

    def watch_queue(self, model: str, length: Callable[[], int]) -> None:
        """Report the length of a model's queue."""
        self.queue_length.labels(model).set_function(length)

    def text(self) -> bytes:
        """The exposition format, version 0.0.4."""
        return generate_latest(self.registry)
