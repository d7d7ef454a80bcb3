"""An image file of a dataset folder -> 8-bit RGB, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vesselseg.errors import ManifestError
from vesselseg.imaging.decode import DECODE_ERRORS
from vesselseg.imaging.rgb import to_rgb


def read_image(path: Path) -> Image.Image:
    """The picture as 8-bit RGB; raises ManifestError naming the file if it cannot be read."""
    try:
        with Image.open(path) as opened:
            opened.load()  # an RGB image is handed on as it is, and its file is closed here
            return to_rgb(opened)
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> ManifestError:
    """What to say of a file that Pillow or the file system refuses."""
    return ManifestError(f"{path}: cannot be read as an image ({error}); prepare the data again")
