"""A codec that ends its process, hangs or takes all memory costs one frame, not the run."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.imaging.dicom_files import ABORTING, frames, write_jpeg_dicom
from tests.machine_speed import patience
from vesselseg.imaging import codec_process
from vesselseg.imaging.codec_process import SECONDS, UncheckedFile, _Worker, check_picture
from vesselseg.imaging.codec_worker import MEMORY
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
                UncheckedFile(ABORTING).frame(0)
            return True
        path, expected = files[number % len(files)]
        return np.array_equal(UncheckedFile(path).frame(0), expected)

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(read, range(16)))


def test_workers_stay_warm_and_have_limits(tmp_path: Path) -> None:
    write_jpeg_dicom(tmp_path / "a.dcm", frames())
    UncheckedFile(tmp_path / "a.dcm").frame(0)
    (worker, *_) = codec_process._pool._idle
    UncheckedFile(tmp_path / "a.dcm").frame(0)
    assert worker in codec_process._pool._idle and worker.works
    limits = Path(f"/proc/{worker.process.pid}/limits").read_text().splitlines()
    (memory,) = (line.split() for line in limits if line.startswith("Max address space"))
    assert memory[3:5] == [str(MEMORY), str(MEMORY)]


def test_the_time_limit_is_told() -> None:
    worker = _Worker()
    os.kill(worker.process.pid, signal.SIGALRM)  # what the alarm sends in the middle of a codec
    worker.process.wait()
    with pytest.raises(ImageError, match=f"took more than {SECONDS} s"):
        worker.ask("bad_dicom", {"task": "picture", "path": "/nowhere", "seconds": SECONDS})
    worker.close()


def test_a_worker_ends_with_the_process_that_asks() -> None:
    worker = _Worker()
    asked = {"task": "picture", "path": "/nowhere", "seconds": SECONDS}
    assert worker.ask("bad_dicom", asked)[0] == {"error": "FileNotFoundError"}
    assert worker.process.stdin is not None
    worker.process.stdin.close()  # as at the end of this process, however it ends
    end = time.monotonic() + patience(20)
    while worker.process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert worker.process.returncode == 0


def test_pictures_and_videos_go_through_the_worker_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a codec that aborts: no damaged TIFF or video is known that ends today's libraries."""
    tasks: list[str] = []

    def ending(self: _Worker, code: str, request: dict) -> tuple[dict, np.ndarray]:
        tasks.append(request["task"])
        os.kill(self.process.pid, signal.SIGSEGV)
        self.process.wait()
        return asked(self, code, request)

    asked = _Worker.ask
    image = Image.fromarray(frames()[0])
    image.save(tmp_path / "a.tif")
    image.save(tmp_path / "a.webp")
    image.save(tmp_path / "a.png")
    video = tmp_path / "a.avi"
    write_video(video)
    assert open_frames("a.avi", video).frames == 5
    monkeypatch.setattr(_Worker, "ask", ending)
    for path in (tmp_path / "a.tif", tmp_path / "a.webp", video):
        with pytest.raises(UnreadableInputError, match=r"its pixels end the decoder \(SIGSEGV\)"):
            open_frames(path.name, path)
    assert tasks == ["picture", "picture", "video"]
    open_frames("a.png", tmp_path / "a.png")
    assert len(tasks) == 3


def test_a_picture_of_too_much_memory_is_refused_by_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Worker, "ask", lambda *_: ({"error": "MemoryError"}, np.empty(0)))
    Image.new("L", (9, 9)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="takes more than 4 GiB"):
        check_picture(tmp_path / "a.tif")


def write_video(path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(5):
        writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    writer.release()
