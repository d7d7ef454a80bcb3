"""The page with several files and a clip: what it shows and requests while the user changes frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.service.driven_page import HOLD, LET_GO, Page, pressed

RIGHT = "\ue014"


def test_many_files_frames_and_reasons(page: Page, image: Path, clip: Path, tmp_path: Path) -> None:
    browser = page.browser
    cut = tmp_path / "cut.png"
    cut.write_bytes(image.read_bytes()[:300])
    page.open()
    page.choose(clip, cut, image)
    page.predict("P")
    assert [row.text for row in browser.all(".list .sub")][1] == "failed"
    browser.click("#next")
    reason = page.service.predict(cut.read_bytes(), "cut.png").json()["error"]["message"]
    assert browser.wait(lambda: page.text("#message-words")) == f"cut.png: {reason}"
    assert len(page.text("#message-id code")) == 16 and browser.find("#retry").is_displayed()
    browser.click("#retry")
    page.idle()
    assert reason in page.text("#message-words")
    browser.press(RIGHT)
    browser.wait(lambda: not browser.find("#message").is_displayed() and browser.all(".overlays canvas"))
    assert not browser.find("#frames").is_displayed()

    browser.all(".list .row")[0].click()
    browser.wait(lambda: browser.find("#frames").is_displayed() and page.text("#frame-count") == "of 3", "the frames")
    shown = page.mask()
    count = "setTimeout(() => done(document.querySelectorAll('.overlays canvas').length))"
    assert (
        browser.run(f"{pressed('.')}; return new Promise((done) => {count})") == 0
    )  # and not a frame's mask on the next
    browser.wait(lambda: "2 of 3" in page.text("#facts"), "the second frame")
    assert not np.array_equal(page.mask(), shown)
    browser.press(",")
    assert np.array_equal(page.mask(), shown)
    assert all("422" in line for line in browser.errors())


def test_the_frame_requested_last_is_shown(page: Page, clip: Path) -> None:
    """However long other frames take to decode."""
    browser, painted = page.browser, "return document.querySelector('#stage .layers canvas').toDataURL()"
    page.open()
    page.choose(clip)
    page.predict("p")
    first = browser.run(painted)
    browser.run(HOLD, "window", "createImageBitmap")
    browser.press(".")
    browser.wait(lambda: browser.run("return held.length"), "the second frame")
    browser.press(",")
    browser.run(LET_GO)
    assert browser.run(painted) == first
    browser.press(".")
    assert browser.run(painted) != first
    assert browser.errors() == []


def test_a_new_frame_does_not_wait_for_earlier_ones(page: Page, clip: Path) -> None:
    browser = page.browser
    page.open()
    page.choose(clip)
    page.predict("p")
    browser.run(HOLD, "File.prototype", "arrayBuffer")
    for number in (1, 2):
        browser.press(".")
        browser.wait(lambda: browser.run("return held.length") == number, "the file to be read")  # noqa: B023
    browser.run(LET_GO)
    browser.wait(lambda: "3 of 3" in page.text("#facts"), "the third frame")
    assert browser.errors() == []
