"""Encoded images for the page, rendered on demand and cached up to a memory limit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import cv2
import numpy as np

from vesselseg.errors import ManifestError
from vesselseg.imaging.overlay import draw_overlay
from vesselseg.inspect.browse.catalogue import Catalogue
from vesselseg.inspect.browse.model_views import ModelViews

THUMB = 112  # pixels of a thumbnail's longer side, for displays with two pixels per CSS pixel
CACHE_BYTES = 256 * 2**20


class SizedCache:
    """A thread-safe LRU cache for values of a total size of at most `limit` bytes."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.weight = 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """The value of a key. make: returns the value and its size in bytes; its exceptions propagate uncached."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        value, weight = make()
        with self._lock:
            if key not in self._kept and weight <= self.limit:
                self._kept[key] = value, weight
                self.weight += weight
            while self.weight > self.limit:
                self.weight -= self._kept.popitem(last=False)[1][1]
        return value


class ImageRenderer:
    """Renders images by number; all methods raise ManifestError or ValueError for what cannot be shown."""

    def __init__(self, catalogue: Catalogue, cache: SizedCache | None = None) -> None:
        self.catalogue = catalogue
        self.cache = cache or SizedCache()

    def image(self, number: int) -> bytes:
        """The stored image as PNG."""
        return self._keep(("image", number), lambda: png(np.asarray(self.catalogue.image(number))))

    def mask(self, number: int, index: int, observer: int) -> bytes:
        """The mask of an object as PNG, 0 and 255. observer: as in `Catalogue.masks`."""
        key = ("mask", number, index, observer)
        return self._keep(key, lambda: png(_pick(self.catalogue.masks(number, observer), index) * 255))

    def thumbnail(self, number: int, tinted: bool) -> bytes:
        """A small JPEG, with or without tinted objects."""
        return self._keep(("thumb", number, tinted), lambda: self._thumbnail(number, tinted))

    def model_view(self, views: ModelViews, number: int, epoch: int) -> dict[str, Any]:
        """The model's view: "facts", and PNG files under "square", "tile K" and "mask K"."""

        def make() -> tuple[dict[str, Any], int]:
            self.catalogue.file(number)  # rejects links out of the folder, which the dataset would follow
            seen = views.render(self.catalogue.entries[number], epoch)
            files = {"square": png(seen.square)}
            files |= {f"tile {index}": png(tile) for index, tile in enumerate(seen.tiles)}
            files |= {f"mask {index}": png(mask * 255) for index, mask in enumerate(seen.masks)}
            return {"facts": seen.facts, **files}, sum(map(len, files.values()))

        found: dict[str, Any] = self.cache.get(("seen", number, epoch), make)
        return found

    def _thumbnail(self, number: int, tinted: bool) -> bytes:
        pixels = np.asarray(self.catalogue.image(number))
        scale = min(1.0, THUMB / max(pixels.shape[:2]))
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        if tinted:
            # A low threshold tints every pixel with some vessel: thin branches would disappear otherwise.
            masks = [cv2.resize(m * 255, size, interpolation=cv2.INTER_AREA) > 64 for m in self.catalogue.masks(number)]
            small = draw_overlay(small, np.array(masks, dtype=np.uint8)) if masks else small
        return _encode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 82])

    def _keep(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        def weighed() -> tuple[bytes, int]:
            content = make()
            return content, len(content)

        found: bytes = self.cache.get(key, weighed)
        return found


def png(pixels: np.ndarray) -> bytes:
    """(height, width) or (height, width, 3) uint8 RGB as a fast-compressed PNG; grey images get one channel."""
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    return _encode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def _encode(ending: str, pixels: np.ndarray, options: list[int]) -> bytes:
    ordered = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, content = cv2.imencode(ending, ordered, options)
    return content.tobytes()


def _pick(masks: np.ndarray, index: int) -> np.ndarray:
    if index >= len(masks):
        raise ManifestError(f"no object {index}: the image has {len(masks)}")
    return masks[index]
