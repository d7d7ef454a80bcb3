"""A clip in, result files out, frame by frame: memory does not grow with the length of the clip."""

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

_MAX_PENDING = 16  # frames that may wait to be written


class Frames(Sequence[Image.Image]):
    """A clip's frames, read on access; the last `cache_size` are cached.

    Thread-safe: one thread reads ahead of the model while another writes results.
    """

    def __init__(self, pictures: FrameSource, cache_size: int) -> None:
        self._pictures, self._cache_size = pictures, cache_size
        self._recent: OrderedDict[int, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def times(self) -> Sequence[float] | None:
        """Time of each frame in seconds; None if the clip does not state it."""
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
            frame = self._recent.get(number)
        if frame is None:  # decoded without the lock, so that other threads can access other frames meanwhile
            frame = self._pictures.frame(number)
            with self._lock:
                self._recent[number] = frame
                if len(self._recent) > self._cache_size:
                    self._recent.popitem(last=False)
        return frame


@dataclass(frozen=True)
class _WrittenFrame:
    """Results of one frame."""

    paths: list[str]  # relative to the result folder
    overlay: np.ndarray | None  # for the video, (height, width, 3) uint8
    prediction: Prediction  # refined


class ClipWriter:
    """Writes the predictions of a clip as they arrive; deletes them again if predicting or writing fails.

    Threads of `pool` refine, draw and write frames in any order; the video receives them in frame order.
    refine: applied to a prediction before it is written. origin: frame, from 0 -> what its entry says of its file.
    """

    def __init__(
        self,
        name: str,
        frames: Frames,
        writer: ResultWriter,
        segmentation: SegmentationObject | None,
        pool: ThreadPoolExecutor,
        refine: Callable[[Prediction], Prediction],
        origin: Callable[[int], Entry],
    ) -> None:
        self._name, self._frames, self._writer, self._refine = name, frames, writer, refine
        self._origin = origin
        self._segmentation, self._pool = segmentation, pool
        self._video = OverlayVideo(writer.out, name, frames.times) if "overlay" in writer.kinds else None
        self._pending: deque[Future[_WrittenFrame]] = deque()
        self._outputs: list[str] = []
        self._entries: list[Entry] = []

    def write(self, predictions: Iterable[Prediction]) -> tuple[list[Entry], list[str]]:
        """predictions: one per frame, in order. Returns (entry per frame, paths relative to the result folder)."""
        try:
            for number, prediction in enumerate(predictions):
                name = frame_name(self._name, number)
                self._pending.append(self._pool.submit(self._write_frame, name, self._frames[number], prediction))
                self._collect(_MAX_PENDING)
            self._collect(0)
            if self._segmentation is not None:
                self._outputs.append(self._writer.write_dicom(self._name, self._segmentation.content()))
            if self._video is not None:
                self._video.close(finished=True)
                self._outputs.append(self._video.name)
        except BaseException:
            self._discard()
            raise
        return self._entries, self._outputs

    def _write_frame(self, name: str, image: Image.Image, prediction: Prediction) -> _WrittenFrame:
        refined = self._refine(prediction)
        drawn = overlay(image, refined) if self._video is not None else None
        return _WrittenFrame(self._writer.write(name, image, None, refined, drawn), drawn, refined)

    def _collect(self, left: int) -> None:
        """Collect written frames, oldest first, until only `left` are still being written."""
        while len(self._pending) > left:
            written = self._pending.popleft().result()
            self._outputs += written.paths
            self._entries.append(self._entry(len(self._entries), written.prediction))
            if self._video is not None and written.overlay is not None:
                self._video.add(written.overlay)
            if self._segmentation is not None:
                self._segmentation.add(written.prediction.masks)

    def _entry(self, number: int, prediction: Prediction) -> Entry:
        times = self._frames.times
        time = None if times is None else round(times[number], 4)
        described = describe_prediction(prediction, "coco" in self._writer.kinds)
        return {"name": frame_name(self._name, number), "time": time, **self._origin(number), **described}

    def _discard(self) -> None:
        if self._video is not None:
            self._video.close(finished=False)
        for frame in self._pending:
            if not frame.exception():
                self._outputs += frame.result().paths
        self._writer.remove(self._outputs)
