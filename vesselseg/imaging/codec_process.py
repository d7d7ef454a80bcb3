"""Decode compressed DICOM frames in processes of their own, kept warm, with limits on memory and time.

A damaged JPEG can end the process that decodes it. Here it ends a worker, which is started again for the next frame.
"""

from __future__ import annotations

import atexit
import contextlib
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
from vesselseg.imaging.decode import ImageError

MOST = 4  # workers of one process; a service decodes several uploads at once
_START = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from vesselseg.imaging.codec_worker import serve
serve()"""
_ANSWER = 4096  # bytes; the line before the pixels is shorter


class CompressedFile:
    """A DICOM file whose frames are decoded in another process. source: a path or the file's bytes.

    Bytes stay in memory where the system allows it.
    """

    def __init__(self, source: Path | bytes) -> None:
        if isinstance(source, Path):
            self._path = str(source.absolute())
        elif hasattr(os, "memfd_create"):
            number = os.memfd_create("dicom")
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
        """The stored values, as pydicom's `pixel_array` gives them. Raises ImageError (bad_dicom).

        options: of `pixel_array`, in place of elements of the header.
        """
        with _pool.worker() as worker:
            return worker.decode(self._path, index, options or {})


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

    def decode(self, path: str, index: int, options: Mapping[str, Any]) -> np.ndarray:
        """See `CompressedFile.frame`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            request = {"path": path, "index": index, "options": dict(options)}
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            head: dict[str, Any] = json.loads(self.process.stdout.readline(_ANSWER) or "null") or {}
            if "shape" in head:
                values = np.empty(head["shape"], np.dtype(head["dtype"]))
                if self.process.stdout.readinto(values.data.cast("B")) == values.nbytes:  # type: ignore[attr-defined]
                    return values
        except (BrokenPipeError, ValueError):
            head = {}
        if "error" in head:
            raise ImageError("bad_dicom", f"damaged, truncated or not conforming ({head['error']})")
        raise ImageError("bad_dicom", self._why_it_ended())

    def _why_it_ended(self) -> str:
        self.process.kill()
        status = self.process.wait()
        if status == -signal.SIGALRM:
            return f"damaged: decoding one frame took more than {codec_worker.SECONDS} s"
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
