"""Clips: the pictures or the predictions of many frames of one upload, one after another.

Every frame waits in the model's queue like a single image, so its result is that of `/predict`, and clips share batches
with other clients. Only a few frames of a clip are in memory at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from PIL import Image
from pydantic import BaseModel
from starlette.requests import Request

from vesselseg.imaging.frames import FrameSource, frame_rate
from vesselseg.inference.out_of_memory import BATCH_PIXELS
from vesselseg.inference.predictor import Prediction
from vesselseg.service.errors import ServiceError
from vesselseg.service.guard import RequestInfo
from vesselseg.service.model_queue import ModelQueue, QueuedImage
from vesselseg.service.pictures import check_frame, encode_objects, encode_png, instance_of, open_upload, read_frame
from vesselseg.service.schemas import ClipForm, ClipHeader, FrameLine, FramesForm
from vesselseg.service.service import Service, predicted
from vesselseg.service.settings import MAX_CLIP_FRAMES
from vesselseg.service.uploads import Upload, read_upload, result_stem

_MAX_IN_PROGRESS = 16  # frames of one clip: they precede later images of other clients in the queue
_ENCODED_AT_ONCE = 4  # pictures of /frames
_RETRY_S = 0.25  # a frame of an accepted clip waits for space in the queue
_Lines = AsyncGenerator[BaseModel, None]


@dataclass(frozen=True)
class _Clip:
    """The requested frames of an opened upload."""

    upload: Upload[FramesForm]
    pictures: FrameSource
    numbers: range
    info: RequestInfo

    @property
    def pixels(self) -> int:
        width, height = self.pictures.size
        return width * height

    def header(self, model: str | None = None, threshold: float | None = None) -> ClipHeader:
        """The first line."""
        width, height = self.pictures.size
        return ClipHeader(
            request_id=self.info.request_id,
            name=self.upload.name,
            width=width,
            height=height,
            frames=self.pictures.frames,
            first=self.numbers.start,
            count=len(self.numbers),
            frame_rate=frame_rate(self.pictures.frame_times),
            model=model,
            threshold=threshold,
            labelme_opens=self.pictures.labelme_opens,
            notes=list(self.pictures.notes),
            instance=instance_of(self.pictures),
        )

    def stem(self, number: int) -> str:
        return result_stem(self.upload.name, number if self.pictures.frames > 1 else None)

    def seconds(self) -> float:
        return round(time.perf_counter() - self.info.started, 4)


async def frame_lines(service: Service, request: Request, info: RequestInfo) -> _Lines:
    """A `ClipHeader`, then the requested frames as pictures. Raises ServiceError."""
    with service.accepting():
        clip = await _open(service, await read_upload(request, FramesForm), 1, info)
        yield clip.header()

        async def encode(number: int, picture: Image.Image) -> FrameLine:
            encoded = await service.in_thread(encode_png, picture)
            return FrameLine(
                frame=number, stem=clip.stem(number), picture_png=encoded, objects=[], seconds=clip.seconds()
            )

        async with aclosing(_in_order(service, clip, encode, _ENCODED_AT_ONCE)) as lines:
            async for line in lines:
                yield line


async def clip_lines(service: Service, request: Request, info: RequestInfo) -> _Lines:
    """A `ClipHeader`, then the predictions of the requested frames. Raises ServiceError."""
    with service.accepting():
        upload = await read_upload(request, ClipForm)
        form = upload.form
        queue, phrases = service.question(form)
        info.model = queue.name
        clip = await _open(service, upload, len(phrases), info)
        yield clip.header(queue.name, queue.predictor.threshold if form.threshold is None else form.threshold)

        async def predict(number: int, picture: Image.Image) -> FrameLine:
            prediction = await _predicted(queue, picture, phrases, form.threshold)
            stem = clip.stem(number)
            await service.keep(
                f"{info.request_id}_f{number + 1:03d}", upload.name, number, queue.name, picture, prediction
            )
            encoded = await service.in_thread(encode_png, picture) if form.pictures else None
            objects = await service.in_thread(encode_objects, prediction)
            return FrameLine(frame=number, stem=stem, picture_png=encoded, objects=objects, seconds=clip.seconds())

        at_once = min(_MAX_IN_PROGRESS, max(1, BATCH_PIXELS // (clip.pixels * len(phrases))))
        async with aclosing(_in_order(service, clip, predict, at_once)) as lines:
            async for line in lines:
                yield line


async def _open(service: Service, upload: Upload[FramesForm], phrases: int, info: RequestInfo) -> _Clip:
    pictures = await service.in_thread(open_upload, upload, phrases)
    first, count = upload.form.first, upload.form.count
    check_frame(pictures, first)
    last = pictures.frames if count is None else first + count
    if last > pictures.frames:
        check_frame(pictures, last - 1)
    if last - first > MAX_CLIP_FRAMES:
        raise ServiceError(
            413,
            "too_many_frames",
            f"{last - first} frames; expected at most {MAX_CLIP_FRAMES} per request; send first and count",
        )
    width, height = pictures.size
    info.size = f"{width}x{height}x{phrases}x{last - first}"
    return _Clip(upload, pictures, range(first, last), info)


async def _in_order(
    service: Service, clip: _Clip, finish: Callable[[int, Image.Image], Awaitable[FrameLine]], at_once: int
) -> AsyncGenerator[FrameLine, None]:
    """Decode the frames in order, which a video needs, and finish up to `at_once` of them concurrently."""
    pending: deque[asyncio.Future[FrameLine]] = deque()
    try:
        for number in clip.numbers:
            if len(pending) == at_once:
                yield await pending.popleft()
            picture = await service.in_thread(read_frame, clip.pictures, number)
            pending.append(asyncio.ensure_future(finish(number, picture)))
        while pending:
            yield await pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _predicted(
    queue: ModelQueue, picture: Image.Image, phrases: tuple[str, ...], threshold: float | None
) -> Prediction:
    while True:
        try:
            return await predicted(queue, QueuedImage(picture, phrases), threshold)
        except ServiceError as error:
            if error.code != "busy":
                raise
        await asyncio.sleep(_RETRY_S)
