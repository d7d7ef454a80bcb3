"""Valid requests and their responses."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.imaging.dicom_files import frames, write_dicom
from tests.imaging.test_frames import bar_of, write_video
from tests.service.running import RunningService, assert_error, pixels_of, png
from tests.tiny import picture
from vesselseg.imaging.rasterise import rasterise
from vesselseg.inference.predictor import Predictor

PHRASES = ["blood vessel", "catheter"]


def test_the_response_equals_the_prediction(service: RunningService, predictor: Predictor) -> None:
    image = picture(3, 90, 70)
    answer = service.predict(png(image), "C:\\folder\\süß.png", phrase=PHRASES)
    assert answer.status_code == 200, answer.text
    found, direct = answer.json(), predictor.predict([image], [PHRASES])[0]
    about = {"model": "tiny", "name": "süß.png", "width": 90, "height": 70, "frames": 1, "frame": 0, "threshold": 0.4}
    assert {key: found[key] for key in about} == about and found["notes"] == []
    assert found["request_id"] == answer.headers["x-request-id"] and 0 < found["seconds"] < 60
    np.testing.assert_array_equal(pixels_of(found["picture_png"]), np.asarray(image))
    assert [item["phrase"] for item in found["objects"]] == PHRASES
    for item, probability, mask in zip(found["objects"], direct.probabilities, direct.masks):
        np.testing.assert_allclose(pixels_of(item["probability_png"]), probability * 255, atol=0.51)
        assert (item["pixels"], item["share"]) == (mask.sum(), pytest.approx(mask.mean(), abs=1e-6))


def test_model_and_threshold_are_chosen(service: RunningService, other_predictor: Predictor) -> None:
    image = picture(4)
    found = service.predict(png(image), model="other", threshold="0.55").json()
    direct = other_predictor.predict([image], [["blood vessel"]], 0.55)[0]
    assert (found["model"], found["threshold"]) == ("other", 0.55)
    assert found["objects"][0]["pixels"] == direct.masks.sum() > 0
    assert service.predict(png(image), model="other").json()["threshold"] == 0.6


def test_phrases_are_cleaned_and_unique(service: RunningService) -> None:
    found = service.predict(png(picture(5)), phrase=["  vessel", "vessel ", "a\n b"]).json()
    assert [item["phrase"] for item in found["objects"]] == ["vessel", "a b"]


def test_a_frame_of_a_dicom_clip(service: RunningService, tmp_path: Path) -> None:
    values = frames(3)
    write_dicom(tmp_path / "a.dcm", values, PatientName="Secret^Name")
    content = (tmp_path / "a.dcm").read_bytes()
    answer = service.predict(content, "export", frame="2")
    found = answer.json()
    assert (found["frames"], found["frame"]) == (3, 2) and "Secret" not in answer.text
    np.testing.assert_array_equal(pixels_of(found["picture_png"])[..., 0], values[2])
    assert_error(service.predict(content, frame="3"), 422, "no_such_frame", "the file has 3")


def test_frames_of_videos(service: RunningService, tmp_path: Path) -> None:
    found = service.predict(write_video(tmp_path / "one.avi", 1).read_bytes(), "one.avi").json()
    assert (found["frames"], found["frame"]) == (1, 0)
    found = service.predict(write_video(tmp_path / "a.avi", 12).read_bytes(), "a.avi", frame="7").json()
    assert found["frames"] == 12
    assert bar_of(Image.fromarray(pixels_of(found["picture_png"]))) == pytest.approx(14, abs=1)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_mode_is_read(service: RunningService, mode: str) -> None:
    grey = picture(1, 40, 30).convert("L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200) if mode == "I;16" else grey.convert(mode)
    answer = service.predict(png(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert pixels_of(found["picture_png"]).shape == (30, 40, 3)
    assert bool(found["notes"]) == (mode in ("RGBA", "I;16"))


def test_an_image_is_turned_upright_and_its_exif_is_left_out(service: RunningService) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "Secret Name"
    found = service.predict(png(picture(1, 40, 30), "JPEG", exif=exif), "a.jpg").json()
    assert (found["width"], found["height"]) == (30, 40) and "orientation" in found["notes"][0]
    assert pixels_of(found["objects"][0]["probability_png"]).shape == (40, 30)


def test_masks_become_a_labelme_file(service: RunningService) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:30] = 255
    mask[50:55, 5:60] = 128
    mask[0:8, 70:80] = 127
    encoded = base64.b64encode(png(Image.fromarray(mask))).decode()
    request = {"name": "../x/a.png", "width": 80, "height": 60, "objects": [{"phrase": "vessel", "mask_png": encoded}]}
    answer = service.post("/labelme", json=request)
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert (content["imagePath"], content["imageWidth"], content["imageHeight"]) == ("a.png", 80, 60)
    assert [shape["label"] for shape in content["shapes"]] == ["vessel", "vessel"]
    regions = [np.ravel(shape["points"]).tolist() for shape in content["shapes"]]
    np.testing.assert_array_equal(rasterise(regions, 60, 80), mask > 127)
    assert service.post("/labelme", json={**request, "objects": []}).json()["shapes"] == []


def test_models_health_and_page(service: RunningService) -> None:
    found = service.get("/models").json()
    assert found["models"] == [
        {"name": "tiny", "kind": "sa2va", "threshold": 0.4, "phrases": None},
        {"name": "other", "kind": "sa2va", "threshold": 0.6, "phrases": None},
    ]
    assert found["limits"]["max_bytes"] == 1_000_000 and found["limits"]["phrases"] == 16
    assert service.get("/health").json()["status"] == "ok"
    page = service.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|style=", page.text), "inline code is refused"
    for name in re.findall(r'(?:src|href)="/?static/([^"]+)"', page.text):
        assert service.get(f"/static/{name}").status_code == 200, name
    for name in ("service.html.j2", "..%2fapp.py", "browse.js", "service_none.js"):
        assert_error(service.get(f"/static/{name}"), 404, "not_found")


def test_flipped_copies_are_averaged(start: Callable[..., Any], predictor: Predictor) -> None:
    with start(tta="flips") as flipping:
        found = flipping.predict(png(picture(4))).json()["objects"][0]
    expected = predictor.predict([picture(4)], [["blood vessel"]], flips=True)[0].probabilities[0] * 255
    np.testing.assert_allclose(pixels_of(found["probability_png"]), expected, atol=1)
    plain = predictor.predict([picture(4)], [["blood vessel"]])[0].probabilities[0] * 255
    assert np.abs(plain - expected).max() > 3


def test_metrics(service: RunningService) -> None:
    before = service.metric("vesselseg_batch_images_sum")
    assert service.predict(png(picture(6))).status_code == 200
    assert service.metric("vesselseg_batch_images_sum") == before + 1
    assert service.metric("vesselseg_queue_seconds_count") == service.metric("vesselseg_batch_images_sum")
    assert service.metric("vesselseg_queue_length") == 0
    assert service.metric("process_resident_memory_bytes") > 1e7
    text = service.get("/metrics").text
    assert re.search(r'vesselseg_requests_total\{route="/predict",status="200"\} \d', text)
    assert service.get("/a-patients-name").status_code == 404
    assert "patients-name" not in service.get("/metrics").text


def test_openapi_describes_forms_responses_and_errors(service: RunningService) -> None:
    content = service.get("/openapi.json").json()
    predict = content["paths"]["/predict"]["post"]
    form = predict["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["image"] and form["properties"]["image"]["format"] == "binary"
    assert set(form["properties"]) == {"image", "phrase", "model", "threshold", "frame"}
    error = {"$ref": "#/components/schemas/ErrorAnswer"}
    for status in ("400", "404", "413", "415", "422", "429", "500", "503"):
        assert predict["responses"][status]["content"]["application/json"]["schema"] == error
    assert predict["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/PredictAnswer")
    text = json.dumps(content)
    assert "HTTPValidationError" not in text and "x-request-id" not in content["paths"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= set(content["components"]["schemas"])


def test_kept_folders_hold_image_and_results(
    start: Callable[..., Any], predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, rename = picture(7), Path.rename

    def whole(building: Path, target: Path) -> Path:
        assert not target.exists() or any(target.iterdir()), "a folder appears only when it is complete"
        return rename(building, target)

    monkeypatch.setattr(Path, "rename", whole)
    with start(keep=tmp_path / "kept") as service:
        for _ in range(2):
            answer = service.predict(png(image), "a.png", {"X-Request-ID": "mine"}, threshold="0.45")
            assert answer.status_code == 200 and answer.json()["request_id"] == "mine"
        assert_error(service.predict(b"", headers={"X-Request-ID": "bad"}), 422, "unreadable_image")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["mine", "mine-2"]
    folder = tmp_path / "kept" / "mine"
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "image.png")), np.asarray(image))
    mask = predictor.predict([image], [["blood vessel"]], 0.45)[0].masks[0]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "masks/image.png")) > 0, mask)
    labelme = json.loads((folder / "labelme/image.json").read_text())
    assert (folder / "labelme" / labelme["imagePath"]).resolve() == folder / "image.png"
    assert json.loads((folder / "request.json").read_text())["name"] == "a.png"
    assert Image.open(io.BytesIO((folder / "probabilities/image.png").read_bytes())).mode == "I;16"
