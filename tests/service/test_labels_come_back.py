"""A LabelMe file of the service becomes a dataset with exactly the image that was segmented."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.imaging.dicom_files import frames, write_dicom
from tests.imaging.test_frames import write_video
from tests.labelme_files import run
from tests.service.driven_page import Page
from tests.service.running import RunningService, assert_error, pixels_of, png
from tests.tiny import picture
from vesselseg.dataset.manifest import read_manifest
from vesselseg.dataset.record_masks import record_masks
from vesselseg.imaging.rgb import to_rgb


def clip(path: Path) -> None:
    write_dicom(path, frames(12), PatientID="77")


def deep(path: Path) -> None:
    values = np.asarray(picture(1, 70, 50).convert("L")).astype(np.uint16)
    Image.fromarray(values * 200 + 999).save(path)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1, 70, 50).save(path, exif=exif)


# file, function that writes it, frame, name of its labels, whether they embed the image
KINDS = [
    ("clip.dcm", clip, 5, "clip_f006", True),
    ("1.2.840.5", clip, 0, "1.2.840.5_f001", True),
    ("still.dcm", lambda path: write_dicom(path, frames(1, 4000), bits=12), 0, "still", True),
    ("run.avi", lambda path: write_video(path, 12), 7, "run_f008", True),
    ("run.webm", lambda path: write_video(path, 12, "VP80"), 7, "run_f008", True),
    ("deep.png", deep, 0, "deep", True),
    ("four.jpg", lambda path: picture(1, 70, 50).convert("CMYK").save(path), 0, "four", True),
    ("turned.jpg", turned, 0, "turned", False),
    ("LAO 30.bmp", lambda path: picture(1, 70, 50).save(path), 0, "LAO 30", False),
]


CASES = [(*kind, beside) for kind in KINDS for beside in (True, False) if beside or kind[-1]]


@pytest.mark.parametrize(("name", "write", "frame", "stem", "holds", "beside"), CASES)
def test_a_label_embeds_its_image(
    service: RunningService, tmp_path: Path, name: str, write: Callable[[Path], Any], frame: int, stem: str,
    holds: bool, beside: bool,
) -> None:  # fmt: skip
    source = tmp_path / "s" / name
    source.parent.mkdir()
    write(source)
    answer = service.predict(source.read_bytes(), name, frame=str(frame)).json()
    assert (answer["stem"], answer["labelme_opens"]) == (stem, not holds)
    segmented = pixels_of(answer["picture_png"])
    mask = np.zeros(segmented.shape[:2], bool)
    mask[10:20, 5:30] = True
    objects = [{"phrase": "vessel", "mask_png": base64.b64encode(png(Image.fromarray(mask).convert("L"))).decode()}]
    request = {"name": f"{stem}.png" if holds else name, "width": answer["width"], "height": answer["height"]}
    held = {"picture_png": answer["picture_png"]} if holds else {}
    label = service.post("/labelme", json={**request, **held, "objects": objects})
    assert label.status_code == 200, label.text
    assert (label.json()["imagePath"], bool(label.json()["imageData"])) == (request["name"], holds)
    (source.parent / f"{stem}.json").write_text(label.text)
    if not beside:
        source.unlink()
    run(source.parent, tmp_path / "o", salt=tmp_path / "salt")
    (record,) = read_manifest(tmp_path / "o")
    stored = Image.open(tmp_path / "o" / "images" / record.image)
    np.testing.assert_array_equal(np.asarray(to_rgb(stored)), segmented)
    np.testing.assert_array_equal(record_masks(record, *mask.shape)[0].astype(bool), mask)


def test_a_label_with_an_embedded_frame_needs_no_number(service: RunningService, tmp_path: Path) -> None:
    """Frame counts from 0 elsewhere in the source do not affect it, and it keeps the clip's patient."""
    pixels = frames(12)
    clip(tmp_path / "s" / "clip.dcm")
    answer = service.predict((tmp_path / "s" / "clip.dcm").read_bytes(), "clip.dcm", frame="5").json()
    request = {"name": "clip_f006.png", "width": answer["width"], "height": answer["height"], "objects": []}
    label = service.post("/labelme", json={**request, "picture_png": answer["picture_png"]})
    (tmp_path / "s" / "clip_f006.json").write_text(label.text)
    run(tmp_path / "s", tmp_path / "o", salt=tmp_path / "salt", first_frame=0)
    (record,) = read_manifest(tmp_path / "o")
    stored = np.asarray(Image.open(tmp_path / "o" / "images" / record.image).convert("L"))
    np.testing.assert_array_equal(stored, pixels[5])
    assert record.group


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ("%%%", "picture_png: no PNG in base64"),
        (base64.b64encode(png(picture(1, 9, 8))).decode(), "picture_png: 9x8 pixels, expected 8x8"),
        (base64.b64encode(png(picture(1, 8, 8))[:45]).decode(), "picture_png: no PNG in base64, or a damaged one"),
        (base64.b64encode(png(Image.new("I;16", (8, 8)))).decode(), "picture_png: a PNG of mode I;16"),
    ],
)
def test_images_that_cannot_be_embedded(service: RunningService, held: str, words: str) -> None:
    request = {"name": "a.png", "width": 8, "height": 8, "objects": [], "picture_png": held}
    assert_error(service.post("/labelme", json=request), 422, "invalid_request", words)


def test_labels_of_a_clip_saved_by_the_page(page: Page, tmp_path: Path) -> None:
    clip(tmp_path / "clip.dcm")
    page.open()
    page.choose(tmp_path / "clip.dcm")
    page.predict("p")
    for number in range(2, 7):
        page.browser.press(".")
        page.browser.wait(lambda: f"{number} of 12" in page.text("#facts"), "the next frame")  # noqa: B023
    page.idle()
    page.browser.press("l", "s")
    for name in ("clip_f006.json", "clip_f006_mask.png"):
        source, out = tmp_path / f"of {name}", tmp_path / f"from {name}"
        source.mkdir()
        (source / name).write_bytes(page.saved(name).read_bytes())
        (source / "clip.dcm").write_bytes((tmp_path / "clip.dcm").read_bytes())
        run(source, out, salt=tmp_path / "salt")
        (record,) = read_manifest(out)
        stored = np.asarray(Image.open(out / "images" / record.image).convert("L"))
        np.testing.assert_array_equal(stored, frames(12)[5])
    assert page.browser.errors() == []
