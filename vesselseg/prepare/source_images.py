"""The image that belongs to labels: find it, decode it to the end, store it.

PNG and JPEG with 8 bits are copied byte for byte. Everything else is written as PNG, losslessly where 8 bits hold it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from vesselseg.imaging.decode import (
    DECODE_ERRORS,
    HIGH_DEPTH_MODES,
    IMAGE_SUFFIXES,
    ImageError,
    decode_image,
    describe_decode_error,
    describe_depth,
    encode_png,
    is_dicom,
    to_8_bit,
)
from vesselseg.imaging.label_shapes import ImageLabels

_KEPT_FORMATS = {"PNG": ".png", "JPEG": ".jpg"}


@dataclass(frozen=True)
class ImageFile:
    """A picture of the source; frame: of a DICOM clip, counted from 0, or None."""

    path: Path
    frame: int | None = None


@dataclass(frozen=True)
class SourceImage:
    """A decoded image, ready to be stored.

    content, suffix: the bytes to write and their file ending; pixels: as decoded, for overlays and comparison.
    origin: the file it came from, or None for imageData. notes: (code, message) of what was changed or guessed.
    spacing: (row, column) mm per pixel, or None. patient: what DICOM tells patients apart by, or "".
    """

    content: bytes
    suffix: str
    pixels: Image.Image
    origin: Path | None
    notes: tuple[tuple[str, str], ...]
    spacing: tuple[float, float] | None = None
    patient: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.size


def find_source_image(
    labels: ImageLabels, json_path: Path, within: Path | None = None, dicom: ImageFile | None = None
) -> SourceImage:
    """The image of a LabelMe file: imagePath, else the same stem beside the JSON, else ``dicom``, else imageData.

    A frame of a clip comes after imageData: that is what was labelled, and which frame a name means has to be guessed.
    within: folder that the image must lie in (an unpacked archive may not point outside), or None for anywhere.
    The patient is that of ``dicom``, also where another picture is taken.
    Raises ImageError when there is none, or none that can be decoded to its end.
    """
    candidates, notes = _candidates(labels, json_path, within)
    if dicom is not None:
        candidates = [entry for entry in candidates if entry[1] is None or not is_dicom(entry[1].path)]
        held = labels.image_data is not None and dicom.frame is None
        candidates.insert(len(candidates) - held, (dicom.path.name, dicom))
    failures: list[tuple[str, ImageError]] = []
    for name, picture in candidates:
        try:
            image = load_image_file(picture, labels)
        except ImageError as error:
            failures.append((name, error))
            continue
        if failures:
            notes.append(("image_fallback", f"{_describe(failures)}; used {name} instead"))
        patient = image.patient or (_patient(dicom.path) if dicom is not None else "")
        return replace(image, notes=(*notes, *image.notes), patient=patient)
    if len(failures) == 1 and dicom is not None and failures[0][0] == dicom.path.name:
        raise failures[0][1]
    if failures:
        raise ImageError("unreadable_image", _describe(failures))
    wanted = labels.image_path or "(imagePath is empty)"
    raise ImageError("no_image", f"no image: {wanted} is not there, nor a file {json_path.stem}.*, nor imageData")


def _describe(failures: list[tuple[str, ImageError]]) -> str:
    return "; ".join(f"{name}: {error}" for name, error in failures)


def load_image_file(picture: ImageFile | None, labels: ImageLabels) -> SourceImage:
    """Decode one picture, or LabelMe's imageData for None, and bring it into the form that is stored.

    Raises ImageError where it cannot be decoded to its end.
    """
    if picture is not None and is_dicom(picture.path):
        return _load_dicom(picture)
    content = b""
    try:
        content = picture.path.read_bytes() if picture is not None else labels.image_data or b""
        image, notes = decode_image(content, labels.size)
        content, suffix, notes = _stored_form(image, content, notes)
    except DECODE_ERRORS as error:
        raise ImageError("unreadable_image", describe_decode_error(error, content)) from None
    return SourceImage(content, suffix, image, None if picture is None else picture.path, tuple(notes))


def _patient(path: Path) -> str:
    from vesselseg.imaging.dicom import read_patient

    return read_patient(path)


def _load_dicom(picture: ImageFile) -> SourceImage:
    from vesselseg.imaging.dicom import read_frame  # pydicom takes a while to import, and few sources need it

    frame = read_frame(picture.path, picture.frame)
    pixels = frame.pixels
    return SourceImage(encode_png(pixels), ".png", pixels, picture.path, frame.notes, frame.spacing, frame.patient)


def _candidates(
    labels: ImageLabels, json_path: Path, within: Path | None
) -> tuple[list[tuple[str, ImageFile | None]], list[tuple[str, str]]]:
    """Where the image may be, in order, without repetition; and a note if two names compete."""
    folder = json_path.parent
    name = labels.image_path.rsplit("/", 1)[-1]
    named = [folder / labels.image_path, folder / name] if name else []
    beside = [path for suffix in IMAGE_SUFFIXES for path in _same_stem(json_path, suffix)]
    found: list[Path] = []
    for path in named + beside:
        if path not in found and _is_image_file(path, json_path, within):
            found.append(path)
    notes = []
    first = found[0] if found else None
    other = next((path for path in found if path in beside), None)
    if first in named and other is not None and first is not None and first.stem != other.stem:
        notes.append(("other_stem", f"imagePath names {first.name}, which is used, though {other.name} is beside it"))
    candidates: list[tuple[str, ImageFile | None]] = [(path.name, ImageFile(path)) for path in found]
    if labels.image_data is not None:
        candidates.append(("imageData", None))
    return candidates, notes


def _same_stem(json_path: Path, suffix: str) -> list[Path]:
    return [json_path.with_name(json_path.stem + spelling) for spelling in (suffix, suffix.upper())]


def _is_image_file(path: Path, json_path: Path, within: Path | None) -> bool:
    try:
        if path == json_path or path.suffix.lower() == ".json" or not path.is_file():
            return False
        return within is None or within.resolve() in path.resolve().parents
    except (OSError, ValueError):  # imagePath is free text: too long a name, a NUL inside
        return False


def _stored_form(
    image: Image.Image, content: bytes, notes: list[tuple[str, str]]
) -> tuple[bytes, str, list[tuple[str, str]]]:
    if image.mode in HIGH_DEPTH_MODES:
        return encode_png(to_8_bit(image)), ".png", [*notes, ("sixteen_bit", describe_depth(image))]
    if image.format in _KEPT_FORMATS:
        return content, _KEPT_FORMATS[image.format], notes
    plain = image if image.mode in ("L", "RGB") else image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return encode_png(plain), ".png", notes
