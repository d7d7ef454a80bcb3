"""Measure one image of a dataset folder for the checks. Runs in worker processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vesselseg.dataset.manifest import Record, image_path
from vesselseg.dataset.record_masks import record_masks
from vesselseg.imaging.decode import DECODE_ERRORS
from vesselseg.imaging.eight_bits import HIGH_DEPTH_MODES
from vesselseg.imaging.rgb import to_rgb

HASH_BITS = 64
TEXTURE = 32  # pixels per side
_DARK = 8  # grey value up to which border rows and columns count as padding
# A speck is smaller than this share of the image or this many pixels, whichever is larger, and at least by this factor
# smaller than the largest component.
_SPECK_SHARE, _SPECK_LEAST, _SPECK_RATIO = 1 / 20000, 4, 20
_COLOURED = 3  # mean range over the channels of a pixel; JPEG compression of grey images stays below


@dataclass(frozen=True)
class Agreement:
    """Dice, and Cohen's kappa over pixels, of two observers' masks of one object; both 1 if both masks are empty."""

    observer: str
    phrase: str
    dice: float
    kappa: float


@dataclass(frozen=True)
class ImageStatistics:
    """Measurements of one image; if `problem` is set, all other fields have their defaults."""

    image: str  # path below images/
    problem: tuple[str, str] | None = None  # (code of KINDS, reason) if the image is unusable
    pixels: str = ""  # digest of size and pixels
    masks: str = ""  # digest of phrases and masks
    size: tuple[int, int] = (0, 0)  # (width, height)
    depth: int = 0  # bits per channel
    coloured: bool = False  # whether its channels differ
    brightness: float = 0.0  # mean of the grey values without padding, 0..255
    contrast: float = 0.0  # their standard deviation
    # (4, 64): perceptual hashes of the image, and of it mirrored left to right, top to bottom, and both
    hashes: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((4, HASH_BITS), bool))
    # (32, 32): see `texture`, of L2 norm 1 or 0
    texture: NDArray[np.float32] = field(default_factory=lambda: np.zeros((TEXTURE, TEXTURE), np.float32))
    object_pixels: tuple[int, ...] = ()  # pixels of each object
    vessel: int = 0  # pixels of the union of all objects
    specks: tuple[int, ...] = ()  # pixels of each small component of the union
    agreement: tuple[Agreement, ...] = ()  # of further observers with the first

    @property
    def share(self) -> float:
        """Fraction of labelled pixels, 0..1."""
        return self.vessel / max(1, self.size[0] * self.size[1])

    @property
    def image_format(self) -> str:
        """Size, bit depth and colour as text."""
        return f"{self.size[0]}x{self.size[1]}, {self.depth} bits, {'colour' if self.coloured else 'grey'}"


def measure_image(record: Record, folder: Path) -> ImageStatistics:
    """Read the image and rasterise the masks of one record; an unusable one is returned with `problem`."""
    path = image_path(folder, record)
    try:
        with Image.open(path) as opened:
            opened.load()
            depth = _depth(opened.mode)
            image = to_rgb(opened)
    except FileNotFoundError:
        return ImageStatistics(record.image, ("missing_image", f"{record.image} is not in images/"))
    except UnidentifiedImageError:
        return ImageStatistics(record.image, ("unreadable_image", f"{record.image} is not an image"))
    except DECODE_ERRORS as error:
        return ImageStatistics(record.image, ("unreadable_image", f"{record.image}: {error}"))
    try:
        masks = record_masks(record, image.height, image.width)
        agreement = _agreements(record, masks)
    except ValueError as error:
        return ImageStatistics(record.image, ("bad_region", str(error)))
    values = np.asarray(image)
    core = _without_padding(image.convert("L"))
    union = masks.max(axis=0, initial=0)  # (height, width)
    grey = np.asarray(core)
    return ImageStatistics(
        image=record.image,
        pixels=hashlib.sha256(f"{image.size}".encode() + values.tobytes()).hexdigest(),
        masks=mask_digest(record, masks),
        size=image.size,
        depth=depth,
        coloured=bool(np.ptp(values[::3, ::3], axis=2).mean() > _COLOURED),
        brightness=float(grey.mean()),
        contrast=float(grey.std()),
        hashes=_hashes(core),
        texture=texture(core),
        object_pixels=tuple(int(mask.sum()) for mask in masks),
        vessel=int(union.sum()),
        specks=_specks(union),
        agreement=agreement,
    )


def texture(image: Image.Image) -> NDArray[np.float32]:
    """Fine structure, weighted towards the centre: (32, 32) float32 of L2 norm 1, or all 0 for an image without any.

    Subtracting the local mean and dividing by the local standard deviation removes brightness, window and the shadows
    common to all chests; clipping at one standard deviation limits the influence of hard edges (collimator, burnt-in
    text). Mirroring the image mirrors the result.
    """
    small = np.asarray(image.convert("L").resize((TEXTURE, TEXTURE), Image.Resampling.BOX), np.float32)
    fine = small - cv2.GaussianBlur(small, (0, 0), 2)  # (32, 32), high-pass filtered
    level = np.clip(fine / (np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 4)) + 2.0), -1, 1)
    middle = np.hanning(TEXTURE + 2)[1:-1]
    weighted = level * np.sqrt(np.outer(middle, middle)).astype(np.float32)
    weighted -= weighted.mean()
    length = float(np.linalg.norm(weighted))
    return (weighted / length if length > 1e-3 else np.zeros_like(weighted)).astype(np.float32)


def mask_digest(record: Record, masks: NDArray[np.uint8]) -> str:
    """A digest of phrases, masks (objects, height, width) and observers, independent of the order of objects."""
    drawn = sorted((phrase, np.packbits(mask).tobytes()) for phrase, mask in zip(record.phrases, masks))
    digest = hashlib.sha256(repr(sorted(record.observers.items())).encode())
    for phrase, packed in drawn:
        digest.update(phrase.encode() + b"\0" + packed)
    return digest.hexdigest()


def agreement_of(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[float, float]:
    """Dice and Cohen's kappa (Cohen 1960) of two masks (height, width) of 0 and 1; both 1 if equal and constant."""
    both, one, other, pixels = (int(v) for v in ((first & second).sum(), first.sum(), second.sum(), first.size))
    dice = 2 * both / (one + other) if one + other else 1.0
    observed = 1 - (one + other - 2 * both) / pixels
    expected = (one * other + (pixels - one) * (pixels - other)) / pixels**2
    return dice, (observed - expected) / (1 - expected) if expected < 1 else 1.0


def _agreements(record: Record, masks: NDArray[np.uint8]) -> tuple[Agreement, ...]:
    found = []
    for name in record.observers:
        drawn = record_masks(record.with_observer(name), *masks.shape[1:])
        pairs = zip(record.phrases, masks, drawn)
        found += [Agreement(name, phrase, *agreement_of(one, other)) for phrase, one, other in pairs]
    return tuple(found)


def _depth(mode: str) -> int:
    return {"1": 1, "F": 32}.get(mode, 16 if mode in HIGH_DEPTH_MODES else 8)


def _without_padding(image: Image.Image) -> Image.Image:
    """Crop black border rows and columns, which would make different images look similar."""
    bright = np.asarray(image) > _DARK
    rows, columns = (np.flatnonzero(bright.mean(axis=axis) > 0.02) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return image
    return image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


def _hashes(image: Image.Image) -> NDArray[np.bool_]:
    """(4, 64): perceptual hashes of the image and its mirrored versions, in the order of TRANSFORMS."""
    small = image.resize((TEXTURE, TEXTURE), Image.Resampling.LANCZOS)
    transformed = small, ImageOps.mirror(small), ImageOps.flip(small), ImageOps.mirror(ImageOps.flip(small))
    return np.stack([imagehash.phash(one).hash.ravel() for one in transformed])


def _specks(union: NDArray[np.uint8]) -> tuple[int, ...]:
    _, _, boxes, _ = cv2.connectedComponentsWithStats(union, connectivity=8)
    return _small(sorted(int(area) for area in boxes[1:, cv2.CC_STAT_AREA]), union.size)


def _small(areas: Sequence[int], pixels: int) -> tuple[int, ...]:
    """The specks among the areas of all components, which are in ascending order."""
    limit = max(_SPECK_LEAST, _SPECK_SHARE * pixels)
    return tuple(area for area in areas if area < limit and area * _SPECK_RATIO <= areas[-1])
