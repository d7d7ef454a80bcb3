"""Read the stored values of a mask image: bits, grey, palette, fractions, colours, alpha."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vesselseg.imaging.codec_process import check_picture
from vesselseg.imaging.decode import DECODE_ERRORS, FORMATS, describe_decode_error
from vesselseg.imaging.label_shapes import LabelFileError
from vesselseg.imaging.mask_evidence import Evidence, ValueKind, measure
from vesselseg.imaging.notes import Note
from vesselseg.imaging.warning_filters import suppress_warnings

_OPAQUE = 128  # alpha from which a pixel counts as opaque
_HUE_ERROR = 40  # of 255; a colour that differs by less from a darker shade of another one is such a shade


@dataclass(frozen=True)
class RawMask:
    """values: (height, width) numbers, 0 for black. name: number -> label. notes: on reading the file."""

    values: np.ndarray
    kind: ValueKind
    lossy: bool
    name: Callable[[float], str]
    notes: tuple[Note, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.values.shape[1], self.values.shape[0]

    def evidence(self) -> Evidence:
        """What its values show."""
        return measure(self.values, self.kind, self.lossy)


def read_raw_mask(path: Path) -> RawMask:
    """The values of a mask file as stored; raises LabelFileError."""
    content = b""
    try:
        content = path.read_bytes()
        check_picture(path)
        with suppress_warnings():  # Pillow warns of large images
            image = Image.open(path, formats=FORMATS)
            image.load()
    except DECODE_ERRORS as error:
        raise LabelFileError(f"mask {describe_decode_error(error, content)}") from None
    frames = getattr(image, "n_frames", 1)
    several = Note("several_frames", f"the mask has {frames} frames; the first one is used")
    values, kind, name = raw_values(image)
    return RawMask(values, kind, image.format == "JPEG", name, (several,) if frames > 1 else ())


def raw_values(image: Image.Image) -> tuple[np.ndarray, ValueKind, Callable[[float], str]]:
    """(height, width) numbers, 0 for black; what they are; and a function from number to label."""
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8), "bits", plain_name
    if image.mode == "F":
        return np.asarray(image), "float", plain_name
    if image.mode == "L":
        return np.asarray(image), "grey", plain_name
    if image.mode.startswith("I"):
        return np.asarray(image), "deep", plain_name
    if image.mode == "P" and _index_is_class(image):
        return np.asarray(image), "index", plain_name
    rgba = np.asarray(image.convert("RGBA"))  # (height, width, 4)
    visible = rgba[..., 3] >= _OPAQUE  # (height, width)
    colours = rgba[..., :3] * visible[..., None]
    if not colours.any() and not visible.all():  # black on transparent
        return visible.astype(np.uint8), "bits", plain_name
    if (colours == colours[..., :1]).all():
        return colours[..., 0], "grey", plain_name
    codes = colours.astype(np.int64) @ np.array([65536, 256, 1])
    shade = _shades(colours, codes)
    if shade is not None:
        brightness, colour = shade
        return brightness, "grey", lambda value: colour
    return codes, "colour", _colour_name


def plain_name(value: float) -> str:
    """The label of a number: its text."""
    return f"{value:g}"


def _colour_name(value: float) -> str:
    return f"#{int(value):06x}"


def _index_is_class(image: Image.Image) -> bool:
    """Whether palette indices are classes: label palettes begin with black and hold colours or few greys.

    Otherwise the colours count: a palette of greys that are in between black and white is a smoothed mask.
    """
    palette = image.getpalette()
    if palette is None or any(palette[:3]) or "transparency" in image.info:
        return False
    used = np.unique(np.asarray(image))
    colours = np.array([*palette, *[0] * (768 - len(palette))]).reshape(-1, 3)[used]
    return len(used) <= 2 or not (colours == colours[:, :1]).all()


def _shades(colours: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, str] | None:
    """(brightness 0..255, label) where three or more colours are shades between black and one colour, else None."""
    distinct, where, counts = np.unique(codes, return_index=True, return_counts=True)
    if len(distinct) < 3:
        return None
    used = colours.reshape(-1, 3)[where].astype(np.float64)  # (colours, 3)
    full = used[int(np.argmax(used.max(axis=1) * np.sqrt(counts)))]
    if not full.any():
        return None
    share = np.clip(used @ full / (full @ full), 0, None)  # (colours,)
    error = np.abs(used - share[:, None] * full).max(axis=1)
    if (counts * (error > _HUE_ERROR)).sum() > 0.001 * counts.sum():
        return None
    levels = np.clip(np.round(share * 255), 0, 255).astype(np.uint8)
    return levels[np.searchsorted(distinct, codes)], _colour_name(float(full @ np.array([65536, 256, 1])))
