"""A clip in, result files out: frame after frame, so that memory does not grow with the clip's length."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import overload

import numpy as np
from PIL import Image

from vesselseg.imaging.frames import FrameSource
from vesselseg.inference.predictor import Prediction
from vesselseg.predict.dicom_seg import SegmentationObject
from vesselseg.predict.result_files import OverlayVideo, ResultWriter, describe_prediction, overlay
from vesselseg.predict.result_folder import Entry, frame_name

_WAITING = 16  # frames that may wait to be written


class Frames(Sequence[Image.Image]):
    """A clip's frames, each read when it is asked for; the last few are kept. Threads may share it: one reads ahead of
    the model, another writes what was found.
    """

    def __init__(self, pictures: FrameSource, kept: int) -> None:
        self._pictures, self._kept = pictures, kept
        self._recent: OrderedDict[int, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def times(self) -> Sequence[float] | None:
        """Seconds of the frames, where the clip tells them."""
        return self._pictures.frame_times

    def __len__(self) -> int:
        return self._pictures.frames

    @overload
    def __getitem__(self, number: int) -> Image.Image: ...
    @overload
    def __getitem__(self, number: slice) -> list[Image.Image]: ...
    def __getitem__(self, number: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(number, slice):
            return [self[single] for single in range(*number.indices(len(self)))]
        with self._lock:
            found = self._recent.get(number)
        if found is None:  # read without the lock: who asks for another frame need not wait for it
            found = self._pictures.frame(number)
            with self._lock:
                self._recent[number] = found
                if len(self._recent) > self._kept:
                    self._recent.popitem(last=False)
        return found


@dataclass(frozen=True)
class _Written:
    """A frame's paths below the folder, its overlay for the video, and what was written of it."""

    paths: list[str]
    drawn: np.ndarray | None
    prediction: Prediction


class ClipWriter:
    """Writes each prediction of a clip as it comes; what was written is deleted where predicting or writing fails.

    Threads of `pool` refine, draw and write the frames, in any order; the video gets them in theirs.
    refine: what is done to a prediction before it is written.
    """

    def __init__(
        self,
        name: str,
        frames: Frames,
        writer: ResultWriter,
        segmentation: SegmentationObject | None,
        pool: ThreadPoolExecutor,
        refine: Callable[[Prediction], Prediction],
    ) -> None:
        self._name, self._frames, self._writer, self._refine = name, frames, writer, refine
        self._segmentation, self._pool = segmentation, pool
        self._video = OverlayVideo(writer.out, name, frames.times) if "overlay" in writer.kinds else None
        self._waiting: deque[Future[_Written]] = deque()
        self._outputs: list[str] = []
        self._found: list[Entry] = []

    def write(self, predictions: Iterable[Prediction]) -> tuple[list[Entry], list[str]]:
        """predictions: one per frame, in order. Returns (what was found per frame, paths below the folder)."""
        try:
            for number, prediction in enumerate(predictions):
                place = frame_name(self._name, number)
                self._waiting.append(self._pool.submit(self._write_frame, place, self._frames[number], prediction))
                self._settle(_WAITING)
            self._settle(0)
            if self._segmentation is not None:
                self._outputs.append(self._writer.write_dicom(self._name, self._segmentation.content()))
            if self._video is not None:
                self._video.close(finished=True)
                self._outputs.append(self._video.name)
        except BaseException:
            self._discard()
            raise
        return self._found, self._outputs

    def _write_frame(self, place: str, image: Image.Image, prediction: Prediction) -> _Written:
        refined = self._refine(prediction)
        drawn = overlay(image, refined) if self._video is not None else None
        return _Written(self._writer.write(place, image, None, refined, drawn), drawn, refined)

    def _settle(self, left: int) -> None:
        """Take in the oldest frames, until so many are still being written."""
        while len(self._waiting) > left:
            written = self._waiting.popleft().result()
            self._outputs += written.paths
            self._found.append(self._describe(len(self._found), written.prediction))
            if self._video is not None and written.drawn is not None:
                self._video.add(written.drawn)
            if self._segmentation is not None:
                self._segmentation.add(written.prediction.masks)

    def _describe(self, number: int, prediction: Prediction) -> Entry:
        times = self._frames.times
        time = None if times is None else round(times[number], 4)
        described = describe_prediction(prediction, "coco" in self._writer.kinds)
        return {"name": frame_name(self._name, number), "time": time, **described}

    def _discard(self) -> None:
        if self._video is not None:
            self._video.close(finished=False)
        for frame in self._waiting:
            if not frame.exception():
                self._outputs += frame.result().paths
        self._writer.remove(self._outputs)
