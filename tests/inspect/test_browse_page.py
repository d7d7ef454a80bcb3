"""The page of vesselseg browse in a real browser, served by the tool: every control is used once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from tests.browser import LAPTOP, TABLET, Browser
from tests.command_line import command
from tests.inspect.browsed import BROKEN, FILLERS, HEIGHT, MISSING, ODD, WIDTH, write_browsed
from tests.machine_speed import patience
from vesselseg.models.tiny_base import write_tiny_base

ALL = 9 + FILLERS
RIGHT, LEFT, END, HOME, ESCAPE, TAB = "\ue014", "\ue012", "\ue010", "\ue011", "\ue00c", "\ue004"
# red, green, blue and alpha of the pixel (x, y) of a layer of the stage
PIXELS = """
const [layer, x, y] = arguments;
const seen = new OffscreenCanvas(1, 1).getContext("2d");
seen.drawImage(document.querySelectorAll("#layers canvas")[layer], -x, -y);
return [...seen.getImageData(0, 0, 1, 1).data];
"""


@pytest.fixture(scope="module")
def url(browser: Browser, tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[str]:
    """Where the tool serves the page: its config's base folder lies where the tool is started."""
    here = tmp_path_factory.mktemp("page")
    write_browsed(here / "data")
    write_tiny_base(here / "weights" / "tiny_base")
    browse = command("browse", "data", "--no-open", "--config", repository / "configs" / "tiny_cpu.py")
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    with subprocess.Popen(
        browse, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tool:
        assert tool.stdout and tool.stderr
        assert tool.stdout.readline() == f"data: {ALL} images of {4 + FILLERS // 4} groups\n"
        opened = tool.stdout.readline()
        assert opened.startswith("open http://127.0.0.1:"), tool.stderr.read()
        yield opened.split()[1]
        while state_of_config(opened.split()[1]) == "loading":  # a signal may end an import in any words
            time.sleep(0.1)
        tool.send_signal(signal.SIGINT)
        try:
            assert tool.wait(timeout=patience(60)) == 130
        finally:
            tool.kill()
        assert tool.stderr.read() == "interrupted\n"


def state_of_config(url: str) -> str:
    with urlopen(f"{url}api/model") as answer:
        return str(json.load(answer)["state"])


def text(browser: Browser, selector: str) -> str:
    """The text of an element, read by one script, since the panel is redrawn continually."""
    return str(browser.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


def shows(browser: Browser, name: str) -> bool:
    """Whether picture and panel are those of an image."""
    label = browser.find("#stage").get_attribute("aria-label") or ""
    return label.startswith(name) and text(browser, "#panel h2") == name


def names(browser: Browser) -> list[str]:
    """The names in the visible rows, from top to bottom."""
    script = """return [...document.querySelectorAll(".row")].sort((a, b) => a.offsetTop - b.offsetTop)
        .map((row) => row.querySelector(".name").textContent)"""
    return list(browser.run(script))


def choose(browser: Browser, selector: str, value: str) -> None:
    """Choose an option of a select box as a user does."""
    from selenium.webdriver.support.select import Select

    Select(browser.find(selector)).select_by_value(value)


def address(browser: Browser) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(browser.driver.current_url).fragment).items()}


def test_browsing_and_masks(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.wait(lambda: shows(browser, "first.png"), "the first image")
    assert text(browser, "#totals") == f"{ALL} images · {4 + FILLERS // 4} groups · 4 with findings"
    labels = "return [...document.querySelectorAll('#panel .object label')].map((label) => label.innerText.trim())"
    assert browser.run(labels) == ["blood vessel", "guide wire"]
    assert "549 pixels" in text(browser, "#panel") and "Too few distinct points" in text(browser, "#panel")
    red, blue = [255, 90, 77, 255], [56, 169, 255, 255]
    assert browser.run(PIXELS, 1, 20, 14) == red and browser.run(PIXELS, 1, 42, 50) == blue
    assert browser.run(PIXELS, 1, 90, 70)[3] == 0

    browser.press("o")
    assert browser.run(PIXELS, 1, 20, 14)[3] == 0 and browser.run(PIXELS, 1, 20, 10) == red
    browser.click("input[name=drawn][value=fill]")
    assert browser.run(PIXELS, 1, 20, 14) == red
    browser.click("#panel input[aria-label='Show blood vessel']")
    assert browser.run(PIXELS, 1, 20, 14)[3] == 0 and browser.run(PIXELS, 1, 42, 50) == blue
    browser.press("m")
    assert len(browser.all("#layers canvas")) == 1
    browser.click("#mask")
    browser.find("#opacity").click()
    browser.press(RIGHT, RIGHT)  # the slider keeps its keys
    assert browser.run("return document.querySelector('[data-layer=masks]').style.opacity") == "0.6"
    assert shows(browser, "first.png")
    browser.click("#panel h2")
    browser.run("document.activeElement.blur()")

    browser.press(RIGHT)
    browser.wait(lambda: shows(browser, "seen_twice.png"), "the next image")
    assert "Dice 0.778 with the first" in text(browser, "#panel")
    assert browser.run(PIXELS, 1, 20, 20) == [255, 255, 255, 255]  # the other observer's outline
    browser.press(END)
    browser.wait(lambda: shows(browser, f"more_{FILLERS - 1}.png"), "the last image")
    assert f"more_{FILLERS - 1}.png" in names(browser) and browser.find("#next").get_property("disabled")
    browser.click("#previous")
    browser.wait(lambda: shows(browser, f"more_{FILLERS - 2}.png"), "the image before")
    assert text(browser, "#position") == f"{ALL - 1} of {ALL}"
    browser.press(HOME)
    browser.wait(lambda: shows(browser, "first.png"), "the first image")
    browser.press(*[RIGHT] * 9)
    browser.wait(lambda: shows(browser, "more_00.png"), "nine images on")
    assert browser.errors() == []


def test_filters_search_and_order(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.wait(lambda: shows(browser, "first.png"))
    choose(browser, "#phrase", "guide wire")
    assert names(browser) == ["first.png", "deep.png"] and text(browser, "#count") == f"2 of {ALL} images"
    browser.click("#clear")
    choose(browser, "#finding", "too_few_points")
    assert names(browser) == ["first.png"]
    choose(browser, "#finding", "(broken)")
    assert names(browser) == [MISSING, "outside.png"]
    choose(browser, "#finding", "")
    choose(browser, "#group", "p4")
    assert names(browser) == [f"more_0{number}.png" for number in range(4)]
    choose(browser, "#split", "val")
    assert text(browser, "#rows") == "No image matches these filters."
    browser.click("#clear")
    choose(browser, "#split", "none")
    browser.wait(lambda: shows(browser, f"more_{FILLERS - 1}.png"), "the only image that passes")
    browser.click("#clear")
    choose(browser, "#sort", "most")
    assert names(browser)[0] == f"more_{FILLERS - 1}.png"
    choose(browser, "#sort", "least")
    assert names(browser)[0] == "nothing.png"
    choose(browser, "#sort", "")

    browser.press("/")
    browser.press("m", "o", "r", "e", "_", "1")
    assert names(browser) == [f"more_1{number}.png" for number in range(10)]
    assert browser.find("#mask").is_selected()  # typing does not trigger commands
    browser.press(ESCAPE, RIGHT)
    browser.wait(lambda: shows(browser, "more_11.png"), "the second that passes")
    assert address(browser) == {"image": "more_11.png", "search": "more_1"}
    browser.driver.refresh()
    browser.wait(lambda: shows(browser, "more_11.png"), "the same after loading the page again")
    assert len(names(browser)) == 10
    browser.all(".row")[3].click()
    browser.wait(lambda: shows(browser, "more_13.png"), "the row that was clicked")
    assert browser.errors() == []


def test_zoom_and_pan(browser: Browser, url: str) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    browser.open(url)
    browser.wait(lambda: shows(browser, "first.png"))
    fit = text(browser, "#zoom")
    at = "return document.querySelector('#layers').style.transform"
    browser.click("#zoom-in")
    assert text(browser, "#zoom") != fit
    browser.press("0")
    assert text(browser, "#zoom") == fit
    stage = browser.find("#stage")
    chain = ActionChains(browser.driver, duration=0)
    chain.scroll_from_origin(ScrollOrigin.from_element(stage, 60, 40), 0, -300).perform()
    browser.wait(lambda: text(browser, "#zoom") != fit, "the wheel to zoom")
    zoomed, before = text(browser, "#zoom"), browser.run(at)
    ActionChains(browser.driver, duration=50).click_and_hold(stage).move_by_offset(30, 20).release().perform()
    assert browser.run(at) != before and text(browser, "#zoom") == zoomed
    browser.press(RIGHT)
    browser.wait(lambda: shows(browser, "seen_twice.png"))
    assert text(browser, "#zoom") == zoomed  # so that frames of a clip can be compared
    browser.click("#zoom-fit")
    assert text(browser, "#zoom") == fit
    assert browser.errors() == []


@pytest.mark.parametrize("name", [BROKEN, MISSING])
def test_a_broken_image_is_a_message(browser: Browser, url: str, name: str) -> None:
    browser.open(f"{url}#image={name}")
    message = browser.wait(lambda: text(browser, "#message"), "a message")
    assert name in message and "cannot be read as an image" in message and not browser.all("#layers canvas")
    browser.press(LEFT if name == BROKEN else END)
    browser.wait(lambda: browser.all("#layers canvas") and not browser.find("#message").is_displayed(), "another image")
    assert browser.errors() == []


def test_the_address_selects_an_image_and_a_wrong_one_is_reported(browser: Browser, url: str) -> None:
    browser.open(f"{url}#image={quote(ODD)}")
    browser.wait(lambda: shows(browser, ODD), "the image with an odd name")
    assert browser.driver.title == f"{ODD} · vesselseg" and address(browser)["image"] == ODD
    browser.run("location.hash = '#image=seen_twice.png'")
    browser.wait(lambda: shows(browser, "seen_twice.png"), "the image of another link")
    browser.run("location.hash = '#image=gone.png&split=nowhere&epoch=-3&view=x'")
    browser.wait(lambda: "no image gone.png" in text(browser, "#message"), "a message")
    assert browser.errors() == []


def test_the_input_of_the_model(browser: Browser, url: str, tmp_path: Path) -> None:
    browser.open(url)
    browser.wait(lambda: shows(browser, "first.png"))
    browser.wait(lambda: browser.all("#model .chat"), "the config to be read", seconds=400)
    said = text(browser, "#model")
    assert "Epoch 0 of training." in said and "256 × 256" in said and "tokens of at most 2,048" in said
    assert said.count("Sure, it is [SEG].") == 2
    browser.click("input[name=mode][value=square]")
    square = browser.wait(lambda: shape(browser) == (256, 256) and fingerprint(browser), "SAM2's square")
    browser.press("e")
    browser.wait(lambda: "Epoch 1 of training." in text(browser, "#model"), "the next epoch")
    assert browser.wait(lambda: fingerprint(browser) != square, "another view")
    assert address(browser) == {"image": "first.png", "view": "square", "epoch": "1"}
    browser.click("#epoch-back")
    browser.wait(lambda: fingerprint(browser) == square, "the same view again")
    browser.press("3")
    browser.wait(lambda: "InternVL" in (browser.find("#stage").get_attribute("aria-label") or ""))
    assert not browser.find("#mask").is_enabled()
    browser.press("1")
    browser.wait(lambda: shape(browser) == (WIDTH, HEIGHT), "the stored image")
    browser.press("2")
    browser.open(f"{url}#image=more_20.png&view=square&epoch=4")
    browser.wait(lambda: "As in validation and evaluation" in text(browser, "#panel"), "an image of val")
    browser.open(f"{url}#image=more_{FILLERS - 1}.png&view=square")
    browser.wait(lambda: "in no split" in text(browser, "#message"), "a message")
    assert browser.errors() == []


def shape(browser: Browser) -> tuple[int, int]:
    script = "const c = document.querySelector('#layers canvas'); return c ? [c.width, c.height] : [0, 0]"
    return tuple(browser.run(script))


def fingerprint(browser: Browser) -> str:
    return str(browser.run("return document.querySelector('#layers canvas')?.toDataURL() ?? ''"))


def test_dialogs_focus_and_labels(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.wait(lambda: shows(browser, "first.png"))
    browser.press("?")
    assert browser.find("#help").get_property("open")
    browser.press("m")
    assert browser.find("#mask").is_selected()  # dialogs block commands
    browser.click("#help button")
    browser.click("#about-open")
    assert "source/lost.json" in browser.wait(lambda: text(browser, "#about-content"))
    browser.press(ESCAPE)
    unnamed = """const label = (found) => found.getAttribute("aria-label") || found.textContent.trim();
        const named = (found) => label(found) || found.labels?.length;
        const all = [...document.querySelectorAll("button, input, select, [role=listbox], [role=group]")];
        return all.filter((found) => !named(found)).map((found) => found.outerHTML)"""
    assert browser.run(unnamed) == []
    browser.open(url)
    browser.wait(lambda: shows(browser, "first.png"))
    reached = []
    for _ in range(12):
        browser.press(TAB)
        reached.append(browser.run("return document.activeElement.id || document.activeElement.textContent"))
    assert reached[:5] == ["Skip to the image", "about-open", "help-open", "search", "split"]
    assert {"sort", "list"} <= set(reached)
    assert browser.errors() == []


@pytest.mark.parametrize("size", [LAPTOP, TABLET])
def test_it_fits_the_screen(browser: Browser, url: str, size: tuple[int, int], tmp_path: Path) -> None:
    browser.open(url, size)
    browser.wait(lambda: shows(browser, "first.png"))
    assert browser.run("return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [
        *size
    ]
    for selector in ("#stage", "#list", "#panel", "#next", "#opacity"):
        box = browser.find(selector).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= size[0] and box["y"] + box["height"] < size[1] + 1, selector
    assert browser.find("#stage").rect["height"] > 0.4 * size[1]
    shot = np.asarray(Image.open(browser.screenshot(tmp_path / "page.png")).convert("RGB"))
    reddish = (shot[..., 0].astype(int) - shot[..., 1] > 60).mean()
    assert shot.shape[:2] == size[::-1] and reddish > 0.01  # the mask is visible
    assert browser.errors() == []
