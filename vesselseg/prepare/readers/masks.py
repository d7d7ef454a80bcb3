"""Mask images: 1-bit, 0/1, 0/255, palette, grey stored as RGB, one value or colour per class; several observers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vesselseg.imaging.codec_process import check_picture
from vesselseg.imaging.decode import DECODE_ERRORS, FORMATS, describe_decode_error
from vesselseg.imaging.label_shapes import ImageLabels, InvalidShape, LabelFileError, Shape, full_image_mask
from vesselseg.imaging.notes import Note
from vesselseg.imaging.warning_filters import suppress_warnings

_CLASSES = 8  # up to this many distinct values are classes, whatever their size
_CLASS_VALUES = 64  # values below this are classes, whatever their number
_OPAQUE = 128  # alpha from which a pixel counts as opaque
_MOST = 0.5  # of the image; a vessel mask that covers more is probably inverted
Notes = list[Note]


@dataclass(frozen=True)
class MaskLabels:
    """The mask files of one image, the first observer's first. notes: on how they were paired with the image."""

    paths: tuple[Path, ...]
    notes: tuple[Note, ...] = ()

    @property
    def path(self) -> Path:
        """The first observer's mask."""
        return self.paths[0]

    def read(self) -> ImageLabels:
        """One shape per value and observer; the label is the value as text: "1", "255", "#ff0000"."""
        classes, size, notes = read_mask(self.path)
        shapes, broken, observers = _shapes(classes, ""), [], []
        for number, path in enumerate(self.paths[1:], 2):
            try:
                others, other_size, other_notes = read_mask(path)
                if other_size != size:
                    raise LabelFileError(
                        f"{other_size[0]}x{other_size[1]}, the first observer's is {size[0]}x{size[1]}"
                    )
            except LabelFileError as error:
                broken.append(InvalidShape(0, "", "bad_mask", f"observer {number}: {error}"))
                continue
            shapes += _shapes(others, str(number))
            observers.append(str(number))
            notes += [Note(code, f"observer {number}: {reason}") for code, reason in other_notes]
        return ImageLabels(
            tuple(shapes), tuple(broken), "", None, size, (*self.notes, *notes), observers=tuple(observers)
        )


def _shapes(classes: dict[str, np.ndarray], observer: str) -> list[Shape]:
    return [
        full_image_mask(index, label, bitmap, label, observer) for index, (label, bitmap) in enumerate(classes.items())
    ]


def read_mask(path: Path) -> tuple[dict[str, np.ndarray], tuple[int, int], Notes]:
    """(label -> (height, width) bool for each value except the background, (width, height), notes).

    The background is 0 (black), or the lowest value if there is no 0. Many values that include large ones are grey
    levels from JPEG or smoothing, and are thresholded at half the maximum. Raises LabelFileError.
    """
    content = b""
    try:
        content = path.read_bytes()
        check_picture(path)
        with suppress_warnings():  # Pillow warns of large images
            image = Image.open(path, formats=FORMATS)
            image.load()
    except DECODE_ERRORS as error:
        raise LabelFileError(f"mask {describe_decode_error(error, content)}") from None
    notes: Notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append(Note("several_frames", f"the mask has {image.n_frames} frames; the first one is used"))  # type: ignore[attr-defined]
    values, name = _values(image)
    classes = _classes(values, name, image.format == "JPEG", notes)
    share = float(np.mean(np.any(list(classes.values()), axis=0))) if classes else 0.0
    if share > _MOST:
        notes.append(Note("mostly_labelled", f"{share:.0%} of the image is labelled; is the mask inverted?"))
    return classes, image.size, notes


def _values(image: Image.Image) -> tuple[np.ndarray, Callable[[float], str]]:
    """(height, width) numbers, 0 for black, and a function from number to label."""
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8), _plain
    if image.mode in ("L", "F") or image.mode.startswith("I") or (image.mode == "P" and _index_is_class(image)):
        return np.nan_to_num(np.asarray(image)), _plain
    rgba = np.asarray(image.convert("RGBA"))  # (height, width, 4)
    visible = rgba[..., 3] >= _OPAQUE  # (height, width)
    colours = rgba[..., :3] * visible[..., None]
    if not colours.any() and not visible.all():  # black on transparent
        return visible.astype(np.uint8), _plain
    if (colours == colours[..., :1]).all():
        return colours[..., 0], _plain
    return colours.astype(np.int64) @ np.array([65536, 256, 1]), _colour


def _plain(value: float) -> str:
    return f"{value:g}"


def _colour(value: float) -> str:
    return f"#{int(value):06x}"


def _index_is_class(image: Image.Image) -> bool:
    """Whether palette indices are classes: label palettes begin with black; otherwise the colours count."""
    palette = image.getpalette()
    return palette is not None and not any(palette[:3]) and "transparency" not in image.info


def _classes(values: np.ndarray, name: Callable[[float], str], lossy: bool, notes: Notes) -> dict[str, np.ndarray]:
    distinct = np.unique(values)
    highest = float(distinct[-1])
    if not lossy and (len(distinct) <= _CLASSES or highest < _CLASS_VALUES):
        background = 0 if len(distinct) == 1 or distinct[0] == 0 else distinct[0]
        if background:
            notes.append(Note("mask_background", f"no 0 in the mask; {name(background)} is used as the background"))
        return {name(value): values == value for value in distinct.tolist() if value != background}
    if name is _colour:
        raise LabelFileError(f"mask of {len(distinct)} colours; expected black and one colour per class")
    highest = 255.0 if values.dtype == np.uint8 else highest
    notes.append(Note("mask_grey", f"{len(distinct)} grey levels, thresholded at {highest / 2:g}"))
    over = values > highest / 2
    return {name(highest): over} if over.any() else {}
