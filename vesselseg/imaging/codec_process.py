"""Run codecs on users' files in processes of their own, kept warm, with limits on memory and time.

A damaged file can end the process that decodes it. Here it ends a worker, which is started again for the next file.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vesselseg.imaging import codec_worker
from vesselseg.imaging.image_error import ImageError

MOST = 4  # workers of one process; a service decodes several uploads at once
_START = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from vesselseg.imaging.codec_worker import serve
serve()"""
SECONDS = 60  # for one frame or picture
VIDEO_SECONDS = 900  # for all frames of a video
# What Pillow decodes by libraries that a damaged file can end: TIFF, WebP, JPEG 2000.
_RISKY = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"RIFF", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")
_PIPE = 1 << 20  # bytes
_ANSWER = 4096  # bytes; the line before the pixels is shorter


class UncheckedFile:
    """A user's file that codecs run on in another process. source: a path or the file's bytes.

    Bytes stay in memory where the system allows it.
    """

    def __init__(self, source: Path | bytes) -> None:
        if isinstance(source, Path):
            self._path = str(source.absolute())
        elif hasattr(os, "memfd_create"):
            number = os.memfd_create("vesselseg")
            weakref.finalize(self, os.close, number)
            with os.fdopen(os.dup(number), "wb") as file:
                file.write(source)
            self._path = f"/proc/{os.getpid()}/fd/{number}"
        else:
            self._copy = tempfile.NamedTemporaryFile(prefix="vesselseg_")  # noqa: SIM115 - deleted with this object
            self._copy.write(source)
            self._copy.flush()
            self._path = self._copy.name

    def frame(self, index: int, options: Mapping[str, Any] | None = None) -> np.ndarray:
        """Stored values of a DICOM frame, as pydicom's `pixel_array`. Raises ImageError (bad_dicom).

        options: of `pixel_array`, in place of elements of the header.
        """
        head, values = self._ask("bad_dicom", SECONDS, task="dicom", index=index, options=dict(options or {}))
        if "error" in head:
            raise ImageError("bad_dicom", f"damaged, truncated or not conforming ({head['error']})")
        return values

    def check_picture(self) -> None:
        """Raise ImageError (unreadable_image) for a picture that ends its decoder; what is else wrong shows later."""
        head, _ = self._ask("unreadable_image", SECONDS, task="picture")
        if head.get("error") == "MemoryError":
            raise ImageError("unreadable_image", f"takes more than {codec_worker.MEMORY >> 30} GiB")

    def video(self, whole: bool) -> tuple[dict[str, Any], list[float]]:
        """What a video's header says (see `codec_worker.decode_video`), and times of its frames if it is decoded whole.

        Raises ImageError (unreadable_image).
        """
        head, times = self._ask("unreadable_image", VIDEO_SECONDS, task="video", whole=whole)
        return head, times.tolist()

    def _ask(self, code: str, seconds: int, **request: Any) -> tuple[dict[str, Any], np.ndarray]:
        with _pool.worker() as worker:
            return worker.ask(code, {"path": self._path, "seconds": seconds, **request})


def check_picture(source: Path | bytes) -> None:
    """See `UncheckedFile.check_picture`; formats whose decoders do not abort (PNG, JPEG and the like) pass at once."""
    if isinstance(source, bytes):
        start = source[:8]
    else:
        with source.open("rb") as file:
            start = file.read(8)
    if start.startswith(_RISKY):
        UncheckedFile(source).check_picture()


class _Worker:
    """One process. Only one thread uses it at a time."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux: a frame fits in, and is handed over at once
            with contextlib.suppress(OSError):
                fcntl.fcntl(self.process.stdout, fcntl.F_SETPIPE_SZ, _PIPE)  # type: ignore[arg-type]

    def ask(self, code: str, request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
        """The answer, with `error` in it if the file could not be read. Raises ImageError(code) for a worker's end."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            head: dict[str, Any] = json.loads(self.process.stdout.readline(_ANSWER) or "null") or {}
            if "error" in head:
                return head, np.empty(0)
            if "shape" in head:
                values = np.empty(head["shape"], np.dtype(head["dtype"]))
                if not values.nbytes or self._read(values) == values.nbytes:
                    return head, values
        except (BrokenPipeError, ValueError):  # it ended before or within its answer
            pass
        raise ImageError(code, self._why_it_ended(request["seconds"]))

    def _read(self, values: np.ndarray) -> int:
        return int(self.process.stdout.readinto(values.data.cast("B")))  # type: ignore

    def _why_it_ended(self, seconds: int) -> str:
        self.process.kill()
        status = self.process.wait()
        if status == -signal.SIGALRM:
            return f"damaged: decoding took more than {seconds} s"
        return f"damaged: its pixels end the decoder ({_signal_name(status)})"

    @property
    def works(self) -> bool:
        """Whether it can be asked again; a process that was forked meanwhile has no right to the pipes."""
        return self.owner == os.getpid() and self.process.poll() is None

    def close(self) -> None:
        """End the process."""
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe and pipe.close()


class _Pool:
    """Workers that wait for work. They start when they are needed."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(MOST)

    @contextlib.contextmanager
    def worker(self) -> Iterator[_Worker]:
        with self._places:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None or not worker.works:
                if worker is not None:
                    worker.close()
                worker = _Worker()
            try:
                yield worker
            except ImageError:  # an answer, or the worker's end: then it does not work any more
                raise
            except BaseException:  # interrupted in between: what is in the pipes belongs to no question
                worker.close()
                raise
            finally:
                with self._lock:
                    if worker.works:
                        self._idle.append(worker)

    def close(self) -> None:
        """At the end of this process."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()


_pool = _Pool()
atexit.register(_pool.close)
if hasattr(os, "register_at_fork"):  # locks may be held by threads that the child does not have

    def _renew() -> None:
        global _pool
        _pool = _Pool()

    os.register_at_fork(after_in_child=_renew)


def _signal_name(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"status {status}"
