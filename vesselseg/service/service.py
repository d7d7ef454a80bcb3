"""Request handling: decode the image, wait for the model, encode the response."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image
from starlette.requests import Request

from vesselseg import __version__
from vesselseg.imaging.frames import UnreadableInputError, open_frames
from vesselseg.inference.out_of_memory import is_out_of_memory
from vesselseg.inference.predictor import Prediction, Predictor
from vesselseg.machine import available_cores
from vesselseg.service.errors import ClientGone, ServiceError, busy
from vesselseg.service.guard import RequestInfo
from vesselseg.service.metrics import Metrics
from vesselseg.service.model_queue import MAX_REQUEST_PIXELS, ModelQueue, QueuedImage
from vesselseg.service.request_store import RequestStore
from vesselseg.service.schemas import FoundObject, Health, Limits, ModelDescription, Models, PredictAnswer
from vesselseg.service.settings import MAX_PHRASES, ServiceSettings
from vesselseg.service.uploads import Upload, read_upload, result_stem

_THREADS = min(16, max(2, available_cores()))  # decode images and encode responses
_COMPRESSION = 1  # PNG level: twice as fast as the default 6, files a tenth larger
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
        self._accept()
        try:
            upload = await read_upload(request)
            queue = self._queue(upload.form.model)
            phrases = _resolve_phrases(queue, upload)
            info.model = queue.name
            return await _unless_gone(request, self._answer(upload, phrases, queue, info))
        finally:
            self.accepted -= 1

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

    def _accept(self) -> None:
        if self.stopping:
            raise ServiceError(503, "stopping", "the service is being stopped; try again later", retry_after=10)
        if self.accepted >= self.settings.queue:
            raise busy(f"{self.accepted} requests are being served already; try again in a moment")
        self.accepted += 1

    def _queue(self, name: str | None) -> ModelQueue:
        name = name or next(iter(self.queues))
        if name not in self.queues:
            raise ServiceError(404, "unknown_model", f"no model {name[:80]!r}; available: {', '.join(self.queues)}")
        return self.queues[name]

    async def _answer(
        self, upload: Upload, phrases: tuple[str, ...], queue: ModelQueue, info: RequestInfo
    ) -> PredictAnswer:
        read = await self.in_thread(_decode, upload, len(phrases))
        picture = read.picture
        info.size = f"{picture.width}x{picture.height}x{len(phrases)}"
        entry = QueuedImage(picture, phrases)
        try:
            prediction = await asyncio.wrap_future(queue.put(entry))
        finally:
            queue.remove(entry)  # in case the client has disconnected
        if upload.form.threshold is not None:
            prediction = prediction.with_threshold(upload.form.threshold)
        if self._store is not None:
            await self.in_thread(self._store.write, info.request_id, upload, queue.name, picture, prediction)
        encoded, objects = await self.in_thread(_encode, picture, prediction)
        return PredictAnswer(
            request_id=info.request_id,
            model=queue.name,
            name=upload.name,
            width=picture.width,
            height=picture.height,
            frames=read.frames,
            frame=upload.form.frame,
            threshold=prediction.threshold,
            picture_png=encoded,
            stem=result_stem(upload.name, upload.form.frame if read.frames > 1 else None),
            labelme_opens=read.labelme_opens,
            notes=list(read.notes),
            objects=objects,
            seconds=round(time.perf_counter() - info.started, 4),
        )


def _resolve_phrases(queue: ModelQueue, upload: Upload) -> tuple[str, ...]:
    """The model's phrases for the request. Without one, a model that lacks the default phrase uses its first one."""
    phrases, refused = [], []
    for text in upload.form.phrase:
        try:
            phrases.append(queue.predictor.resolve_phrase(text))
        except ValueError as error:
            refused.append(str(error))
    if refused and queue.predictor.phrases and "phrase" not in upload.form.model_fields_set:
        return queue.predictor.phrases[:1]
    if refused:
        raise ServiceError(422, "unknown_phrase", f"{queue.name}: {'; '.join(refused[:3])}")
    return tuple(dict.fromkeys(phrases))


def _check_size(phrases: int, size: tuple[int, int]) -> None:
    """Raises ServiceError if a request has too many pixels. size: (width, height)."""
    width, height = size
    if width * height * phrases > MAX_REQUEST_PIXELS:
        raise ServiceError(
            413,
            "too_many_pixels",
            f"{width}x{height} pixels times {phrases} phrases; expected at most {MAX_REQUEST_PIXELS:,} together; "
            "send a smaller image or fewer phrases",
        )


@dataclass(frozen=True)
class _Read:
    """picture: the requested frame, 8-bit RGB; the other fields describe its file, see `FrameSource`."""

    picture: Image.Image
    frames: int
    notes: tuple[str, ...]
    labelme_opens: bool


def _decode(upload: Upload, phrases: int) -> _Read:
    """Decode the requested frame. phrases: their number. Raises ServiceError."""
    try:
        pictures = open_frames(upload.name, upload.content, partial(_check_size, phrases))
        _check_size(phrases, pictures.size)  # again after opening, since the size in a header may be wrong
        if upload.form.frame >= pictures.frames:
            raise ServiceError(
                422, "no_such_frame", f"frame {upload.form.frame}; the file has {pictures.frames}, counted from 0"
            )
        picture = pictures.frame(upload.form.frame)
        return _Read(picture, pictures.frames, pictures.notes, pictures.labelme_opens)
    except UnreadableInputError as error:
        raise ServiceError(422, "unreadable_image", str(error)) from None


def _encode(picture: Image.Image, prediction: Prediction) -> tuple[str, list[FoundObject]]:
    """(picture as base64 PNG, objects of the response)."""
    objects = [
        FoundObject(
            phrase=phrase,
            probability_png=_png(Image.fromarray(np.rint(probability * 255).astype(np.uint8))),
            pixels=int(mask.sum()),
            share=round(float(mask.mean()), 6),
        )
        for phrase, probability, mask in zip(prediction.phrases, prediction.probabilities, prediction.masks)
    ]
    return _png(picture), objects


def _png(image: Image.Image) -> str:
    """Base64 of a PNG without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=_COMPRESSION, exif=b"", icc_profile=None)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


async def _unless_gone(request: Request, work: Any) -> Any:
    """The result of a coroutine; cancels it and raises ClientGone if the client disconnects first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        gone.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
