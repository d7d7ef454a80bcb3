"""One image of a dataset folder -> what the checks need of it. Runs in worker processes."""

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
from vesselseg.imaging.decode import DECODE_ERRORS, HIGH_DEPTH_MODES
from vesselseg.imaging.rgb import to_rgb

HASH_BITS = 64
TEXTURE = 32  # pixels of a side
_DARK = 8  # grey value up to which rows and columns at the border count as padding
_SPECK_SHARE, _SPECK_LEAST, _SPECK_RATIO = 1 / 20000, 4, 20
_COLOURED = 3  # mean difference of a pixel's channels; less is what JPEG makes of grey


@dataclass(frozen=True)
class Agreement:
    """Two people's masks of one object: Dice, and Cohen's kappa over the pixels; both 1 where both are empty."""

    observer: str
    phrase: str
    dice: float
    kappa: float


@dataclass(frozen=True)
class ImageStatistics:
    """What is known of one image; where problem is set, nothing else is.

    problem: (code of KINDS, reason) or None. pixels: digest of the picture, masks: of phrases and masks.
    size: (width, height). depth: bits of a value. brightness, contrast: mean and standard deviation of grey values
    inside the padding. hashes: (4, 64) perceptual hash of the picture as it is, mirrored left to right, top to bottom,
    both. texture: (32, 32) of length 1, or all 0. object_pixels: per object. vessel: pixels of the union.
    specks: pixels of each small piece of the union.
    """

    image: str
    problem: tuple[str, str] | None = None
    pixels: str = ""
    masks: str = ""
    size: tuple[int, int] = (0, 0)
    depth: int = 0
    coloured: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    hashes: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((4, HASH_BITS), bool))
    texture: NDArray[np.float32] = field(default_factory=lambda: np.zeros((TEXTURE, TEXTURE), np.float32))
    object_pixels: tuple[int, ...] = ()
    vessel: int = 0
    specks: tuple[int, ...] = ()
    agreement: tuple[Agreement, ...] = ()

    @property
    def share(self) -> float:
        """Of labelled pixels, 0..1."""
        return self.vessel / max(1, self.size[0] * self.size[1])

    @property
    def look(self) -> str:
        """Size, depth and colour in words."""
        return f"{self.size[0]}x{self.size[1]}, {self.depth} bits, {'colour' if self.coloured else 'grey'}"


def measure(record: Record, folder: Path) -> ImageStatistics:
    """Read the image and draw the masks of one record."""
    path = image_path(folder, record)
    try:
        with Image.open(path) as opened:
            opened.load()
            depth = _depth(opened.mode)
            picture = to_rgb(opened)
    except FileNotFoundError:
        return ImageStatistics(record.image, ("missing_image", f"{record.image} is not in images/"))
    except UnidentifiedImageError:
        return ImageStatistics(record.image, ("unreadable_image", f"{record.image} is no image"))
    except DECODE_ERRORS as error:
        return ImageStatistics(record.image, ("unreadable_image", f"{record.image}: {error}"))
    try:
        masks = record_masks(record, picture.height, picture.width)
        agreement = _agreements(record, masks)
    except ValueError as error:
        return ImageStatistics(record.image, ("bad_region", str(error)))
    values = np.asarray(picture)
    core = _without_padding(picture.convert("L"))
    union = masks.max(axis=0, initial=0)
    grey = np.asarray(core)
    return ImageStatistics(
        image=record.image,
        pixels=hashlib.sha256(f"{picture.size}".encode() + values.tobytes()).hexdigest(),
        masks=mask_digest(record, masks),
        size=picture.size,
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


def texture(picture: Image.Image) -> NDArray[np.float32]:
    """(32, 32) float32 of length 1: fine structure, the middle weighing most; all 0 for a picture without any.

    Taking the local mean off and dividing by the local deviation leaves nothing of brightness, of window and of the
    shadows that all chests share; cutting off at one deviation keeps a few hard edges (collimator, burnt-in text) from
    deciding alone. Mirroring the picture mirrors the result.
    """
    small = np.asarray(picture.convert("L").resize((TEXTURE, TEXTURE), Image.Resampling.BOX), np.float32)
    fine = small - cv2.GaussianBlur(small, (0, 0), 2)
    level = np.clip(fine / (np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 4)) + 2.0), -1, 1)
    middle = np.hanning(TEXTURE + 2)[1:-1]
    weighted = level * np.sqrt(np.outer(middle, middle)).astype(np.float32)
    weighted -= weighted.mean()
    length = float(np.linalg.norm(weighted))
    return (weighted / length if length > 1e-3 else np.zeros_like(weighted)).astype(np.float32)


def mask_digest(record: Record, masks: NDArray[np.uint8]) -> str:
    """A digest of phrases, masks and further observers; the order of objects does not matter."""
    drawn = sorted((phrase, np.packbits(mask).tobytes()) for phrase, mask in zip(record.phrases, masks))
    digest = hashlib.sha256(repr(sorted(record.observers.items())).encode())
    for phrase, packed in drawn:
        digest.update(phrase.encode() + b"\0" + packed)
    return digest.hexdigest()


def agreement_of(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[float, float]:
    """Dice and Cohen's kappa of two masks of 0 and 1; 1 and 1 where they are equal and have one value only."""
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


def _without_padding(picture: Image.Image) -> Image.Image:
    """The picture without black rows and columns at its border, which would make different pictures look alike."""
    bright = np.asarray(picture) > _DARK
    rows, columns = (np.flatnonzero(bright.mean(axis=axis) > 0.02) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return picture
    return picture.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


def _hashes(picture: Image.Image) -> NDArray[np.bool_]:
    small = picture.resize((TEXTURE, TEXTURE), Image.Resampling.LANCZOS)
    turned = small, ImageOps.mirror(small), ImageOps.flip(small), ImageOps.mirror(ImageOps.flip(small))
    return np.stack([imagehash.phash(one).hash.ravel() for one in turned])


def _specks(union: NDArray[np.uint8]) -> tuple[int, ...]:
    _, _, boxes, _ = cv2.connectedComponentsWithStats(union, connectivity=8)
    return _small(sorted(int(area) for area in boxes[1:, cv2.CC_STAT_AREA]), union.size)


def _small(areas: Sequence[int], pixels: int) -> tuple[int, ...]:
    """Of pieces in ascending order, those that are specks."""
    limit = max(_SPECK_LEAST, _SPECK_SHARE * pixels)
    return tuple(area for area in areas if area < limit and area * _SPECK_RATIO <= areas[-1])
