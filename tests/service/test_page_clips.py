"""Clips on the page: preview, playing, prediction of all frames, masks as zip; and the window of the display."""

from __future__ import annotations

import base64
import csv
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser import Browser
from tests.imaging.dicom_files import write_dicom
from tests.service.driven_page import HEIGHT, WIDTH, Page, probabilities, steps
from tests.service.running import wait_until
from tests.service.test_batches import Watched
from tests.tiny import picture
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.service import clips
from vesselseg.service import service as service_module

HOME, END = "\ue011", "\ue010"
FRAMES = [picture(seed, WIDTH, HEIGHT).convert("L").convert("RGB") for seed in (5, 6, 7)]
CLIPS = 'vesselseg_requests_total{route="/clip",status="200"}'
SET = """
const slider = document.querySelector(arguments[0]);
slider.value = arguments[1];
slider.dispatchEvent(new Event("input", { bubbles: true }));
"""
SHOWN = "return document.querySelector('#stage .layers canvas')?.toDataURL() ?? ''"


@pytest.fixture
def cine(tmp_path: Path) -> Path:
    """FRAMES at 12.5 frames per second."""
    path = tmp_path / "cine.dcm"
    write_dicom(path, np.stack([np.asarray(frame.convert("L")) for frame in FRAMES]), FrameTime="80")
    return path


def shown_frame(page: Page) -> int | None:
    """The number of the frame whose pixels are on the stage."""
    content = page.browser.run(SHOWN).partition(",")[2]
    if not content:
        return None
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))
    return next((number for number, frame in enumerate(FRAMES) if np.array_equal(pixels, np.asarray(frame))), None)


def test_a_clip_is_previewed_played_predicted_and_saved(
    page: Page, cine: Path, image: Path, predictor: Sa2VAPredictor
) -> None:
    browser, service = page.browser, page.service
    images, clips = service.metric("vesselseg_batch_images_sum"), service.metric(CLIPS)
    page.open()
    page.choose(cine)
    browser.wait(lambda: shown_frame(page) == 0, "the preview")
    browser.wait(lambda: browser.all(".list .thumbnail canvas"), "the thumbnail")
    assert (page.text("#frame-count"), page.text("#frame-note")) == ("of 3", "from the file")
    assert browser.find("#rate").get_property("value") == "12.5"

    seen: set[int | None] = set()
    browser.press("k")
    browser.wait(lambda: seen.add(shown_frame(page)) or {0, 1, 2} <= seen, "every frame to be played")
    browser.press("k")
    for key, number in ((HOME, 0), (".", 1), (END, 2), (",", 1)):
        browser.press(key)
        browser.wait(lambda: shown_frame(page) == number, f"frame {number}")  # noqa: B023
    browser.run(SET, "#frame-slider", 3)
    browser.wait(lambda: shown_frame(page) == 2, "the frame of the slider")
    assert service.metric("vesselseg_batch_images_sum") == images, "looking at a clip needs no model"

    browser.press("c")
    page.idle()
    assert service.metric("vesselseg_batch_images_sum") == images + 3
    expected = [steps(probabilities(predictor, frame), 0.4) for frame in FRAMES]
    for number, key in enumerate((HOME, ".", ".")):
        browser.press(key)
        browser.wait(lambda: shown_frame(page) == number, f"frame {number}")  # noqa: B023
        assert np.array_equal(page.mask(), expected[number])
    browser.press("k")
    browser.wait(lambda: shown_frame(page) == 0 and browser.all(".overlays canvas"), "masks while it plays")
    browser.press("k")
    assert service.metric(CLIPS) == clips + 1

    page.choose(image)
    browser.click("#next")
    page.predict("p")
    browser.click("#save-all")
    with zipfile.ZipFile(page.saved("masks.zip")) as saved:
        assert saved.testzip() is None
        frames = [f"cine_f00{number}_mask.png" for number in (1, 2, 3)]
        assert saved.namelist() == [*frames, "LAO 30_mask.png", "masks.csv"]
        for name, mask in zip(frames, expected):
            assert np.array_equal(np.asarray(Image.open(saved.open(name))) == 255, mask)
        rows = list(csv.DictReader(io.TextIOWrapper(saved.open("masks.csv"), "utf-8")))
    assert [(row["file"], row["frame"]) for row in rows] == [
        *(("cine.dcm", str(n)) for n in (1, 2, 3)),
        (image.name, ""),
    ]
    assert [int(row["pixels"]) for row in rows[:3]] == [mask.sum() for mask in expected]
    assert browser.errors() == []


def test_a_clip_is_cancelled_and_predicted_again(
    browser: Browser,
    start: Callable[..., Any],
    predictor: Sa2VAPredictor,
    cine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a service that takes two frames per request, so that three need two."""
    for module in (clips, service_module):
        monkeypatch.setattr(module, "MAX_CLIP_FRAMES", 2)
    watched = Watched(predictor)
    with start({"tiny": watched}, rate=0) as service:
        page = Page(browser, service, tmp_path)
        page.open()
        page.choose(cine)
        browser.wait(lambda: shown_frame(page) == 0, "the preview")
        with watched.held():
            browser.click("#predict-clip")
            browser.wait(lambda: page.text(".list .sub") == "0 of 3 frames" and watched.batches, "the model")
            assert "0 of 3 frames" in page.text("#busy-words") and browser.find("#busy-bar").is_displayed()
            browser.click("#cancel")
            wait_until(lambda: service.metric('vesselseg_requests_total{route="/clip",status="499"}') == 1)
            assert page.text(".list .sub") == "not predicted" and not browser.find("#busy").is_displayed()
        browser.click("#predict-clip")
        page.idle()
        assert service.metric(CLIPS) == 2
        for key, frame in ((HOME, FRAMES[0]), (END, FRAMES[2])):
            browser.press(key)
            assert np.array_equal(page.mask(), steps(probabilities(predictor, frame), 0.4))
        assert browser.errors() == []


def test_the_window_changes_the_display_only(page: Page, image: Path) -> None:
    browser = page.browser

    def seen() -> np.ndarray:
        """Grey values (height, width) of the middle of the stage, as on the screen."""
        browser.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        box = browser.find("#stage").rect
        screen = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("L")
        x, y = round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2)
        return np.asarray(screen.crop((x - 100, y - 100, x + 100, y + 100)), float)

    page.open()
    page.choose(image)
    browser.wait(lambda: browser.run(SHOWN), "the image")
    plain, pixels = seen(), browser.run(SHOWN)
    for name, value in (("level", 40), ("width", 60)):
        browser.run(SET, f"#window-{name}", value)
    expected = np.clip((plain - 0.1 * 255) / 0.6, 0, 255)  # from 10 % to 70 % of the grey range
    assert np.abs(seen() - expected).max() <= 3 and np.abs(plain - expected).mean() > 10
    assert browser.run(SHOWN) == pixels and "model" in page.text("#window-row .note")
    browser.press("w")
    page.drag((30, 60), (90, 60))
    assert float(page.text("#window-width-shown").split()[0]) > 61 and page.text("#window-level-shown") == "40 %"
    browser.click("#window-reset")
    assert np.array_equal(seen(), plain) and not browser.find("#window-reset").is_enabled()
    assert browser.errors() == []
