"""The service's page in a real browser, with a real service and tiny models: everything is clicked once.

The page gets probabilities in 256 steps, so at a threshold t its mask may differ from the predictor's only where the
probability lies within half a step, 1/510, of t.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser import LAPTOP, Browser
from tests.labelme_files import run as prepared
from tests.service.driven_page import (
    HAND_OVER,
    HEIGHT,
    PAINTED,
    SLIDE,
    TOO_SMALL,
    UNNAMED,
    WIDTH,
    Page,
    pressed,
    probabilities,
    steps,
)
from vesselseg.dataset.manifest import read_manifest
from vesselseg.dataset.record_masks import record_masks
from vesselseg.inference.predictor import Predictor

HALF_STEP = 1 / 510
CONTROL, SHIFT, ESCAPE, RIGHT = "\ue009", "\ue008", "\ue00c", "\ue014"
SIZES = (LAPTOP, (1024, 768), (768, 1024))


def test_predict_threshold_and_overlay(page: Page, image: Path, predictor: Predictor) -> None:
    browser = page.browser
    page.open()
    page.choose(image)
    assert page.text(".list .sub") == "not predicted" and "not predicted yet" in page.text("#phrases")
    page.predict()
    expected = probabilities(predictor, image)
    shown = page.mask()
    assert np.array_equal(shown, steps(expected, 0.4)) and 0 < shown.mean() < 1
    different = shown != predictor.predict([Image.open(image).convert("RGB")], [["blood vessel"]])[0].masks[0]
    assert np.abs(expected[different] - 0.4).max(initial=0) <= HALF_STEP
    assert f"{shown.sum():,} px" in page.text("#phrases") and f"{100 * shown.mean():.2f} %" in page.text("#phrases")

    requests = len(browser.run("return performance.getEntriesByType('resource')"))
    for threshold in (0.55, np.round(float(np.median(expected)), 2)):
        browser.run(SLIDE, "tiny", str(threshold))
        assert np.array_equal(page.mask(), steps(expected, threshold))
        assert browser.find(".threshold-row .number").get_property("value") == f"{threshold:.2f}"
    browser.find(".threshold-row .number").click()
    page.chord(CONTROL, "a")
    browser.press("0", ".", "4", "5", "\n")
    assert np.array_equal(page.mask(), steps(expected, 0.45))
    browser.click(".threshold-row .link")
    assert np.array_equal(page.mask(), shown)
    assert len(browser.run("return performance.getEntriesByType('resource')")) == requests  # without any request

    browser.press("o")
    outline = page.mask()
    assert 0 < outline.sum() < shown.sum() and not (outline & ~shown).any()
    browser.press("o")
    browser.wait(lambda: browser.find("#legend").is_displayed(), "the heat map")
    browser.press("m")
    browser.wait(lambda: browser.run(PAINTED, 0) is None, "no mask")
    browser.press("m", "o")
    assert np.array_equal(page.mask(), shown) and not browser.find("#legend").is_displayed()
    hosts = browser.run(
        "return [...new Set(performance.getEntriesByType('resource').map((e) => new URL(e.name).origin))]"
    )
    assert hosts == [page.service.url]
    assert browser.errors() == []


def test_brush_eraser_undo_and_threshold(page: Page, image: Path, predictor: Predictor) -> None:
    browser = page.browser
    page.open()
    page.choose(image)
    page.predict("p")
    before = page.mask()
    browser.run(SLIDE, "tiny", "0.99")
    assert not page.mask().any()
    browser.press("b")
    page.drag((30, 30), (90, 30))
    drawn = page.mask()
    size = 10
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    away = np.hypot(x - np.clip(x, 30, 90), y - 30)
    assert drawn[away < size / 2 - 1].all() and not drawn[away > size / 2 + 1].any()

    browser.press("e")
    page.drag((60, 20), (60, 40))
    erased = page.mask()
    assert not (erased & ~drawn).any() and erased.sum() < drawn.sum() and not erased[25:36, 58:62].any()
    browser.run(SLIDE, "tiny", "0.4")  # corrections stay, the other pixels follow the threshold
    kept = page.mask()
    assert np.array_equal(kept[erased], np.ones(erased.sum())) and not kept[25:36, 58:62].any()
    far = (away > 8) & (np.abs(x - 60) > 8)
    assert np.array_equal(kept[far], before[far])

    browser.run(SLIDE, "tiny", "0.99")
    page.chord(CONTROL, "z")
    assert np.array_equal(page.mask(), drawn)
    browser.click("#undo")
    assert not page.mask().any() and not browser.find("#undo").is_enabled()
    page.chord(CONTROL, SHIFT, "z")
    browser.click("#redo")
    assert np.array_equal(page.mask(), erased)
    assert "not saved" in page.text(".list .sub") and "not saved yet" in page.text("#save-note")
    leaving = "const e = new Event('beforeunload', { cancelable: true }); dispatchEvent(e); return e.defaultPrevented"
    assert browser.run(leaving)
    browser.click(".list .remove")
    assert "unsaved corrections" in page.text("#sure-words")
    browser.click("#sure button[value=no]")
    browser.click("#save-mask")
    page.saved("LAO 30_mask.png")
    assert not browser.run(leaving)
    browser.click("#clear")
    assert not page.mask().any()
    browser.click("#undo")
    assert np.array_equal(page.mask(), erased)
    assert browser.errors() == []


def test_fingers_and_pens(page: Page, image: Path) -> None:
    browser = page.browser
    page.open((768, 1024))
    page.choose(image)
    page.predict("p")
    browser.run(SLIDE, "tiny", "0.99")
    browser.press("b")
    box = browser.find("#stage").rect
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        fingers = [{"x": middle[0] + x, "y": middle[1] + y, "id": place} for place, (x, y) in enumerate(points)]
        browser.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})

    touch("touchStart", (-60, 0))
    touch("touchMove", (0, 0))
    touch("touchMove", (60, 0))
    touch("touchEnd")
    drawn = page.mask()
    assert drawn.any() and browser.find("#undo").is_enabled()
    zoom = page.text("#zoom")
    touch("touchStart", (-40, 60))
    touch("touchStart", (-40, 60), (40, 60))
    touch("touchMove", (-80, 60), (80, 60))
    touch("touchMove", (-120, 60), (120, 60))
    touch("touchEnd")
    browser.wait(lambda: page.text("#zoom") != zoom, "the pinch to zoom")
    assert np.array_equal(page.mask(), drawn)  # the stroke of the first finger is undone

    browser.press("0")
    page.drag((20, 100), (130, 100), kind="pen")
    penned = page.mask()
    assert penned[100, 40:110].all() and not drawn[100, 40:110].any()
    where = "return document.querySelector('#stage .layers').style.transform"
    before = browser.run(where)
    touch("touchStart", (-60, -60))
    touch("touchMove", (0, -40))
    touch("touchMove", (40, -20))
    touch("touchEnd")
    assert np.array_equal(page.mask(), penned) and browser.run(where) != before  # now fingers pan
    assert browser.errors() == []


def test_two_models_compared(page: Page, image: Path, predictor: Predictor, other_predictor: Predictor) -> None:
    browser = page.browser
    page.open()
    page.choose(image)
    page.predict("p")
    browser.press("2")
    page.idle()
    one, other = probabilities(predictor, image), probabilities(other_predictor, image)
    browser.run(SLIDE, "tiny", "0.4")
    browser.run(SLIDE, "other", "0.5")
    masks = steps(one, 0.4), steps(other, 0.5)
    assert np.array_equal(page.mask(0), masks[0]) and np.array_equal(page.mask(1), masks[1])
    dice = 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
    assert f"Dice {dice:.3f}" in page.text("#agreement")
    browser.press("+", "+")
    transforms = "return [...document.querySelectorAll('.layers')].map((layers) => layers.style.transform)"
    first, second = browser.run(transforms)
    assert first == second and "scale" in first
    browser.press("0", "3")
    clips = "return [...document.querySelectorAll('.overlays canvas')].map((canvas) => canvas.style.clipPath)"
    before = browser.run(clips)
    assert len(before) == 2 and before[0] != before[1] and all("inset" in clip for clip in before)
    browser.run("document.querySelector('#divider').focus()")
    browser.press(RIGHT, RIGHT)
    assert browser.run(clips) != before and browser.find("#divider").get_attribute("aria-valuenow") == "54"
    browser.press("1")
    assert not browser.find("#divider").is_displayed() and not browser.find("#agreement").is_displayed()
    assert browser.errors() == []


def test_saved_files_equal_the_display(page: Page, image: Path, tmp_path: Path) -> None:
    browser = page.browser
    page.open()
    page.choose(image)
    browser.find("#phrase").send_keys("guide  wire\n")
    browser.press(ESCAPE)
    page.predict("p")
    assert [name.text.splitlines()[0] for name in browser.all(".phrase .name")] == ["blood vessel", "guide wire"]
    assert browser.run("return document.querySelectorAll('.phrase .share').length") == 2
    browser.click("[aria-label='Show guide wire']")
    browser.click("[data-phrase='blood vessel'] .name")
    browser.press("b")
    page.drag((20, 60), (130, 70))
    shown = page.mask()
    browser.press("s")
    mask = Image.open(page.saved("LAO 30_mask.png"))
    assert mask.mode == "L" and np.array_equal(np.asarray(mask) == 255, shown)
    assert set(np.unique(np.asarray(mask))) <= {0, 255}

    browser.press("S")
    overlay = np.asarray(Image.open(page.saved("LAO 30_overlay.png")).convert("RGB")).astype(int)
    plain = np.asarray(Image.open(image).convert("RGB")).astype(int)
    assert np.array_equal(overlay[~shown], plain[~shown])
    colour = np.array([0xFF, 0x5A, 0x4D])
    assert np.abs(overlay[shown] - (plain[shown] + colour) / 2).max() <= 2

    browser.press("l")
    label = page.saved("LAO 30.json")
    content = json.loads(label.read_text())
    assert (content["imagePath"], content["imageWidth"], content["imageHeight"]) == (image.name, WIDTH, HEIGHT)
    folder = tmp_path / "labelled"
    folder.mkdir()
    (folder / image.name).write_bytes(image.read_bytes())
    (folder / label.name).write_bytes(label.read_bytes())
    prepared(folder, tmp_path / "prepared")
    (record,) = read_manifest(tmp_path / "prepared")
    again = record_masks(record, HEIGHT, WIDTH)[0].astype(bool)
    assert (again & shown).sum() / (again | shown).sum() >= 0.98
    assert browser.errors() == []


def test_a_file_that_is_too_large_is_not_sent(page: Page, tmp_path: Path) -> None:
    large = tmp_path / "large.dcm"
    large.write_bytes(bytes(1_500_000))
    page.open()
    page.choose(large)
    page.predict("p")
    assert page.text("#message-words") == "large.dcm: 1.5 MB; this service accepts at most 1.0 MB."
    assert page.browser.errors() == []


def test_a_file_that_has_changed(page: Page, image: Path) -> None:
    page.open()
    page.choose(image)
    image.unlink()
    page.predict("p")
    assert "was changed or deleted" in page.text("#message-words")


def test_dropped_and_pasted(page: Page, image: Path) -> None:
    browser = page.browser
    text = base64.b64encode(image.read_bytes()).decode()
    page.open()
    browser.run(HAND_OVER, "drop", [["a.png", "image/png", text], ["b.png", "image/png", text]])
    browser.run(HAND_OVER, "paste", [["image.png", "image/png", text]])
    browser.wait(lambda: len(browser.all(".list .thumbnail canvas")) == 3, "three thumbnails")
    assert [name.text for name in browser.all(".list .name")] == ["a.png", "b.png", "image.png"]
    assert "3 of 3" in page.text("#position")
    browser.press("?")
    assert browser.find("#help").get_property("open")
    browser.press("b")
    assert browser.find("input[name=tool][value=move]").is_selected()  # no command behind a dialog
    browser.press(ESCAPE)
    for key, tool in (("b", "brush"), ("e", "eraser"), ("v", "move")):
        browser.press(key)
        assert browser.find(f"input[name=tool][value={tool}]").is_selected()
    browser.press("t")
    assert browser.run("return document.activeElement.className") == "threshold"
    assert browser.errors() == []


def test_predicting_immediately_after_a_drop(page: Page, image: Path) -> None:
    """In one script, so that the image cannot be decoded in between."""
    text = base64.b64encode(image.read_bytes()).decode()
    page.open()
    page.browser.run(f"{HAND_OVER}; {pressed('p')}", "drop", [["a.png", "image/png", text]])
    page.idle()
    assert page.mask().any()
    assert page.browser.errors() == []


def test_token(browser: Browser, start: Callable[..., Any], tmp_path: Path, image: Path) -> None:
    with start(token="a-token-of-enough-signs") as service:
        page = Page(browser, service, tmp_path)
        browser.open(f"{service.url}/")
        browser.wait(lambda: browser.find("#token").get_property("open"), "the question")
        browser.find("#token-input").send_keys("wrong\n")
        browser.wait(lambda: "refused" in page.text("#token-words"), "the refusal")
        browser.find("#token-input").send_keys("a-token-of-enough-signs\n")
        browser.wait(lambda: browser.all(".phrase"), "the models")
        page.choose(image)
        page.predict("p")
        assert page.mask().any()
        assert all("401" in line for line in browser.errors())
        browser.run("sessionStorage.clear()")
        page.open(end="#token=a-token-of-enough-signs")
        assert browser.run("return location.hash") == "" and not browser.find("#token").get_property("open")
        assert browser.errors() == []


@pytest.mark.parametrize("size", SIZES)
def test_it_fits_the_screen(page: Page, image: Path, size: tuple[int, int]) -> None:
    browser = page.browser
    page.open(size)
    page.choose(image)
    page.predict("p")
    browser.press("b")
    width, height = browser.run("return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert width == size[0] and (height == size[1] or size[0] < 860)
    assert "not for diagnosis" in page.text(".honest") and browser.find("#stage").rect["height"] > 0.4 * size[1]
    assert browser.run(TOO_SMALL) == []
    assert browser.run(UNNAMED) == []
    assert browser.errors() == []


def test_a_service_that_is_gone(browser: Browser, start: Callable[..., Any], tmp_path: Path, image: Path) -> None:
    with start() as service:
        page = Page(browser, service, tmp_path)
        page.open()
        page.choose(image)
    page.predict("p")
    assert "does not respond" in page.text("#message-words") and browser.find("#retry").is_displayed()
    assert all("ERR_CONNECTION_REFUSED" in line for line in browser.errors())


def test_a_phrase_goes_with_its_corrections(page: Page, image: Path) -> None:
    browser = page.browser
    page.open()
    page.choose(image)
    browser.find("#phrase").send_keys("stent\n")
    browser.press(ESCAPE)
    page.predict("p")
    browser.press("b")
    page.drag((20, 60), (130, 70))
    browser.click("[aria-label='Remove the phrase stent']")
    assert "stent" in page.text("#sure-words") and image.name in page.text("#sure-words")
    browser.click("#sure button[value=yes]")
    browser.wait(lambda: len(browser.all(".phrase")) == 1, "the phrase to go")
    assert not browser.find("#undo").is_enabled() and page.mask().any()
    assert browser.errors() == []
