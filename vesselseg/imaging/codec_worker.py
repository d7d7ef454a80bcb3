"""The process that decodes compressed DICOM frames: a codec that aborts, hangs or takes all memory ends this one only.

Started by `codec_process`, which sends a line of JSON per frame and gets a line of JSON and the pixels back.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from typing import Any, BinaryIO

MEMORY = 4 << 30  # bytes of address space
SECONDS = 60  # for one frame


def serve() -> None:
    """Answer until the other end closes: {"path", "index", "options"} -> {"dtype", "shape"} and bytes, or {"error"}."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):  # codecs print what they find wrong
        os.dup2(nowhere, number)
    _limit(resource.RLIMIT_CORE, 0)
    import numpy as np
    from pydicom.pixels import pixel_array

    from vesselseg.imaging.warning_filters import suppress_warnings

    _limit(resource.RLIMIT_AS, MEMORY)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends this process even within a codec
    for line in requests:
        request = json.loads(line)
        signal.alarm(SECONDS)
        try:
            with suppress_warnings(), open(request["path"], "rb") as file:  # noqa: PTH123 - a Path would be resolved
                values = np.ascontiguousarray(pixel_array(file, index=request["index"], **request["options"]))
        except Exception as error:  # pydicom and its decoders raise many types
            _send(answers, {"error": type(error).__name__})
        else:
            _send(answers, {"dtype": values.dtype.str, "shape": values.shape}, values.data)
        signal.alarm(0)


def _send(answers: BinaryIO, head: dict[str, Any], body: Any = b"") -> None:
    answers.write(json.dumps(head).encode() + b"\n")
    answers.write(body)
    answers.flush()


def _limit(kind: int, most: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a lower one is set already
        resource.setrlimit(kind, (most, most))
