"""Request handling: decode the image, wait for the model, encode the response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from PIL import Image
from starlette.requests import Request

from vesselseg import __version__
from vesselseg.inference.out_of_memory import is_out_of_memory
from vesselseg.inference.predictor import Prediction, Predictor
from vesselseg.machine import available_cores
from vesselseg.service.disconnects import watched_client
from vesselseg.service.errors import ServiceError, busy
from vesselseg.service.guard import RequestInfo
from vesselseg.service.metrics import Metrics
from vesselseg.service.model_queue import MAX_REQUEST_PIXELS, ModelQueue, QueuedImage
from vesselseg.service.pictures import check_frame, encode_objects, encode_png, instance_of, open_upload, read_frame
from vesselseg.service.request_store import RequestStore
from vesselseg.service.schemas import (
    FoundObject,
    Health,
    Limits,
    ModelDescription,
    Models,
    PredictAnswer,
    PredictForm,
    QuestionForm,
)
from vesselseg.service.settings import MAX_CLIP_FRAMES, MAX_PHRASES, ServiceSettings
from vesselseg.service.uploads import Upload, read_upload, result_stem

_THREADS = min(16, max(2, available_cores()))  # decode images and encode responses
_Result = TypeVar("_Result")


class Service:
    """The models of one service and the requests waiting for them."""

    def __init__(self, predictors: Mapping[str, Predictor], settings: ServiceSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.queues = {
            name: ModelQueue(name, predictor, settings.batch, settings.wait_ms / 1000, metrics, settings.flips)
            for name, predictor in predictors.items()
        }
        self._store = None if settings.keep is None else RequestStore(settings.keep)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="images")
        self.accepted = 0
        self.stopping = False

    def describe_models(self) -> Models:
        """The models and the limits of the service."""
        described = []
        for name, queue in self.queues.items():
            predictor = queue.predictor
            phrases = None if predictor.phrases is None else list(predictor.phrases)
            kind: Literal["sa2va", "sam2_only"] = "sa2va" if phrases is None else "sam2_only"
            described.append(ModelDescription(name=name, kind=kind, threshold=predictor.threshold, phrases=phrases))
        limits = Limits(
            max_bytes=self.settings.max_bytes,
            phrases=MAX_PHRASES,
            clip_frames=MAX_CLIP_FRAMES,
            pixels_times_phrases=MAX_REQUEST_PIXELS,
            requests_per_second=self.settings.rate,
        )
        return Models(models=described, limits=limits)

    def health(self) -> Health:
        """Whether the service can answer requests."""
        healthy = {name: queue.is_healthy for name, queue in self.queues.items()}
        status: Literal["ok", "failing", "stopping"]
        status = "stopping" if self.stopping else "ok" if all(healthy.values()) else "failing"
        return Health(status=status, version=__version__, models=healthy)

    async def predict(self, request: Request, info: RequestInfo) -> PredictAnswer:
        """Segment one image with one model. Raises ServiceError, and ClientGone if the client disconnects."""
        with self.accepting():
            upload = await read_upload(request, PredictForm)
            queue, phrases = self.question(upload.form)
            info.model = queue.name
            async with watched_client(request.receive) as client:
                return await client.unless_gone(self._answer(upload, phrases, queue, info))

    @contextmanager
    def accepting(self) -> Iterator[None]:
        """Count a request while it is served. Raises ServiceError if there are too many, or the service is stopping."""
        if self.stopping:
            raise ServiceError(503, "stopping", "the service is being stopped; try again later", retry_after=10)
        if self.accepted >= self.settings.queue:
            raise busy(f"{self.accepted} requests are being served already; try again in a moment")
        self.accepted += 1
        try:
            yield
        finally:
            self.accepted -= 1

    def question(self, form: QuestionForm) -> tuple[ModelQueue, tuple[str, ...]]:
        """The queue of the requested model, and the phrases in the model's spelling. Raises ServiceError."""
        name = form.model or next(iter(self.queues))
        if name not in self.queues:
            raise ServiceError(404, "unknown_model", f"no model {name[:80]!r}; available: {', '.join(self.queues)}")
        return self.queues[name], _resolve_phrases(self.queues[name], form)

    async def keep(
        self, request_id: str, name: str, frame: int, model: str, picture: Image.Image, prediction: Prediction
    ) -> None:
        """Store a result, with --keep. Raises ServiceError."""
        if self._store is not None:
            await self.in_thread(self._store.write, request_id, name, frame, model, picture, prediction)

    async def in_thread(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """Run slow work in a thread, off the event loop. Raises ServiceError if it runs out of memory."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = "the service has no memory left for this image; send a smaller one, or try again later"
            raise ServiceError(503, "out_of_memory", message, retry_after=30) from None

    def close(self) -> None:
        """Finish the accepted requests, then end all threads."""
        self.stopping = True
        for queue in self.queues.values():
            queue.close()
        self._pool.shutdown()

    async def _answer(
        self, upload: Upload[PredictForm], phrases: tuple[str, ...], queue: ModelQueue, info: RequestInfo
    ) -> PredictAnswer:
        form = upload.form
        pictures = await self.in_thread(open_upload, upload, len(phrases))
        check_frame(pictures, form.frame)
        picture = await self.in_thread(read_frame, pictures, form.frame)
        info.size = f"{picture.width}x{picture.height}x{len(phrases)}"
        prediction = await predicted(queue, QueuedImage(picture, phrases), form.threshold)
        await self.keep(info.request_id, upload.name, form.frame, queue.name, picture, prediction)
        encoded, objects = await self.in_thread(_encode, picture, prediction)
        return PredictAnswer(
            request_id=info.request_id,
            model=queue.name,
            name=upload.name,
            width=picture.width,
            height=picture.height,
            frames=pictures.frames,
            frame=form.frame,
            threshold=prediction.threshold,
            picture_png=encoded,
            stem=result_stem(upload.name, form.frame if pictures.frames > 1 else None),
            labelme_opens=pictures.labelme_opens,
            notes=list(pictures.notes),
            instance=instance_of(pictures),
            objects=objects,
            seconds=round(time.perf_counter() - info.started, 4),
        )


async def predicted(queue: ModelQueue, entry: QueuedImage, threshold: float | None) -> Prediction:
    """The prediction of a queued image; threshold None: the model's own. Raises ServiceError if the queue is full."""
    try:
        prediction = await asyncio.wrap_future(queue.put(entry))
    finally:
        queue.remove(entry)  # in case the client has disconnected
    return prediction if threshold is None else prediction.with_threshold(threshold)


def _encode(picture: Image.Image, prediction: Prediction) -> tuple[str, list[FoundObject]]:
    """(picture as base64 PNG, objects of the response)."""
    return encode_png(picture), encode_objects(prediction)


def _resolve_phrases(queue: ModelQueue, form: QuestionForm) -> tuple[str, ...]:
    """The model's phrases for the request. Without one, a model that lacks the default phrase uses its first one."""
    phrases, refused = [], []
    for text in form.phrase:
        try:
            phrases.append(queue.predictor.resolve_phrase(text))
        except ValueError as error:
            refused.append(str(error))
    if refused and queue.predictor.phrases and "phrase" not in form.model_fields_set:
        return queue.predictor.phrases[:1]
    if refused:
        raise ServiceError(422, "unknown_phrase", f"{queue.name}: {'; '.join(refused[:3])}")
    return tuple(dict.fromkeys(phrases))
