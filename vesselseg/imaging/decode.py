"""Decode image files completely: formats, EXIF orientation, bit depth, damage."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vesselseg.imaging.codec_process import check_picture
from vesselseg.imaging.image_error import ImageError as ImageError
from vesselseg.imaging.notes import Note
from vesselseg.imaging.warning_filters import suppress_warnings

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm")
# What Pillow may read from a user's file, by content: others start programs (EPS) or are no pictures of vessels.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
DICOM_MAGIC = (128, b"DICM")  # (offset, bytes): the DICOM prefix, PS3.10, section 7.1
_ORIENTATION = 0x0112  # EXIF tag
# What Pillow raises on damaged files; each format has its own.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    Image.DecompressionBombError,
)


def is_dicom(path: Path) -> bool:
    """Decide by suffix; without a suffix, or with a numeric one as in UIDs, by the DICOM prefix."""
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return True
    if path.name.upper() == "DICOMDIR" or (suffix and not suffix[1:].isdigit()):
        return False
    try:
        with path.open("rb") as opened:
            offset, magic = DICOM_MAGIC
            return opened.read(offset + len(magic))[offset:] == magic
    except OSError:
        return False


def decode_image(content: bytes, label_size: tuple[int, int] | None) -> tuple[Image.Image, list[Note]]:
    """Decode all pixels, so that a truncated file raises here, and orient the image as LabelMe displayed it.

    label_size: (width, height) that the labels refer to, None if unknown. Raises one of DECODE_ERRORS.
    """
    check_picture(content)
    with suppress_warnings():  # Pillow warns of large images
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
    notes: list[Note] = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append(Note("several_frames", f"{image.n_frames} frames in one file; the first one is used"))  # type: ignore[attr-defined]
    upright = _upright(image, label_size)
    if upright is not image:
        upright.format = "turned"  # not a kept format: the original bytes would be rotated a second time
        notes.append(Note("turned", "the EXIF orientation is applied, as in LabelMe"))
    elif image.getexif().get(_ORIENTATION, 1) != 1:
        upright.format = "turned"
        notes.append(Note("turned", "the EXIF orientation is dropped: the labels fit the image as stored"))
    return upright, notes


def _upright(image: Image.Image, label_size: tuple[int, int] | None) -> Image.Image:
    """Apply the EXIF orientation as LabelMe does, unless `label_size` shows that the labelling tool did not."""
    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    return image if label_size == image.size != turned.size else turned


def encode_png(image: Image.Image) -> bytes:
    """PNG with pixels only: no EXIF, no text."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, format="PNG")  # a new image carries no metadata
    return buffer.getvalue()


def describe_decode_error(error: Exception, content: bytes) -> str:
    """Why a file is not a readable image. error: one of DECODE_ERRORS; content: its bytes, empty if not read."""
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if not content:
        return "the file is empty (0 bytes)"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    return f"damaged or truncated ({str(error).strip() or type(error).__name__})"
