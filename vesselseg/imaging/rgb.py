"""A picture of any mode -> 8-bit RGB; without torch, which reading pictures and masks does not need."""

from __future__ import annotations

from PIL import Image

from vesselseg.imaging.decode import HIGH_DEPTH_MODES, to_8_bit


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image mode as 8-bit RGB; 16-bit and float images are scaled from their own range, transparency is black.

    Pixels stay where they are stored, here and everywhere behind it: polygons count them so, and a mask fits the image
    that was passed in. An EXIF orientation is applied once, by `tools/prepare_data.py`, and then dropped from the file.
    """
    if image.mode == "RGB":
        return image
    if image.mode in HIGH_DEPTH_MODES:
        return to_8_bit(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
