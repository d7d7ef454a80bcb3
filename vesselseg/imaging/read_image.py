"""Read an image file of a dataset folder as 8-bit RGB."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vesselseg.errors import ManifestError
from vesselseg.imaging.decode import DECODE_ERRORS
from vesselseg.imaging.rgb import to_rgb


def read_image(path: Path) -> Image.Image:
    """The image as 8-bit RGB; raises ManifestError that names the file if it cannot be read."""
    try:
        with Image.open(path) as opened:
            opened.load()  # to_rgb returns an RGB image unchanged, and its file is closed on return
            return to_rgb(opened)
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> ManifestError:
    """The error for an image file that Pillow or the file system cannot read."""
    return ManifestError(f"{path}: cannot be read as an image ({error}); prepare the data again")
