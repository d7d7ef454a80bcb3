"""Convert an image of any Pillow mode to 8-bit RGB."""

from __future__ import annotations

from PIL import Image

from vesselseg.imaging.eight_bits import HIGH_DEPTH_MODES, to_8_bit


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as 8-bit RGB: 16-bit and float images are scaled from their own range, transparent pixels are black.

    Pixels are never rotated, so masks fit the image that was passed in: `vesselseg prepare` applies an EXIF
    orientation once and removes it from the file.
    """
    if image.mode == "RGB":
        return image
    if image.mode in HIGH_DEPTH_MODES:
        return to_8_bit(image).convert("RGB")
    if has_transparency(image):
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def has_transparency(image: Image.Image) -> bool:
    """Whether the image has an alpha channel or a transparent colour."""
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
