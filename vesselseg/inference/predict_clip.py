"""A clip in, result files out: frame after frame, so that memory does not grow with the clip's length."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import overload

from PIL import Image

from vesselseg.inference.dicom_seg import SegmentationObject
from vesselseg.inference.pictures import Pictures
from vesselseg.inference.predictor import Prediction
from vesselseg.inference.result_files import OverlayVideo, ResultWriter, describe_prediction, overlay
from vesselseg.inference.result_folder import Entry, frame_name

_WAITING = 16  # frames that may wait to be written


class Frames(Sequence[Image.Image]):
    """A clip's frames, each read when it is asked for; the last few are kept. Threads may share it: one reads ahead of
    the model, another writes what was found.
    """

    def __init__(self, pictures: Pictures, kept: int) -> None:
        self._pictures, self._kept = pictures, kept
        self._recent: OrderedDict[int, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

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


def write_clip(
    name: str,
    frames: Frames,
    times: Sequence[float] | None,
    predictions: Iterator[Prediction],
    writer: ResultWriter,
    kinds: Sequence[str],
    segmentation: SegmentationObject | None,
    pool: ThreadPoolExecutor,
) -> tuple[list[Entry], list[str]]:
    """Write each prediction as it comes. Returns (what was found per frame, paths below the folder).

    What was written is deleted where predicting or writing fails.
    """
    video = OverlayVideo(writer.out, name, times) if "overlay" in kinds else None
    waiting: deque[Future[list[str]]] = deque()
    found: list[Entry] = []
    outputs: list[str] = []
    finished = False
    try:
        for number, prediction in enumerate(predictions):
            image, place = frames[number], frame_name(name, number)
            waiting.append(pool.submit(writer.write, place, image, None, prediction))
            time = None if times is None else round(times[number], 4)
            found.append({"name": place, "time": time, **describe_prediction(prediction, "coco" in kinds)})
            if video is not None:
                video.add(overlay(image, prediction))
            if segmentation is not None:
                segmentation.add(prediction.masks)
            while len(waiting) > _WAITING:
                outputs += waiting.popleft().result()
        outputs += [path for written in waiting for path in written.result()]
        if segmentation is not None:
            outputs.append(writer.write_dicom(name, segmentation.content()))
        finished = True
    finally:
        if video is not None:
            video.close(finished)
        if not finished:
            outputs += [path for written in waiting if not written.exception() for path in written.result()]
            for path in outputs:
                (writer.out / path).unlink(missing_ok=True)
    return found, outputs + ([video.name] if video is not None else [])
