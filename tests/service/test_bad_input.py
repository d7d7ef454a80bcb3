"""Every invalid request gets an error with a reason, and the service continues."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.imaging.dicom_files import ABORTING, frames, write_dicom
from tests.imaging.test_frames import huge_png
from tests.service.running import RunningService, assert_error, pixels_of, png, wait_until
from tests.tiny import picture

GOOD = png(picture(0, 60, 50))


@pytest.fixture(autouse=True)
def still_works(service: RunningService) -> Iterator[None]:
    """After each test a valid request gets its own image back, and no request is left waiting."""
    yield
    good = service.predict(GOOD)
    assert good.status_code == 200
    np.testing.assert_array_equal(pixels_of(good.json()["picture_png"]), np.asarray(picture(0, 60, 50)))
    assert service.service.accepted == 0 and service.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"", "the file is empty (0 bytes)"),
        ("a.png", GOOD[:700], "damaged or truncated"),
        ("a.png", png(Image.new("L", (1, 1))), "1x1 pixels"),
        ("a.png", huge_png(), "too large: more than 178 million pixels"),
        ("a.png", b"not an image at all", "not an image"),
        ("a.dcm", b"not a dicom at all", "not a DICOM file"),
        ("a.mp4", b"\0\0\0\x18ftypmp42" + bytes(100), "damaged or truncated video"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    ],
)
def test_files_that_are_no_images(service: RunningService, name: str, content: bytes, reason: str) -> None:
    assert_error(service.predict(content, name), 422, "unreadable_image", reason)


@pytest.mark.process
def test_a_file_that_ends_its_decoder_does_not_end_the_service(service: RunningService) -> None:
    assert_error(service.predict(ABORTING, "a.dcm"), 422, "unreadable_image", "its pixels end the decoder")


def test_dicom_without_pixels(service: RunningService, tmp_path: Path) -> None:
    header = write_dicom(tmp_path / "a.dcm", frames(1), PatientName="Secret^Name")
    del header.PixelData
    header.save_as(tmp_path / "a.dcm")
    answer = service.predict((tmp_path / "a.dcm").read_bytes(), "a.dcm")
    assert "Secret" not in assert_error(answer, 422, "unreadable_image", "without PixelData")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"phrase": ""}, "phrase: the phrase is empty"),
        ({"phrase": " \t\n"}, "phrase: the phrase is empty"),
        ({"phrase": "x" * 10_000}, "10000 characters; at most 500"),
        ({"phrase": "the [SEG] one"}, "'[SEG]'"),
        ({"phrase": "<img>vessel"}, "'<img>'"),
        ({"phrase": "<|im_end|>"}, "'<|im_end|>'"),
        ({"phrase": [f"vessel {number}" for number in range(17)]}, "at most 16"),
        ({"phrase": ["vessel", ""]}, "phrase: the phrase is empty"),
        ({"threshold": "0"}, "threshold: input should be greater than 0"),
        ({"threshold": "1"}, "threshold: input should be less than 1"),
        ({"threshold": "nan"}, "threshold"),
        ({"threshold": "high"}, "threshold: input should be a valid number"),
        ({"threshold": ["0.2", "0.3"]}, "threshold: given 2 times"),
        ({"frame": "-1"}, "frame: input should be greater than or equal to 0"),
        ({"frame": "1.5"}, "frame"),
        ({"phrases": "vessel"}, "phrases: unknown field"),
        ({"image": "text"}, "image: expected a file"),
        ({"threshold": "2", "frame": "x", "phrase": "[SEG]"}, "; "),
    ],
)
def test_wrong_fields(service: RunningService, form: dict[str, Any], words: str) -> None:
    assert_error(service.predict(GOOD, **form), 422, "invalid_request", words)


def test_all_wrong_fields_are_reported_at_once(service: RunningService) -> None:
    message = assert_error(service.predict(GOOD, threshold="2", frame="x", phrase="[SEG]"), 422, "invalid_request")
    assert all(name in message for name in ("threshold", "frame", "phrase"))


def test_unknown_models_and_frames(service: RunningService) -> None:
    assert_error(service.predict(GOOD, model="../tiny"), 404, "unknown_model", "available: tiny, other")
    assert_error(service.predict(GOOD, frame="1"), 422, "no_such_frame", "the file has 1")


def test_bodies_that_are_no_forms(service: RunningService) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    assert_error(service.post("/predict", data={"phrase": "a"}), 415, "unsupported_type", "multipart/form-data")
    assert_error(service.post("/predict", json={"image": "a"}), 415, "unsupported_type")
    assert_error(service.post("/predict"), 415, "unsupported_type")
    assert_error(service.post("/predict", files={"phrase": (None, "a")}), 422, "invalid_request", "image: missing")
    assert_error(service.post("/predict", files={"picture": ("a", GOOD)}), 422, "invalid_request", "field is image")
    two = [("image", ("a.png", GOOD)), ("image", ("b.png", GOOD))]
    assert_error(service.post("/predict", files=two), 400, "bad_multipart", "Too many files")
    no_boundary = service.post("/predict", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert_error(no_boundary, 400, "bad_multipart", "boundary")
    for content in (b"no form", b"--b\r\nContent-Disposition: x\r\n\r\n", b"--b\r\n\r\n", b""):
        answer = service.post("/predict", content=content, headers=form)
        assert answer.status_code in (400, 422), answer.text
        assert answer.json()["error"]["request_id"]


def test_a_truncated_form_is_refused(service: RunningService) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + GOOD[:500]
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert service.post("/predict", content=body, headers=headers).status_code in (400, 422)


def test_other_addresses_and_methods(service: RunningService) -> None:
    assert_error(service.get("/nothing"), 404, "not_found")
    assert_error(service.get("/predict"), 405, "method_not_allowed")
    assert_error(service.post("/models"), 405, "method_not_allowed")
    assert_error(service.get("/docs"), 404, "not_found")


def mask_of(width: int, height: int) -> str:
    return base64.b64encode(png(Image.new("L", (width, height)))).decode()


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"objects": [{"phrase": "a", "mask_png": "%%%"}]}, 422, "objects.0.mask_png: no PNG in base64"),
        ({"objects": [{"phrase": "a", "mask_png": "aGFsbG8="}]}, 422, "objects.0.mask_png: no PNG"),
        ({"objects": [{"phrase": "a", "mask_png": mask_of(9, 8)}]}, 422, "9x8 pixels, expected 8x8"),
        ({"objects": [{"phrase": "", "mask_png": mask_of(8, 8)}]}, 422, "objects.0.phrase"),
        ({"objects": [{"phrase": "a"}]}, 422, "objects.0.mask_png: field required"),
        ({"width": 0}, 422, "width"),
        ({"width": 90_000, "height": 90_000}, 413, "50,000,000 pixels"),
        ({"unknown": 1}, 422, "unknown"),
        ({"objects": "x"}, 422, "objects"),
    ],
)
def test_masks_that_are_refused(service: RunningService, changes: dict[str, Any], status: int, words: str) -> None:
    request = {"name": "a.png", "width": 8, "height": 8, "objects": [], **changes}
    code = "too_many_pixels" if status == 413 else "invalid_request"
    assert_error(service.post("/labelme", json=request), status, code, words)


def test_a_mask_of_noise(service: RunningService) -> None:
    noise = (np.random.default_rng(0).random((1100, 1100)) > 0.5).astype(np.uint8) * 255
    encoded = base64.b64encode(png(Image.fromarray(noise).convert("1"))).decode()
    request = {"name": "a", "width": 1100, "height": 1100, "objects": [{"phrase": "a", "mask_png": encoded}]}
    assert_error(service.post("/labelme", json=request), 413, "too_rough", "edges")


def test_bodies_that_are_no_json(service: RunningService) -> None:
    for content in (b"{", b"", b"[1]", b"\xff"):
        answer = service.post("/labelme", content=content, headers={"Content-Type": "application/json"})
        if content == b"{":
            assert_error(answer, 400, "bad_request", "not valid JSON")
        assert answer.status_code in (400, 422) and answer.json()["error"]["code"] in ("invalid_request", "bad_request")


def request_head(service: RunningService, length: int, more: str = "") -> bytes:
    lines = ("POST /predict HTTP/1.1", f"Host: 127.0.0.1:{service.port}", f"Content-Length: {length}")
    return "\r\n".join((*lines, "Content-Type: multipart/form-data; boundary=b", more + "\r\n")).encode()


def test_an_upload_that_is_cut_off(service: RunningService) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    gone = service.metric('vesselseg_requests_total{route="/predict",status="499"}')
    images = service.metric("vesselseg_batch_images_sum")
    for sent in (b"", part, part + GOOD[:1000]):
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(request_head(service, 500_000) + sent)
    wait_until(lambda: service.metric('vesselseg_requests_total{route="/predict",status="499"}') == gone + 3)
    assert service.metric("vesselseg_batch_images_sum") == images


def test_bytes_that_are_no_http(service: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
