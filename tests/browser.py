"""A real browser for the tests of served pages: headless Chromium, driven by selenium.

A test takes the fixture `browser` (registered in conftest.py), opens a page of a server on this machine and ends with
``assert browser.errors() == []``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from tests.machine_speed import patience

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

LAPTOP, TABLET = (1366, 768), (820, 1180)
# without the network flags Chromium looks its maker up at every start, and is refused where there is no network
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
Found = TypeVar("Found")


def programs() -> tuple[str, str] | None:
    """Paths of Chromium and its driver, or None where one is missing."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """A page in Chromium, and what tests do with it."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str, size: tuple[int, int] = LAPTOP) -> None:
        """A fresh page: what the one before logged is dropped. size: of what is seen, in pixels."""
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.resize(size)
        self.driver.get(url)

    def resize(self, size: tuple[int, int]) -> None:
        """Another size of what is seen."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def find(self, selector: str) -> WebElement:
        """The element of a CSS selector, waited for."""
        return self.wait(lambda: next(iter(self.all(selector)), None), selector)

    def all(self, selector: str) -> list[WebElement]:
        """Elements of a CSS selector, as many as there are now."""
        return self.driver.find_elements("css selector", selector)

    def click(self, selector: str) -> None:
        """Click an element as a user does: it must be there, in sight and not covered."""
        self.wait(lambda: [self.find(selector).click()], f"a click on {selector}")

    def press(self, *keys: str) -> None:
        """Keys, typed where the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def run(self, script: str, *values: Any) -> Any:
        """What a piece of JavaScript returns."""
        return self.driver.execute_script(script, *values)

    def wait(self, check: Callable[[], Found | None], what: str = "", seconds: float = 60.0) -> Found:
        """The first true answer of a check; fails naming what was waited for.

        An element that the page drew anew while it was looked at is looked for again.
        """
        from selenium.common.exceptions import StaleElementReferenceException

        limit = patience(seconds)
        end = time.monotonic() + limit
        while True:
            try:
                found = check()
            except StaleElementReferenceException:
                found = None
            if found:
                return found
            if time.monotonic() > end:
                pytest.fail(
                    f"{patience(seconds):.0f} s went by without {what or 'the page doing it'}; console: {self.errors()}"
                )
            time.sleep(0.02)

    def screenshot(self, path: Path) -> Path:
        """What is seen, as PNG."""
        self.driver.save_screenshot(str(path))
        return path

    def errors(self) -> list[str]:
        """Everything the console complained about since the last call: errors, failed loads, uncaught exceptions."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests; skips where it or its driver is missing."""
    found = programs()
    if found is None:
        pytest.skip("no Chromium with its driver: on Debian and Ubuntu, apt install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(found[1]))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
