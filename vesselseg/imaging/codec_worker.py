"""The process that runs codecs on users' files: one that aborts, hangs or takes all memory ends this process only.

Started by `codec_process`. A line of JSON asks; a line of JSON with shape and type, and the values behind it, answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

import numpy as np

MEMORY = 4 << 30  # bytes of address space
Answer = tuple[dict[str, Any], np.ndarray]


def serve() -> None:
    """Answer until the other end closes: {"task", "seconds", "path", ...} -> {"dtype", "shape", ...} or {"error"}."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):  # codecs print what they find wrong
        os.dup2(nowhere, number)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, MEMORY)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends this process even within a codec
    for line in requests:
        request = json.loads(line)
        signal.alarm(request["seconds"])
        try:
            head, values = TASKS[request["task"]](request)
        except Exception as error:  # pydicom, Pillow and their decoders raise many types
            head, values = {"error": type(error).__name__}, np.empty(0)
        else:
            values = np.ascontiguousarray(values)
            head |= {"dtype": values.dtype.str, "shape": values.shape}
        answers.write(json.dumps(head).encode() + b"\n")
        answers.write(values.data)
        answers.flush()
        signal.alarm(0)


def decode_dicom_frame(request: dict[str, Any]) -> Answer:
    """index: of the frame. options: of pydicom's `pixel_array`, whose values these are."""
    from pydicom.pixels import pixel_array

    from vesselseg.imaging.warning_filters import suppress_warnings

    with suppress_warnings(), open(request["path"], "rb") as file:  # noqa: PTH123 - a Path would be resolved
        return {}, pixel_array(file, index=request["index"], **request["options"])


def decode_picture(request: dict[str, Any]) -> Answer:
    """Whether Pillow survives a picture; no values."""
    from PIL import Image

    from vesselseg.imaging.warning_filters import suppress_warnings

    with suppress_warnings(), Image.open(request["path"]) as image:
        image.load()
    return {}, np.empty(0)


def decode_video(request: dict[str, Any]) -> Answer:
    """whole: whether to decode it. The values are the time stamps of its frames, in seconds."""
    import cv2

    capture = cv2.VideoCapture(request["path"], cv2.CAP_FFMPEG)  # see `frames.VideoFrames`
    if not capture.isOpened():
        return {"opened": False}, np.empty(0)
    size = [round(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
    head = {"opened": True, "size": size, "rate": float(capture.get(cv2.CAP_PROP_FPS))}
    head["claimed"] = round(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    times = []
    while request["whole"] and capture.grab():
        times.append(float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000)
    return head, np.array(times, np.float64)


TASKS: dict[str, Callable[[dict[str, Any]], Answer]] = {
    "dicom": decode_dicom_frame,
    "picture": decode_picture,
    "video": decode_video,
}


def _limit(kind: int, most: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a lower one is set already
        resource.setrlimit(kind, (most, most))
