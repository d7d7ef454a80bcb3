"""One model, one thread that runs it, one queue in front of it: images of all clients share batches.

While the model runs, other threads preprocess the next images one by one. The batch is put together when the model is
free, and an image that fails to preprocess does not affect the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from PIL import Image

from vesselseg.errors import UserError
from vesselseg.inference.out_of_memory import BATCH_PIXELS, is_out_of_memory, probability_map_pixels
from vesselseg.inference.predictor import Prediction, Predictor, Request
from vesselseg.inference.threads import MAX_THREADS
from vesselseg.service.errors import ServiceError, busy
from vesselseg.service.metrics import Metrics

MAX_REQUEST_PIXELS = 50_000_000  # `probability_map_pixels` of one request
_MAX_WAITING_PIXELS = 400_000_000  # `probability_map_pixels` of all waiting requests, if more than one
_MAX_FAILURES = 3  # consecutive failed requests after which the model counts as unhealthy
_LOG = logging.getLogger("vesselseg.service")


@dataclass(eq=False)
class QueuedImage:
    """An upright 8-bit RGB image that waits for the model."""

    image: Image.Image
    phrases: tuple[str, ...]
    future: Future[Prediction] = field(default_factory=Future)  # the result for the client
    enqueued_at: float = field(default_factory=time.perf_counter)
    request: Future[Request] | None = None  # the preprocessed image; None until preprocessing is scheduled

    @property
    def pixels(self) -> int:
        """Total pixels of its probability maps."""
        return probability_map_pixels(self.image, len(self.phrases))


class ModelQueue:
    """Accepts images from any thread. An image whose future is cancelled before its turn is skipped."""

    def __init__(
        self, name: str, predictor: Predictor, batch: int, wait_s: float, metrics: Metrics, flips: bool = False
    ) -> None:
        self.name, self.predictor, self._flips = name, predictor, flips
        self._batch, self._wait_s, self._metrics = batch, wait_s, metrics
        self._waiting: deque[QueuedImage] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._failures = 0
        metrics.watch_queue(name, lambda: len(self._waiting))
        self._preprocessing = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=f"preprocess {name}")
        self._thread = threading.Thread(target=self._work, name=f"model {name}", daemon=True)
        self._thread.start()

    @property
    def is_healthy(self) -> bool:
        """Whether its thread is alive and the last _MAX_FAILURES requests did not all fail."""
        return self._thread.is_alive() and self._failures < _MAX_FAILURES

    def put(self, entry: QueuedImage) -> Future[Prediction]:
        """Append an image; returns its future. Raises ServiceError if the queue is full or closed."""
        with self._changed:
            if self._closing:
                raise ServiceError(503, "stopping", "the service is being stopped; try again later", retry_after=10)
            if self._waiting and sum(other.pixels for other in self._waiting) + entry.pixels > _MAX_WAITING_PIXELS:
                raise busy("too many large images are waiting; try again in a moment")
            self._waiting.append(entry)
            self._preprocess_next()
            self._changed.notify()
        return entry.future

    def close(self) -> None:
        """Predict the waiting images, then end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._preprocessing.shutdown()

    def remove(self, entry: QueuedImage) -> None:
        """Remove an image whose client has gone; no effect once its turn has come."""
        with self._changed:
            if entry in self._waiting:
                self._waiting.remove(entry)
                if entry.request is not None:
                    entry.request.cancel()
                self._preprocess_next()

    def _preprocess_next(self) -> None:
        """Preprocess the next batch, and no more than that: preprocessed images take memory."""
        for entry in islice(self._waiting, self._batch):
            self._preprocess(entry)

    def _preprocess(self, entry: QueuedImage) -> Future[Request]:
        """The preprocessed image; scheduled on the first call."""
        if entry.request is None:
            entry.request = self._preprocessing.submit(
                self.predictor.preprocess, [entry.image], [entry.phrases], self._flips
            )
        return entry.request

    def _work(self) -> None:
        """The model's thread."""
        while batch := self._next_batch():
            started = time.perf_counter()
            for entry in batch:
                self._metrics.queue_seconds.labels(self.name).observe(started - entry.enqueued_at)
            self._metrics.batch_images.labels(self.name).observe(len(batch))
            self._predict_batch(batch)
            del batch, entry  # otherwise these names would keep the images in memory until the next batch

    def _next_batch(self) -> list[QueuedImage]:
        """At least one image whose client is still waiting; empty once the queue is closed and empty."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return []
                deadline = self._waiting[0].enqueued_at + self._wait_s
                while self._waiting and not self._closing and len(self._waiting) < self._batch:
                    left = deadline - time.perf_counter()
                    if left <= 0 or not self._changed.wait(left):
                        break
                if batch := self._take_batch():
                    return batch

    def _take_batch(self) -> list[QueuedImage]:
        """Remove the next batch from the queue, and cancelled images before it; the lock is held."""
        batch: list[QueuedImage] = []
        pixels = 0
        while self._waiting and len(batch) < self._batch:
            entry = self._waiting[0]
            if batch and pixels + entry.pixels > BATCH_PIXELS:
                break
            self._waiting.popleft()
            if entry.future.set_running_or_notify_cancel():
                self._preprocess(entry)
                batch.append(entry)
                pixels += entry.pixels
            elif entry.request is not None:
                entry.request.cancel()
        self._preprocess_next()
        return batch

    def _predict_batch(self, batch: Sequence[QueuedImage]) -> None:
        ready = []
        for entry in batch:
            if failure := self._preprocessing_error(entry):
                self._fail(entry, failure)
            else:
                ready.append(entry)
        if ready:
            self._run(ready)

    def _preprocessing_error(self, entry: QueuedImage) -> Exception | None:
        """Wait until an image is preprocessed; returns its error.

        Not part of `_predict_batch`: the error's traceback keeps this frame's variables in memory, but no other image.
        """
        try:
            self._preprocess(entry).result()
        except Exception as error:
            return self._client_error(error, [entry])
        return None

    def _run(self, batch: Sequence[QueuedImage]) -> None:
        """Resolve all futures. A failed batch is split in halves, so one image's failure does not affect the others."""
        failure = self._predict(batch)
        if failure is not None and len(batch) > 1:
            for part in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                self._run(part)
        elif failure is not None:
            self._fail(batch[0], failure)

    def _fail(self, entry: QueuedImage, failure: Exception) -> None:
        if not isinstance(failure, ServiceError):
            self._failures += 1
        entry.future.set_exception(failure)

    def _predict(self, batch: Sequence[QueuedImage]) -> Exception | None:
        """Returns an error instead of raising it, because a traceback would keep the failed batch in memory.

        Health and metrics are updated before the futures are resolved, so a client that has its result can see them.
        """
        started = time.perf_counter()
        try:
            predictions = self.predictor.run([self._preprocess(entry).result() for entry in batch])
        except Exception as error:
            return self._client_error(error, batch)
        finally:
            self._metrics.model_seconds.labels(self.name).observe(time.perf_counter() - started)
        self._failures = 0
        for entry, prediction in zip(batch, predictions):
            entry.future.set_result(prediction)
        return None

    def _client_error(self, error: Exception, batch: Sequence[QueuedImage]) -> Exception:
        """The error for the client of a batch's only image; details are logged."""
        if is_out_of_memory(error):
            _LOG.warning("model=%s out of memory with %d images", self.name, len(batch))
            return _out_of_memory(batch[0])
        if isinstance(error, UserError):
            return ServiceError(422, "invalid_request", str(error))
        _LOG.error("model=%s failed with %d images", self.name, len(batch), exc_info=error)
        return RuntimeError(f"{type(error).__name__} in the model")


def _out_of_memory(entry: QueuedImage) -> ServiceError:
    image = entry.image
    return ServiceError(
        503,
        "out_of_memory",
        f"{image.width}x{image.height} pixels and {len(entry.phrases)} phrases do not fit into the memory of the "
        "model's device, not even alone; send a smaller image or fewer phrases, or try again later",
        retry_after=30,
    )
