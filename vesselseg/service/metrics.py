"""What the service counts, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one service; memory and CPU time of the process are among them (process_*, on Linux)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "vesselseg_requests",
            "Answered requests; 499: the client went away",
            ["route", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "vesselseg_request_seconds", "From request to answer", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.queue_seconds = Histogram(
            "vesselseg_queue_seconds",
            "Waiting for the model, per image",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.model_seconds = Histogram(
            "vesselseg_model_seconds",
            "In the model, per call of it: a batch, or a part of one that failed",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_images = Histogram(
            "vesselseg_batch_images", "Images predicted together", ["model"], buckets=_IMAGES, registry=self.registry
        )
        self.queue_length = Gauge(
            "vesselseg_queue_length", "Images waiting for the model", ["model"], registry=self.registry
        )
        self.running = Gauge("vesselseg_requests_running", "Requests being served", registry=self.registry)

    def watch_queue(self, model: str, length: Callable[[], int]) -> None:
        """Let a model's queue be counted whenever somebody asks."""
        self.queue_length.labels(model).set_function(length)

    def text(self) -> bytes:
        """The exposition format, version 0.0.4."""
        return generate_latest(self.registry)
