"""Concurrent clients share batches, and each gets its own result or its own error."""

from __future__ import annotations

import gc
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.imaging.test_frames import huge_png
from tests.machine_speed import patience
from tests.service.running import RunningService, assert_error, pixels_of, png, wait_until
from tests.tiny import picture
from vesselseg.dataset.prompts import question_for
from vesselseg.errors import UserError
from vesselseg.inference.predictor import Prediction, Request
from vesselseg.inference.prompted_predictor import PromptedPredictor
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.models.prompted_config import PromptedSAM2Config
from vesselseg.models.prompted_sam2 import build_prompted
from vesselseg.service.errors import ServiceError
from vesselseg.service.metrics import Metrics
from vesselseg.service.model_queue import ModelQueue, QueuedImage

CLIENTS, EACH = 16, 3
TIMEOUT_S = patience(120)  # for any single step on a busy machine
UNTIL_FULL_MS = 600_000  # longer than any client waits, so a batch starts only when it is full


def cuda_runs_out() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def main_memory_runs_out() -> None:
    torch.empty(2**60, dtype=torch.uint8)  # more than an address can name


class Watched(Sa2VAPredictor):
    """Records batch sizes, can be paused, and fails like a device or a defect. Everything else is real."""

    def __init__(self, real: Sa2VAPredictor, most: int = 10**6, poison: tuple[int, int] = (0, 0)) -> None:
        super().__init__(real.model, real.processor, real.threshold)
        self.most, self.poison, self.run_out = most, poison, cuda_runs_out
        self.batches: list[int] = []
        self.preprocessed: list[Image.Image] = []
        self.may_go = threading.Event()
        self.may_go.set()

    def preprocess(
        self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]], flips: bool = False
    ) -> Request:
        self.preprocessed += images
        return super().preprocess(images, phrases, flips)

    def run(self, requests: Sequence[Request], threshold: float | None = None) -> list[Prediction]:
        self.batches.append(len(requests))
        assert self.may_go.wait(TIMEOUT_S)
        if len(requests) > self.most:
            self.run_out()
        if any(self.poison in request.sizes for request in requests):
            raise RuntimeError("secret words of a defect")
        return super().run(requests, threshold)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The model does not return until the block ends."""
        self.may_go.clear()
        try:
            yield
        finally:
            self.may_go.set()


def ask(service: RunningService, image: Image.Image, **options: Any) -> httpx.Response:
    """Through a new connection, like a separate client."""
    files = {"image": ("a.png", png(image))}
    return httpx.post(f"{service.url}/predict", files=files, timeout=patience(60), **options)


def assert_own(answer: httpx.Response, image: Image.Image, phrases: Sequence[str], direct: Prediction) -> None:
    found = answer.json()
    np.testing.assert_array_equal(pixels_of(found["picture_png"]), np.asarray(image))
    assert [item["phrase"] for item in found["objects"]] == list(phrases)
    for item, probability in zip(found["objects"], direct.probabilities):
        np.testing.assert_allclose(pixels_of(item["probability_png"]), probability * 255, atol=1)


@pytest.mark.slow
def test_every_client_gets_its_own_result(start: Callable[..., Any], predictor: Sa2VAPredictor) -> None:
    phrases = [["blood vessel"], ["catheter", "blood vessel"], ["left artery"]]
    images = [picture(number, 80 + 10 * (number % 2), 60) for number in range(CLIENTS)]
    watched = Watched(predictor)
    expected = predictor.predict(images, [phrases[number % 3] for number in range(CLIENTS)])
    same_size = expected[::6]  # with the same phrases, so only the images differ
    apart = np.abs(same_size[0].probabilities - same_size[1].probabilities).max()
    assert apart > 4 / 255, "these results could be confused"

    def client(number: int) -> None:
        with httpx.Client(base_url=service.url, timeout=patience(60)) as own:
            for _ in range(EACH):
                own_phrases = phrases[number % 3]
                answer = own.post("/predict", files={"image": ("a", png(images[number]))}, data={"phrase": own_phrases})
                assert answer.status_code == 200, answer.text
                assert_own(answer, images[number], own_phrases, expected[number])

    with start({"tiny": watched}, rate=0) as service, ThreadPoolExecutor(CLIENTS) as pool:
        with watched.held():
            clients = [pool.submit(client, number) for number in range(CLIENTS)]
            wait_until(lambda: max(0, *watched.batches, service.metric("vesselseg_queue_length")) > 3)
        for one in clients:
            one.result()
    assert sum(watched.batches) == CLIENTS * EACH and max(watched.batches) > 3


def test_requests_wait_for_each_other_up_to_a_limit(start: Callable[..., Any], predictor: Sa2VAPredictor) -> None:
    watched = Watched(predictor)
    with start({"tiny": watched}, wait_ms=UNTIL_FULL_MS, batch=3) as service, ThreadPoolExecutor(4) as pool:
        list(
            pool.map(lambda number: ask(service, picture(number)), range(3))
        )  # nobody's patience ends: it goes at once
        assert watched.batches == [3], "all requests share a batch"
    with start({"tiny": watched}, wait_ms=300, batch=3) as service:
        began = time.perf_counter()
        ask(service, picture(1))
        assert time.perf_counter() - began >= 0.3
        assert watched.batches == [3, 1]


def test_a_disconnected_client_is_removed_from_the_queue(start: Callable[..., Any], predictor: Sa2VAPredictor) -> None:
    watched = Watched(predictor)
    with start({"tiny": watched}, batch=1) as service, ThreadPoolExecutor(4) as pool:
        with watched.held():
            first = pool.submit(ask, service, picture(1))
            wait_until(lambda: watched.batches == [1])
            gone = multipart_connection(service)
            wait_until(lambda: service.metric("vesselseg_queue_length") == 1)
            last = pool.submit(ask, service, picture(2))
            wait_until(lambda: service.metric("vesselseg_queue_length") == 2)
            gone.close()
            wait_until(lambda: service.metric("vesselseg_queue_length") == 1)
            wait_until(lambda: service.service.accepted == 2)
        for number, answer in ((1, first), (2, last)):
            assert_own(answer.result(), picture(number), ["blood vessel"], direct(predictor, picture(number)))
        assert watched.batches == [1, 1]
        assert service.metric('vesselseg_requests_total{route="/predict",status="499"}') == 1
        wait_until(lambda: service.service.accepted == 0)


def multipart_connection(service: RunningService) -> socket.socket:
    """A complete request whose response is not read."""
    request = httpx.Request("POST", f"{service.url}/predict", files={"image": ("a.png", png(picture(9)))})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    connection = socket.create_connection(("127.0.0.1", service.port))
    connection.sendall(f"POST /predict HTTP/1.1\r\n{head}\r\n".encode() + request.read())
    return connection


def direct(predictor: Sa2VAPredictor, image: Image.Image) -> Prediction:
    return predictor.predict([image], [["blood vessel"]])[0]


def test_a_full_queue_says_when_to_retry(start: Callable[..., Any], predictor: Sa2VAPredictor) -> None:
    watched = Watched(predictor)
    with start({"tiny": watched}, queue=2) as service, ThreadPoolExecutor(4) as pool:
        with watched.held():
            waiting = [pool.submit(ask, service, picture(number)) for number in range(2)]
            wait_until(lambda: service.service.accepted == 2)
            answer = ask(service, picture(3))
            assert_error(answer, 503, "busy", "2 requests")
            assert int(answer.headers["retry-after"]) >= 1
            assert service.get("/models").status_code == 200
        assert [one.result().status_code for one in waiting] == [200, 200]
        assert ask(service, picture(3)).status_code == 200


@pytest.mark.parametrize("run_out", [cuda_runs_out, main_memory_runs_out])
def test_memory_that_runs_out_splits_the_batch(
    start: Callable[..., Any], predictor: Sa2VAPredictor, run_out: Callable[[], None]
) -> None:
    watched = Watched(predictor, most=2)
    watched.run_out = run_out
    with start({"tiny": watched}, wait_ms=UNTIL_FULL_MS, batch=5) as service, ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda number: ask(service, picture(number)), range(5)))
        for number, answer in enumerate(answers):
            assert_own(answer, picture(number), ["blood vessel"], direct(predictor, picture(number)))
        assert watched.batches == [5, 2, 3, 1, 2]
    watched.most = 0
    with start({"tiny": watched}, wait_ms=0) as service:
        answer = ask(service, picture(1))
        assert_error(answer, 503, "out_of_memory", "150x120 pixels and 1 phrases do not fit")
        assert int(answer.headers["retry-after"]) >= 1 and service.get("/health").status_code == 200


def test_memory_that_runs_out_outside_the_model(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vesselseg.service.pictures.open_frames", lambda *_: main_memory_runs_out())
    assert_error(service.predict(png(picture(1))), 503, "out_of_memory", "no memory left")


def test_a_failed_image_does_not_affect_its_batch(
    start: Callable[..., Any], predictor: Sa2VAPredictor, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(predictor, poison=(33, 33))
    images = [picture(1), picture(2, 33, 33), picture(3), picture(4)]
    with start({"tiny": watched}, wait_ms=1000, batch=4) as service, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda image: ask(service, image), images))
        for number in (0, 2, 3):
            assert_own(answers[number], images[number], ["blood vessel"], direct(predictor, images[number]))
        assert "secret" not in assert_error(answers[1], 500, "internal", "log")
        assert "secret words of a defect" in caplog.text and "Traceback" in caplog.text
        assert answers[1].headers["x-request-id"] in caplog.text
        assert [one.status_code for one in pool.map(lambda _: ask(service, images[1]), range(4))] == [500] * 4
        assert service.get("/health").status_code == 503
        assert service.get("/health").json()["models"] == {"tiny": False}
        assert ask(service, images[0]).status_code == 200 and service.get("/health").status_code == 200


def test_health_is_updated_before_the_result_is_delivered(predictor: Sa2VAPredictor) -> None:
    metrics = Metrics()
    queue = ModelQueue("tiny", Watched(predictor, poison=(33, 33)), 1, 0, metrics)
    for number in range(3):
        assert queue.put(QueuedImage(picture(number, 33, 33), ("a",))).exception(TIMEOUT_S) is not None
    assert not queue.is_healthy
    entry, seen = QueuedImage(picture(1), ("a",)), []

    def look(_: object) -> None:  # called while the result is delivered
        seen.append(
            (queue.is_healthy, metrics.registry.get_sample_value("vesselseg_model_seconds_count", {"model": "tiny"}))
        )

    entry.future.add_done_callback(look)
    queue.put(entry).result(TIMEOUT_S)
    queue.close()
    assert seen == [(True, 4)]


def test_phrases_that_a_distilled_model_refuses(start: Callable[..., Any], predictor: Sa2VAPredictor) -> None:
    sizes = predictor.model.config.grounding_config
    small = PromptedPredictor(build_prompted(PromptedSAM2Config(("artery", "vein"), sizes)).eval())
    with start({"small": small, "tiny": predictor}) as service:
        assert service.get("/models").json()["models"][0] | {"threshold": 0} == {
            "name": "small", "kind": "sam2_only", "threshold": 0, "phrases": ["artery", "vein"],
        }  # fmt: skip
        assert_error(service.predict(png(picture(1)), phrase="wire"), 422, "unknown_phrase", "only 'artery', 'vein'")
        assert service.predict(png(picture(1)), phrase="wire", model="tiny").status_code == 200
        assert service.predict(png(picture(1)), phrase="vein").json()["objects"][0]["phrase"] == "vein"
        assert service.predict(png(picture(1))).json()["objects"][0]["phrase"] == "artery"
        meant = service.predict(png(picture(1)), phrase=["Vein", question_for("artery"), "vein"]).json()
        assert [found["phrase"] for found in meant["objects"]] == ["vein", "artery"]


def test_too_many_pixels(service: RunningService) -> None:
    image = png(Image.new("L", (4000, 3000)))
    answer = service.predict(image, phrase=[f"vessel {number}" for number in range(5)])
    assert_error(answer, 413, "too_many_pixels", "4000x3000 pixels times 5 phrases; expected at most 50,000,000")
    undecodable = service.predict(huge_png(13_000))
    assert_error(undecodable, 413, "too_many_pixels", "13000x13000 pixels times 1 phrases")


@pytest.mark.slow
def test_images_are_freed_immediately(
    start: Callable[..., Any], predictor: Sa2VAPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[QueuedImage]] = []

    def entry(*arguments: Any) -> QueuedImage:
        new = QueuedImage(*arguments)
        made.append(weakref.ref(new))
        return new

    monkeypatch.setattr("vesselseg.service.service.QueuedImage", entry)
    gc.collect()
    gc.disable()  # it runs rarely in a process with a model, and images that wait for it fill the memory
    try:
        with start() as service:
            for _ in range(3):
                assert ask(service, picture(1)).status_code == 200
            wait_until(lambda: [one() for one in made] == [None] * 3)
    finally:
        gc.enable()


def test_large_images_share_no_batch_and_do_not_accumulate(predictor: Sa2VAPredictor) -> None:
    watched = Watched(predictor)
    queue = ModelQueue("tiny", watched, 8, 0.3, Metrics())
    small, large = picture(1), Image.new("RGB", (5000, 2000))
    with watched.held():
        first = queue.put(QueuedImage(small, ("a",)))
        wait_until(lambda: watched.batches == [1])
        waiting = [QueuedImage(large, ("a", "b")) for _ in range(20)]
        for entry in waiting:
            queue.put(entry)
        with pytest.raises(ServiceError, match="large images are waiting"):
            queue.put(QueuedImage(large, ("a", "b")))
        for entry in waiting[1:]:
            queue.remove(entry)
        later = [queue.put(QueuedImage(small, ("a",))) for _ in range(3)]
    results = [one.result(TIMEOUT_S) for one in (first, waiting[0].future, *later)]
    assert [len(result.masks) for result in results] == [1, 2, 1, 1, 1] and watched.batches == [1, 4]
    queue.close()
    with pytest.raises(ServiceError, match="stopped"):
        queue.put(QueuedImage(small, ("a",)))


def test_the_next_batch_is_preprocessed_while_the_model_runs(predictor: Sa2VAPredictor) -> None:
    watched = Watched(predictor)
    queue = ModelQueue("tiny", watched, 2, 0, Metrics())
    images = [picture(number, 60 + 10 * number) for number in range(6)]
    with watched.held():
        first = queue.put(QueuedImage(images[0], ("a",)))
        wait_until(lambda: watched.batches == [1])
        waiting = [QueuedImage(image, ("a",)) for image in images[1:]]
        for entry in waiting:
            queue.put(entry)
        wait_until(lambda: all(entry.request and entry.request.done() for entry in waiting[:2]))
        queue.remove(waiting[0])
        wait_until(lambda: len(watched.preprocessed) == 4)  # the third moves up
        assert {image.width for image in watched.preprocessed} == {60, 70, 80, 90} and watched.batches == [1]
    for image, future in zip((images[0], *images[2:]), (first, *(entry.future for entry in waiting[1:]))):
        expected = predictor.predict([image], [["a"]])[0]
        np.testing.assert_allclose(future.result(TIMEOUT_S).probabilities, expected.probabilities, atol=1e-4)
    queue.close()
    assert watched.batches == [1, 2, 2] and len(watched.preprocessed) == 6, "no image is preprocessed twice"


@pytest.mark.parametrize("batch", [1, 2])
def test_requests_behind_a_cancelled_one_are_answered(predictor: Sa2VAPredictor, batch: int) -> None:
    """A client may disconnect just before its turn: its image is cancelled but still in the queue."""
    watched = Watched(predictor)
    queue = ModelQueue("tiny", watched, batch, 0, Metrics())
    images = [picture(number, 60 + 10 * number) for number in range(6)]
    with watched.held():
        first = queue.put(QueuedImage(images[0], ("a",)))
        wait_until(lambda: watched.batches == [1])
        cancelled, later = [[QueuedImage(image, ("a",)) for image in part] for part in (images[1:4], images[4:])]
        for entry in (*cancelled, *later):
            queue.put(entry)
        for entry in cancelled:
            assert entry.future.cancel()
    for image, future in zip((images[0], *images[4:]), (first, *(entry.future for entry in later))):
        expected = predictor.predict([image], [["a"]])[0]
        np.testing.assert_allclose(future.result(TIMEOUT_S).probabilities, expected.probabilities, atol=1e-4)
    queue.close()
    assert watched.batches == [1] + [batch] * (2 // batch)


def test_an_image_that_fails_to_preprocess_fails_alone(predictor: Sa2VAPredictor) -> None:
    class Odd(Watched):
        def preprocess(
            self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]], flips: bool = False
        ) -> Request:
            if images[0].width == 33:
                raise MemoryError
            return super().preprocess(images, phrases, flips)

    watched = Odd(predictor)
    queue = ModelQueue("tiny", watched, 3, 20, Metrics())
    futures = [queue.put(QueuedImage(image, ("a",))) for image in (picture(1), picture(2, 33, 33), picture(3))]
    assert [future.result(TIMEOUT_S).masks.shape for future in futures[::2]] == [(1, 120, 150)] * 2
    assert getattr(futures[1].exception(TIMEOUT_S), "status", None) == 503 and watched.batches == [2]
    queue.close()


def test_a_user_error_keeps_its_message(predictor: Sa2VAPredictor) -> None:
    class Refusing(Sa2VAPredictor):
        def preprocess(self, *_: Any, **__: Any) -> Request:
            raise UserError("this model knows one phrase only")

    queue = ModelQueue("x", Refusing(predictor.model, predictor.processor), 2, 0, Metrics())
    error = queue.put(QueuedImage(picture(1), ("a",))).exception(TIMEOUT_S)
    assert getattr(error, "status", None) == 422 and "one phrase only" in str(error)
    assert queue.is_healthy
    queue.close()
