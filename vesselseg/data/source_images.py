"""The image that belongs to a LabelMe file: find it, decode it to the end, store it.

PNG and JPEG with 8 bits are copied byte for byte. Everything else is written as PNG, losslessly where 8 bits hold it.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vesselseg.data.labelme import LabelFile

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm")
_KEPT_FORMATS = {"PNG": ".png", "JPEG": ".jpg"}
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION = 0x0112  # EXIF tag
# what Pillow raises on damaged files, format by format
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, Image.DecompressionBombError)


class ImageError(ValueError):
    """No usable image for a LabelMe file; code: short reason for counting."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class SourceImage:
    """A decoded image, ready to be stored.

    content, suffix: the bytes to write and their file ending; pixels: as decoded, for overlays and comparison.
    origin: the file it came from, or None for imageData. notes: (code, message) of what was changed or guessed.
    """

    content: bytes
    suffix: str
    pixels: Image.Image
    origin: Path | None
    notes: tuple[tuple[str, str], ...]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.size


def load_source_image(labels: LabelFile, json_path: Path, within: Path | None = None) -> SourceImage:
    """The image of a LabelMe file: imagePath, else the same stem beside the JSON, else imageData.

    within: folder that the image must lie in (an unpacked archive may not point outside), or None for anywhere.
    Raises ImageError when there is none, or none that can be decoded to its end.
    """
    candidates, notes = _candidates(labels, json_path, within)
    failures: list[str] = []
    for name, path in candidates:
        content = b""
        try:
            content = path.read_bytes() if path is not None else labels.image_data or b""
            image, changes = decode_image(content, labels.size)
        except DAMAGED as error:
            failures.append(f"{name}: {describe_damage(error, content)}")
            continue
        if failures:
            notes.append(("image_fallback", f"{'; '.join(failures)}; used {name} instead"))
        content, suffix, changes = _stored_form(image, content, changes)
        return SourceImage(content, suffix, image, path, tuple(notes + changes))
    if failures:
        raise ImageError("unreadable_image", "; ".join(failures))
    wanted = labels.image_path or "(imagePath is empty)"
    raise ImageError("no_image", f"no image: {wanted} is not there, nor a file {json_path.stem}.*, nor imageData")


def _candidates(
    labels: LabelFile, json_path: Path, within: Path | None
) -> tuple[list[tuple[str, Path | None]], list[tuple[str, str]]]:
    """Where the image may be, in order, without repetition; and a note if two names compete."""
    folder = json_path.parent
    name = labels.image_path.rsplit("/", 1)[-1]
    named = [folder / labels.image_path, folder / name] if name else []
    beside = [path for suffix in IMAGE_SUFFIXES for path in _same_stem(json_path, suffix)]
    found: list[tuple[str, Path | None]] = []
    for path in named + beside:
        if _is_image_file(path, json_path, within) and path not in [known for _, known in found]:
            found.append((path.name, path))
    notes = []
    first = found[0][1] if found else None
    other = next((path for _, path in found if path in beside), None)
    if first in named and other is not None and first is not None and first.stem != other.stem:
        notes.append(("other_stem", f"imagePath names {first.name}, which is used, though {other.name} is beside it"))
    if labels.image_data is not None:
        found.append(("imageData", None))
    return found, notes


def _same_stem(json_path: Path, suffix: str) -> list[Path]:
    return [json_path.with_name(json_path.stem + spelling) for spelling in (suffix, suffix.upper())]


def _is_image_file(path: Path, json_path: Path, within: Path | None) -> bool:
    try:
        if path == json_path or path.suffix.lower() == ".json" or not path.is_file():
            return False
        return within is None or within.resolve() in path.resolve().parents
    except (OSError, ValueError):  # imagePath is free text: too long a name, a NUL inside
        return False


def decode_image(content: bytes, label_size: tuple[int, int] | None) -> tuple[Image.Image, list[tuple[str, str]]]:
    """Decode all pixels, so that a cut-off file is found here; turn the picture as LabelMe showed it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(content))
        image.load()
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append(("several_frames", f"{image.n_frames} frames in one file; the first one is used"))  # type: ignore[attr-defined]
    upright = _upright(image, label_size)
    if upright is not image:
        upright.format = "turned"  # the stored bytes must not say that the picture has to be turned again
        notes.append(("turned", "the EXIF orientation is applied, as LabelMe does"))
    elif image.getexif().get(_ORIENTATION, 1) != 1:
        upright.format = "turned"
        notes.append(("turned", "the EXIF orientation is dropped: the labels fit the picture as it is stored"))
    return upright, notes


def _upright(image: Image.Image, label_size: tuple[int, int] | None) -> Image.Image:
    """LabelMe applies the EXIF orientation; labels of a tool that does not show by the swapped size."""
    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    return image if label_size == image.size != turned.size else turned


def _stored_form(
    image: Image.Image, content: bytes, notes: list[tuple[str, str]]
) -> tuple[bytes, str, list[tuple[str, str]]]:
    if image.mode in DEEP_MODES:
        return _png(_to_eight_bits(image)), ".png", [*notes, ("sixteen_bit", describe_depth(image))]
    if image.format in _KEPT_FORMATS:
        return content, _KEPT_FORMATS[image.format], notes
    plain = image if image.mode in ("L", "RGB") else image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return _png(plain), ".png", notes


def _to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    return Image.fromarray(np.round((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8))


def describe_depth(image: Image.Image) -> str:
    """What is done to an image in one of DEEP_MODES, and the range of its values."""
    values = np.asarray(image)
    return f"more than 8 bits per pixel; values {values.min():g} to {values.max():g} are scaled to 0 to 255"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    clean = Image.fromarray(np.asarray(image))  # without EXIF and text chunks
    clean.save(buffer, format="PNG")
    return buffer.getvalue()


def describe_damage(error: Exception, content: bytes) -> str:
    """Why a file's bytes, read or not, make no image; error: one of DAMAGED."""
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if not content:
        return "the file is empty (0 bytes)"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    return f"damaged or cut off ({str(error).strip() or type(error).__name__})"
