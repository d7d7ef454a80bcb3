"""Many frames of one upload: pictures by /frames, predictions by /clip, as lines that arrive one by one."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.cines import cine_frames
from tests.imaging.dicom_files import write_dicom
from tests.imaging.test_frames import write_video
from tests.service.running import RunningService, assert_error, pixels_of, png, wait_until
from tests.service.test_batches import Watched
from tests.tiny import picture
from vesselseg.inference.cine import segment_cine
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.service import clips, json_lines

FRAMES = [frame.convert("L").convert("RGB") for frame in cine_frames(5, 90, 70)]


@pytest.fixture
def cine(tmp_path: Path) -> bytes:
    """A clip of FRAMES at 12.5 frames per second."""
    path = tmp_path / "run.dcm"
    write_dicom(path, np.stack([np.asarray(frame.convert("L")) for frame in FRAMES]), FrameTime="80")
    return path.read_bytes()


def lines_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def send(service: RunningService, path: str, content: bytes, name: str = "run.dcm", **form: Any) -> httpx.Response:
    return service.post(path, files={"image": (name, content)}, data=form)


def test_pictures_of_all_frames(service: RunningService, cine: bytes) -> None:
    images = service.metric("vesselseg_batch_images_sum")
    header, *frames = lines_of(send(service, "/frames", cine))
    expected = {"name": "run.dcm", "width": 90, "height": 70, "frames": 5, "first": 0, "count": 5, "frame_rate": 12.5}
    expected |= {"instance": "1.2.3.4"}
    assert {key: header[key] for key in expected} == expected and header["model"] is None
    assert [line["frame"] for line in frames] == [0, 1, 2, 3, 4] and frames[4]["stem"] == "run_f005"
    for line, frame in zip(frames, FRAMES):
        np.testing.assert_array_equal(pixels_of(line["picture_png"]), np.asarray(frame))
    assert service.metric("vesselseg_batch_images_sum") == images, "decoding needs no model"


def test_the_first_frame_of_anything_is_a_preview(service: RunningService, cine: bytes, tmp_path: Path) -> None:
    header, frame = lines_of(send(service, "/frames", cine, count="1"))
    assert (header["frames"], header["count"], frame["frame"]) == (5, 1, 0)
    header, frame = lines_of(send(service, "/frames", png(picture(1)), "a.png"))
    assert (header["frames"], header["frame_rate"], header["instance"], frame["stem"]) == (1, None, None, "a")
    header, *frames = lines_of(
        send(service, "/frames", write_video(tmp_path / "a.avi", 12).read_bytes(), "a.avi", first="9")
    )
    assert header["frames"] == 12 and header["frame_rate"] > 1 and [line["frame"] for line in frames] == [9, 10, 11]


def test_predictions_equal_those_of_a_cine_run(service: RunningService, predictor: Sa2VAPredictor, cine: bytes) -> None:
    phrases = ["blood vessel", "catheter"]
    header, *frames = lines_of(send(service, "/clip", cine, phrase=phrases, first="1", count="3", pictures="false"))
    assert (header["model"], header["threshold"], header["first"], header["count"]) == ("tiny", 0.4, 1, 3)
    for line, direct in zip(frames, list(segment_cine(predictor, FRAMES, phrases))[1:4], strict=True):
        assert line["picture_png"] is None and [item["phrase"] for item in line["objects"]] == phrases
        for item, probability, mask in zip(line["objects"], direct.probabilities, direct.masks):
            np.testing.assert_allclose(pixels_of(item["probability_png"]), probability * 255, atol=1)
            assert item["pixels"] == pytest.approx(mask.sum(), abs=2)


def test_lines_arrive_while_the_model_is_busy_with_the_next(
    start: Callable[..., Any], predictor: Sa2VAPredictor, cine: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a client that leaves ends the work on its clip."""

    class Stalling(Watched):
        def run(self, requests: Any, threshold: float | None = None) -> Any:
            if len(self.batches) == 2:
                self.may_go.clear()
            return super().run(requests, threshold)

    monkeypatch.setattr(clips, "_MAX_IN_PROGRESS", 2)
    watched = Stalling(predictor)
    with start({"tiny": watched}, batch=1, wait_ms=0) as service:
        url = f"{service.url}/clip"
        with httpx.stream("POST", url, files={"image": ("run.dcm", cine)}, timeout=60) as answer:
            lines = answer.iter_lines()
            assert json.loads(next(lines))["count"] == 5
            assert [json.loads(next(lines))["frame"] for _ in range(2)] == [0, 1]
            assert service.service.accepted == 1
        try:
            gone = 'vesselseg_requests_total{route="/clip",status="499"}'
            wait_until(lambda: service.metric(gone) == 1 and service.service.accepted == 0)
            assert service.metric("vesselseg_queue_length") == 0
        finally:
            watched.may_go.set()
        assert watched.batches in ([1, 1], [1, 1, 1])  # the third frame of five may have begun, no later one
        assert service.predict(png(picture(1))).status_code == 200


def test_a_client_that_does_not_read_loses_its_place(
    start: Callable[..., Any], predictor: Sa2VAPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "SEND_TIMEOUT_S", 0.5)
    noise = np.random.default_rng(0).integers(0, 256, (400, 160, 160)).astype(np.uint8)
    write_dicom(tmp_path / "noise.dcm", noise)  # more than the buffers of a connection
    with start() as service, socket.socket() as connection:
        files = {"image": ("noise.dcm", (tmp_path / "noise.dcm").read_bytes())}
        request = httpx.Request("POST", f"{service.url}/frames", files=files)
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", service.port))
        connection.sendall(f"POST /frames HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        wait_until(lambda: service.metric('vesselseg_requests_total{route="/frames",status="499"}') == 1)
        assert service.service.accepted == 0


def test_a_failure_in_the_middle_is_the_last_line(
    start: Callable[..., Any], predictor: Sa2VAPredictor, cine: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Watched):
        def run(self, requests: Any, threshold: float | None = None) -> Any:
            if len(self.batches) == 2:
                raise RuntimeError("secret words of a defect")
            return super().run(requests, threshold)

    with start({"tiny": Failing(predictor)}, batch=1) as service:
        header, *frames, last = lines_of(send(service, "/clip", cine))
        assert [line["frame"] for line in frames] == [0, 1] and header["count"] == 5
        error = last["error"]
        assert error["code"] == "internal" and error["request_id"] == header["request_id"] and "secret" not in str(last)
        assert service.metric('vesselseg_requests_total{route="/clip",status="500"}') == 1
        wait_until(lambda: service.service.accepted == 0)


def test_a_clip_waits_for_a_full_queue(
    start: Callable[..., Any], predictor: Sa2VAPredictor, cine: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vesselseg.service.model_queue._MAX_WAITING_PIXELS", 90 * 70)
    with start({"tiny": Watched(predictor)}, batch=1, wait_ms=0) as service:
        assert len(lines_of(send(service, "/clip", cine))) == 6


@pytest.mark.parametrize(
    ("form", "status", "code", "words"),
    [
        ({"first": "5"}, 422, "no_such_frame", "the file has 5"),
        ({"first": "3", "count": "3"}, 422, "no_such_frame", "frame 5; the file has 5"),
        ({"count": "0"}, 422, "invalid_request", "count"),
        ({"count": "4"}, 413, "too_many_frames", "expected at most 3 per request"),
        ({"frame": "1"}, 422, "invalid_request", "frame: unknown field"),
    ],
)
def test_what_is_refused(
    service: RunningService,
    cine: bytes,
    monkeypatch: pytest.MonkeyPatch,
    form: dict[str, str],
    status: int,
    code: str,
    words: str,
) -> None:
    """Before the first line, as an ordinary error."""
    monkeypatch.setattr(clips, "MAX_CLIP_FRAMES", 3)
    for path in ("/frames", "/clip"):
        assert_error(send(service, path, cine, **form), status, code, words)
    assert service.service.accepted == 0


def test_wrong_files_and_models(service: RunningService, cine: bytes) -> None:
    for path in ("/frames", "/clip"):
        assert_error(send(service, path, b"no dicom"), 422, "unreadable_image", "not a DICOM file")
        assert_error(service.post(path, json={}), 415, "unsupported_type")
        assert_error(send(service, path, bytes(1_100_000)), 413, "too_large")
    assert_error(send(service, "/clip", cine, model="none"), 404, "unknown_model")
    assert_error(send(service, "/frames", cine, phrase="vessel"), 422, "invalid_request", "phrase: unknown field")


def test_kept_clips_are_a_folder_per_frame(
    start: Callable[..., Any], predictor: Sa2VAPredictor, cine: bytes, tmp_path: Path
) -> None:
    with start(keep=tmp_path / "kept") as service:
        options: dict[str, Any] = {"files": {"image": ("run.dcm", cine)}, "headers": {"X-Request-ID": "mine"}}
        assert len(lines_of(service.post("/clip", data={"first": "3"}, **options))) == 3
        assert len(lines_of(service.post("/frames", **options))) == 6
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["mine_f004", "mine_f005"]
    assert json.loads((tmp_path / "kept/mine_f005/request.json").read_text())["frame"] == 4
