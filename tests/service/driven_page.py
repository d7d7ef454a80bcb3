"""The service's page in Chromium, with the actions of a user."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.browser import LAPTOP, Browser
from tests.service.running import RunningService
from vesselseg.inference.predictor import Predictor

WIDTH, HEIGHT = 150, 120  # of the dropped images
# alpha of every pixel painted over a stage's image
PAINTED = """
const canvas = document.querySelectorAll(".overlays canvas")[arguments[0]];
if (!canvas || canvas.hidden) return null;
const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
copy.drawImage(canvas, 0, 0);
const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
return [canvas.width, canvas.height, Array.from({ length: data.length / 4 }, (_, i) => data[4 * i + 3])];
"""
# controls too small for a finger
TOO_SMALL = """
const seen = [...document.querySelectorAll("button, select, label:has(input), input[type=range]")];
return seen.filter((one) => one.offsetParent && !one.closest("dialog"))
  .filter((one) => one.getBoundingClientRect().height < 40 || one.getBoundingClientRect().width < 40)
  .map((one) => one.outerHTML)
"""
# controls without a name for screen readers
UNNAMED = """
const label = (one) => one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.length;
return [...document.querySelectorAll("button, input, select, [role=group], [role=slider]")]
  .filter((one) => !label(one)).map((one) => one.outerHTML)
"""
# set a threshold with its slider
SLIDE = """
const slider = document.querySelector(`.threshold-row[data-model="${arguments[0]}"] .threshold`);
slider.value = arguments[1];
slider.dispatchEvent(new Event("input", { bubbles: true }));
"""
# drop or paste files
HAND_OVER = """
const [kind, files] = arguments;
const data = new DataTransfer();
for (const [name, type, text] of files) {
  data.items.add(new File([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], name, { type }));
}
const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
  : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
document.body.dispatchEvent(event);
"""
# hold the calls of a function in `held` until LET_GO
HOLD = """
const [owner, name] = [eval(arguments[0]), arguments[1]];
const real = owner[name];
window.held = [];
owner[name] = function (...given) {
  return new Promise((go) => held.push(() => { const made = real.apply(this, given); go(made); return made; }));
};
"""
LET_GO = "return Promise.all(held.splice(0).map((go) => go())).then(() => new Promise((done) => setTimeout(done)))"


class Page:
    """The page and a user's actions on it."""

    def __init__(self, browser: Browser, service: RunningService, downloads: Path) -> None:
        self.browser, self.service, self.downloads = browser, service, downloads
        where = {"behavior": "allow", "downloadPath": str(downloads)}
        browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", where)

    def open(self, size: tuple[int, int] = LAPTOP, end: str = "") -> None:
        self.browser.open(f"{self.service.url}/{end}", size)
        self.browser.wait(lambda: self.browser.all(".phrase"), "the models")

    def choose(self, *paths: Path) -> None:
        """Files through the file chooser."""
        before = len(self.browser.all(".list li"))
        self.browser.driver.find_element("id", "files").send_keys("\n".join(map(str, paths)))
        self.browser.wait(lambda: len(self.browser.all(".list li")) == before + len(paths), "the files")

    def predict(self, *keys: str) -> None:
        self.browser.press(*keys) if keys else self.browser.click("#predict")
        self.idle()

    def idle(self) -> None:
        busy = "return document.querySelectorAll('#busy:not([hidden]), .list .busy, .list .waiting').length"
        self.browser.wait(lambda: self.browser.run(busy) == 0, "predictions", 120)

    def mask(self, place: int = 0) -> np.ndarray:
        """The painted mask as a boolean array; waits for the animation frame that paints it."""
        self.browser.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        found = self.browser.wait(lambda: self.browser.run(PAINTED, place), "a mask")
        return np.array(found[2], bool).reshape(found[1], found[0])

    def text(self, selector: str) -> str:
        return str(self.browser.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def drag(self, *points: tuple[float, float], kind: str = "mouse") -> None:
        """Draw a stroke through points in image pixels."""
        from selenium.webdriver.common.actions.action_builder import ActionBuilder
        from selenium.webdriver.common.actions.pointer_input import PointerInput

        script = """const layers = document.querySelector("#stage .layers");
            const { left, top } = layers.getBoundingClientRect();
            return [left, top, new DOMMatrix(layers.style.transform).a]"""
        left, top, scale = self.browser.run(script)
        pointer = PointerInput(kind, kind)
        chain = ActionBuilder(self.browser.driver, mouse=pointer, duration=10)
        for place, (x, y) in enumerate(points):
            chain.pointer_action.move_to_location(round(left + x * scale), round(top + y * scale))
            if place == 0:
                chain.pointer_action.pointer_down()
        chain.pointer_action.pointer_up()
        chain.perform()

    def chord(self, *keys: str) -> None:
        """Press the last key while holding the others."""
        from selenium.webdriver import ActionChains

        chain = ActionChains(self.browser.driver, duration=0)
        for key in keys[:-1]:
            chain.key_down(key)
        chain.send_keys(keys[-1])
        for key in keys[:-1]:
            chain.key_up(key)
        chain.perform()

    def saved(self, name: str) -> Path:
        """A completely downloaded file."""
        path = self.downloads / name

        def whole() -> bool:
            return path.is_file() and path.stat().st_size > 0 and not list(self.downloads.glob("*.crdownload"))

        self.browser.wait(whole, name)
        return path


def probabilities(predictor: Predictor, image: Path | Image.Image, phrase: str = "blood vessel") -> np.ndarray:
    opened = image if isinstance(image, Image.Image) else Image.open(image).convert("RGB")
    return predictor.predict([opened], [[phrase]])[0].probabilities[0]


def steps(values: np.ndarray, threshold: float) -> np.ndarray:
    """The mask of probabilities quantised to 256 steps."""
    return np.rint(values * 255) / 255 > threshold


def pressed(key: str) -> str:
    """JavaScript that presses a key."""
    return f'document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key: "{key}", bubbles: true }}))'
