"""A codec that ends its process, hangs or takes all memory costs one frame, not the run."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.imaging.dicom_files import ABORTING, frames, write_jpeg_dicom
from tests.machine_speed import patience
from vesselseg.imaging import codec_process
from vesselseg.imaging.codec_process import CompressedFile, _Worker
from vesselseg.imaging.codec_worker import MEMORY, SECONDS
from vesselseg.imaging.decode import ImageError
from vesselseg.imaging.frames import UnreadableInputError, open_frames

pytestmark = pytest.mark.process
ENDED = r"its pixels end the decoder \(SIG"


def test_a_damaged_file_is_refused_and_the_next_one_is_read(tmp_path: Path) -> None:
    expected = write_jpeg_dicom(tmp_path / "good.dcm", frames(3))
    (tmp_path / "bad.dcm").write_bytes(ABORTING)
    for _ in range(2):
        for bad in (tmp_path / "bad.dcm", ABORTING):
            with pytest.raises(UnreadableInputError, match=ENDED):
                open_frames("bad.dcm", bad)
        for good in (tmp_path / "good.dcm", (tmp_path / "good.dcm").read_bytes()):
            opened = open_frames("good.dcm", good)
            for number in (2, 0, 1):
                np.testing.assert_array_equal(np.asarray(opened.frame(number))[..., 0], expected[number])


def test_a_file_that_ends_decoders_costs_no_other_one_its_frames(tmp_path: Path) -> None:
    files = []
    for number in range(6):
        files.append((tmp_path / f"{number}.dcm", write_jpeg_dicom(tmp_path / f"{number}.dcm", frames(seed=number))[0]))

    def read(number: int) -> bool:
        if number % 4 == 3:
            with pytest.raises(ImageError, match=ENDED):
                CompressedFile(ABORTING).frame(0)
            return True
        path, expected = files[number % len(files)]
        return np.array_equal(CompressedFile(path).frame(0), expected)

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(read, range(16)))


def test_workers_stay_warm_and_have_limits(tmp_path: Path) -> None:
    write_jpeg_dicom(tmp_path / "a.dcm", frames())
    CompressedFile(tmp_path / "a.dcm").frame(0)
    (worker, *_) = codec_process._pool._idle
    CompressedFile(tmp_path / "a.dcm").frame(0)
    assert worker in codec_process._pool._idle and worker.works
    limits = Path(f"/proc/{worker.process.pid}/limits").read_text().splitlines()
    (memory,) = (line.split() for line in limits if line.startswith("Max address space"))
    assert memory[3:5] == [str(MEMORY), str(MEMORY)]


def test_the_time_limit_is_told() -> None:
    worker = _Worker()
    os.kill(worker.process.pid, signal.SIGALRM)  # what the alarm sends in the middle of a codec
    worker.process.wait()
    with pytest.raises(ImageError, match=f"took more than {SECONDS} s"):
        worker.decode("/nowhere", 0)
    worker.close()


def test_a_worker_ends_with_the_process_that_asks() -> None:
    worker = _Worker()
    with pytest.raises(ImageError, match="FileNotFoundError"):
        worker.decode("/nowhere", 0)
    assert worker.process.stdin is not None
    worker.process.stdin.close()  # as at the end of this process, however it ends
    end = time.monotonic() + patience(20)
    while worker.process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert worker.process.returncode == 0
