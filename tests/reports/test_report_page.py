"""The report in a real browser, opened as a file: pictures enlarge by mouse and keys, the table sorts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import LAPTOP, Browser
from tests.evaluation.drawn_data import Drawn
from vesselseg.dataset.manifest import read_manifest
from vesselseg.evaluation.evaluator import evaluate
from vesselseg.evaluation.prediction_sources import open_predictions
from vesselseg.reports.evaluation_report import write_evaluation

ENTER, ESCAPE, RIGHT = "\ue007", "\ue00c", "\ue014"
WIDTH = "return document.querySelector('#viewer img').getBoundingClientRect().width"
NAME = "return document.querySelector('#viewer .name').textContent"
FOCUS = "return [...document.querySelectorAll('button.zoom')].indexOf(document.activeElement)"
# the cells of a heading's column from top to bottom
COLUMN = """
const table = document.getElementById("items"), heads = [...table.tHead.rows[0].cells];
const column = heads.findIndex((head) => head.textContent.trim() === arguments[0]);
return [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
"""


@pytest.fixture
def page(browser: Browser, drawn: Drawn, mask_folder: Path, tmp_path: Path) -> Browser:
    source = open_predictions(mask_folder, read_manifest(drawn.folder))
    report = write_evaluation(evaluate(drawn.folder, "test", source), source, tmp_path / "out")
    browser.open(report.as_uri(), LAPTOP)
    return browser


def test_pictures_enlarge_by_mouse_and_keys(page: Browser) -> None:
    page.click("button.zoom")
    fitting = page.wait(lambda: page.run(WIDTH), "the picture")
    assert 400 < fitting <= LAPTOP[0]
    first = page.run(NAME)
    page.press("+")
    assert page.run(WIDTH) == pytest.approx(1.5 * fitting, rel=0.01)
    page.press("-")
    page.click("#viewer img")
    assert page.run(WIDTH) == pytest.approx(3 * fitting, rel=0.01)
    page.click("#viewer img")
    assert page.run(WIDTH) == pytest.approx(fitting, rel=0.01)
    page.press(RIGHT)
    assert page.wait(lambda: page.run(NAME) != first and page.run(NAME), "the next picture") != first
    page.press(ESCAPE)
    page.wait(lambda: page.run(FOCUS) == 1, "the focus on the picture that was seen last")
    assert not page.run("return document.getElementById('viewer').open")
    page.press(ENTER)
    page.wait(lambda: page.run("return document.getElementById('viewer').open"), "opening by a key")
    page.click("[data-action=close]")
    assert page.errors() == []


def test_leafing_and_closing_wait_for_no_picture(page: Browser) -> None:
    """However long one takes to be decoded: in one go, nothing is decoded in between."""
    keys = ("ArrowRight", "ArrowRight", "ArrowLeft")
    script = """
    const [first] = document.querySelectorAll("button.zoom"), viewer = document.getElementById("viewer");
    const leaf = (key) => viewer.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    first.click();
    viewer.close();
    first.click();
    arguments[0].forEach(leaf);
    """
    page.run(script, keys)
    second = page.run("return document.querySelectorAll('button.zoom img')[1].alt")
    page.wait(lambda: page.run(NAME) == second, "the picture that was asked for last")
    page.run("return new Promise((done) => setTimeout(done, 200))")  # and none of the others after it
    assert page.run(NAME) == second and 400 < page.run(WIDTH) <= LAPTOP[0]
    assert page.errors() == []


def test_a_heading_sorts_and_what_is_undefined_stays_last(page: Browser) -> None:
    for heading in ("Dice", "Recall, wide"):
        button = next(one for one in page.all("#items th button") if one.text == heading)
        page.run("arguments[0].click()", button)
        upwards = page.run(COLUMN, heading)
        page.run("arguments[0].click()", button)
        downwards = page.run(COLUMN, heading)
        for cells, falling in ((upwards, False), (downwards, True)):
            values = [float(cell) for cell in cells if cell != "–"]
            assert values == sorted(values, reverse=falling)
            assert cells[len(values) :] == ["–"] * (len(cells) - len(values))
    assert page.errors() == []
