"""One model, one thread that runs it, one queue before it: images of all clients are predicted together.

While the model is at work, other threads make the views of what comes next, entry by entry: which entries become a
batch is settled when the model is free, and what is wrong with one of them hurts no other.
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

LARGEST_REQUEST = 50_000_000  # `probability_map_pixels` of one request
_WAITING_PIXELS = 400_000_000  # `probability_map_pixels` of all that wait, if it is more than one request
_FAILURES = 3  # requests failing one after the other, until the model counts as broken
_LOG = logging.getLogger("vesselseg.service")


@dataclass(eq=False)
class Entry:
    """What one request asks: an upright 8-bit RGB image, its phrases; the answer comes through the future.

    asked: the same as the model takes it; made once its turn is near, see `ModelQueue`.
    """

    image: Image.Image
    phrases: tuple[str, ...]
    future: Future[Prediction] = field(default_factory=Future)
    entered: float = field(default_factory=time.perf_counter)
    asked: Future[Request] | None = None

    @property
    def pixels(self) -> int:
        """Of all its probability maps."""
        return probability_map_pixels(self.image, len(self.phrases))


class ModelQueue:
    """Takes entries from any thread. An entry whose future is cancelled before its turn is passed over."""

    def __init__(
        self, name: str, predictor: Predictor, batch: int, wait_s: float, metrics: Metrics, flips: bool = False
    ) -> None:
        self.name, self.predictor, self._flips = name, predictor, flips
        self._batch, self._wait_s, self._metrics = batch, wait_s, metrics
        self._waiting: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._failures = 0
        metrics.watch_queue(name, lambda: len(self._waiting))
        self._views = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=f"views {name}")
        self._thread = threading.Thread(target=self._work, name=f"model {name}", daemon=True)
        self._thread.start()

    @property
    def works(self) -> bool:
        """Whether its thread lives and its last requests did not all fail."""
        return self._thread.is_alive() and self._failures < _FAILURES

    def put(self, entry: Entry) -> Future[Prediction]:
        """Wait for the model's turn. Raises ServiceError where too much waits already."""
        with self._changed:
            if self._closing:
                raise ServiceError(503, "stopping", "the service is being stopped; try again later", retry_after=10)
            if self._waiting and sum(one.pixels for one in self._waiting) + entry.pixels > _WAITING_PIXELS:
                raise busy("too many large images wait already; try again in a moment")
            self._waiting.append(entry)
            self._prepare_next()
            self._changed.notify()
        return entry.future

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._views.shutdown()

    def drop(self, entry: Entry) -> None:
        """Take an entry out that nobody waits for; nothing is done where its turn has come already."""
        with self._changed:
            if entry in self._waiting:
                self._waiting.remove(entry)
                if entry.asked is not None:
                    entry.asked.cancel()
                self._prepare_next()

    def _prepare_next(self) -> None:
        """Let the views of the next batch be made, and of no more: they take memory."""
        for entry in islice(self._waiting, self._batch):
            self._asked(entry)

    def _asked(self, entry: Entry) -> Future[Request]:
        """As the model takes it; begun here at the latest, so that whoever's turn has come is or will be prepared."""
        if entry.asked is None:
            entry.asked = self._views.submit(self.predictor.preprocess, [entry.image], [entry.phrases], self._flips)
        return entry.asked

    def _work(self) -> None:
        while batch := self._next_batch():
            entered = time.perf_counter()
            for entry in batch:
                self._metrics.queue_seconds.labels(self.name).observe(entered - entry.entered)
            self._metrics.batch_images.labels(self.name).observe(len(batch))
            self._answer_batch(batch)
            del batch, entry  # a picture is kept no longer than it is needed

    def _next_batch(self) -> list[Entry]:
        """Entries that somebody still waits for, at least one; none when the queue is closed and empty."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return []
                ready = self._waiting[0].entered + self._wait_s
                while self._waiting and not self._closing and len(self._waiting) < self._batch:
                    left = ready - time.perf_counter()
                    if left <= 0 or not self._changed.wait(left):
                        break
                if batch := self._take():
                    return batch

    def _take(self) -> list[Entry]:
        batch: list[Entry] = []
        pixels = 0
        while self._waiting and len(batch) < self._batch:
            entry = self._waiting[0]
            if batch and pixels + entry.pixels > BATCH_PIXELS:
                break
            self._waiting.popleft()
            if entry.future.set_running_or_notify_cancel():
                self._asked(entry)
                batch.append(entry)
                pixels += entry.pixels
            elif entry.asked is not None:
                entry.asked.cancel()
        self._prepare_next()
        return batch

    def _answer_batch(self, batch: Sequence[Entry]) -> None:
        ready = []
        for entry in batch:
            if failure := self._prepared(entry):
                self._fail(entry, failure)
            else:
                ready.append(entry)
        if ready:
            self._run(ready)

    def _run(self, batch: Sequence[Entry]) -> None:
        """Answers all; where a batch fails its halves are tried, so that a request fails for its own reasons only."""
        failure = self._predict(batch)
        if failure is not None and len(batch) > 1:
            for part in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                self._run(part)
        elif failure is not None:
            self._fail(batch[0], failure)

    def _fail(self, entry: Entry, failure: Exception) -> None:
        if not isinstance(failure, ServiceError):
            self._failures += 1
        entry.future.set_exception(failure)

    def _prepared(self, entry: Entry) -> Exception | None:
        """Waits for its views, whose making may have failed. Returns what went wrong."""
        try:
            self._asked(entry).result()
        except Exception as error:
            return self._told(error, [entry])
        return None

    def _predict(self, batch: Sequence[Entry]) -> Exception | None:
        """Returns what went wrong instead of raising it: a traceback would keep the failed batch's memory.

        All that /health and /metrics say of it is settled before the answers: who has one and asks finds it there.
        """
        began = time.perf_counter()
        try:
            predictions = self.predictor.run([self._asked(entry).result() for entry in batch])
        except Exception as error:
            return self._told(error, batch)
        finally:
            self._metrics.model_seconds.labels(self.name).observe(time.perf_counter() - began)
        self._failures = 0
        for entry, prediction in zip(batch, predictions):
            entry.future.set_result(prediction)
        return None

    def _told(self, error: Exception, batch: Sequence[Entry]) -> Exception:
        """What the client of a batch's only request is told; the rest is for the log."""
        if is_out_of_memory(error):
            _LOG.warning("model=%s out of memory with %d images", self.name, len(batch))
            return _out_of_memory(batch[0])
        if isinstance(error, UserError):
            return ServiceError(422, "invalid_request", str(error))
        _LOG.error("model=%s failed with %d images", self.name, len(batch), exc_info=error)
        return RuntimeError(f"{type(error).__name__} in the model")


def _out_of_memory(entry: Entry) -> ServiceError:
    image = entry.image
    return ServiceError(
        503,
        "out_of_memory",
        f"{image.width}x{image.height} pixels and {len(entry.phrases)} phrases do not fit into the memory of the "
        "model's device, not even alone; send a smaller image or fewer phrases, or try again later",
        retry_after=30,
    )
