"""Find the image of a label file, decode it completely, and convert it to the form that is stored.

8-bit PNG and JPEG files are copied byte for byte. Everything else is written as PNG, losslessly if 8 bits suffice.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from vesselseg.imaging.decode import (
    DECODE_ERRORS,
    IMAGE_SUFFIXES,
    ImageError,
    decode_image,
    describe_decode_error,
    encode_png,
    is_dicom,
)
from vesselseg.imaging.eight_bits import HIGH_DEPTH_MODES, describe_depth, to_8_bit
from vesselseg.imaging.label_shapes import ImageLabels
from vesselseg.imaging.notes import Note
from vesselseg.imaging.spellings import other_spellings

_KEPT_FORMATS = {"PNG": ".png", "JPEG": ".jpg"}


@dataclass(frozen=True)
class ImageFile:
    """An image file of the source. frame: of a DICOM clip, counted from 0, or None."""

    path: Path
    frame: int | None = None


@dataclass(frozen=True)
class SourceImage:
    """A decoded image, ready to be stored."""

    content: bytes  # of the file to write
    suffix: str  # of the file to write, with its dot
    pixels: Image.Image  # as decoded
    origin: Path | None  # the file it was read from, None for imageData
    notes: tuple[Note, ...]  # what was changed or guessed
    spacing: tuple[float, float] | None = None  # (row, column) in mm per pixel
    patient: str = ""  # see DicomFrame
    plane: str = ""  # where the spacing is measured: "patient", "detector" or ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.size


def find_source_image(
    labels: ImageLabels, json_path: Path, allowed_root: Path | None = None, dicom: ImageFile | None = None
) -> SourceImage:
    """The image of a LabelMe file: imagePath, else the same stem next to the JSON, else ``dicom``, else imageData.

    A frame of a clip comes after imageData, which certainly is the labelled image, while a frame number in a file name
    is a guess. allowed_root: folder that must contain the image, so that an extracted archive cannot refer to files
    outside it; None: any folder. The patient is that of ``dicom`` even if another image is used.
    Raises ImageError if there is no image, or none that can be decoded completely.
    """
    candidates, notes = _candidates(labels, json_path, allowed_root)
    if dicom is not None:
        candidates = [entry for entry in candidates if entry[1] is None or not is_dicom(entry[1].path)]
        held = labels.image_data is not None and dicom.frame is None
        candidates.insert(len(candidates) - held, (dicom.path.name, dicom))
    failures: list[tuple[str, ImageError]] = []
    for name, file in candidates:
        try:
            image = load_image_file(file, labels)
        except ImageError as error:
            failures.append((name, error))
            continue
        if failures:
            notes.append(Note("image_fallback", f"{_describe(failures)}; used {name} instead"))
        patient = image.patient or (_patient(dicom.path) if dicom is not None else "")
        return replace(image, notes=(*notes, *image.notes), patient=patient)
    if len(failures) == 1 and dicom is not None and failures[0][0] == dicom.path.name:
        raise failures[0][1]
    if failures:
        raise ImageError("unreadable_image", _describe(failures))
    wanted = labels.image_path or "(imagePath is empty)"
    raise ImageError("no_image", f"no image: {wanted} does not exist, nor a file {json_path.stem}.*, nor imageData")


def _describe(failures: list[tuple[str, ImageError]]) -> str:
    return "; ".join(f"{name}: {error}" for name, error in failures)


def load_image_file(file: ImageFile | None, labels: ImageLabels) -> SourceImage:
    """Decode one image, or LabelMe's imageData for None, and convert it to the stored form.

    Raises ImageError if it cannot be decoded completely.
    """
    if file is not None and is_dicom(file.path):
        return _load_dicom(file)
    content = b""
    try:
        content = file.path.read_bytes() if file is not None else labels.image_data or b""
        image, notes = decode_image(content, labels.size)
        content, suffix, notes = _stored_form(image, content, notes)
    except DECODE_ERRORS as error:
        raise ImageError("unreadable_image", describe_decode_error(error, content)) from None
    return SourceImage(content, suffix, image, None if file is None else file.path, tuple(notes))


def _patient(path: Path) -> str:
    from vesselseg.imaging.dicom import read_patient

    return read_patient(path)


def _load_dicom(file: ImageFile) -> SourceImage:
    from vesselseg.imaging.dicom import read_frame  # pydicom is slow to import, and few sources need it

    frame = read_frame(file.path, file.frame)
    pixels = frame.pixels
    content = encode_png(pixels)
    return SourceImage(content, ".png", pixels, file.path, frame.notes, frame.spacing, frame.patient, frame.plane)


def _candidates(
    labels: ImageLabels, json_path: Path, allowed_root: Path | None
) -> tuple[list[tuple[str, ImageFile | None]], list[Note]]:
    """(name, file) of the possible images in order of preference, and a note if two names conflict."""
    folder = json_path.parent
    name = labels.image_path.rsplit("/", 1)[-1]
    named = [folder / labels.image_path, folder / name] if name else []
    same_name = [path for suffix in IMAGE_SUFFIXES for path in _same_stem(json_path, suffix)]
    spelled = [path for path in _other_spellings(name, json_path) if path not in named + same_name]
    found: list[Path] = []
    for path in named + same_name + spelled:
        if path not in found and _is_image_file(path, json_path, allowed_root):
            found.append(path)
    notes: list[Note] = []
    first = found[0] if found else None
    other = next((path for path in found if path in same_name), None)
    if first in named and other is not None and first is not None and first.stem != other.stem:
        message = f"imagePath names {first.name}, which is used, but {other.name} is next to the JSON file"
        notes.append(Note("other_stem", message))
    if first in spelled and first is not None:
        notes.append(Note("name_match", f"{name or json_path.name} is {first.name}, by another spelling of the name"))
    candidates: list[tuple[str, ImageFile | None]] = [(path.name, ImageFile(path)) for path in found]
    if labels.image_data is not None:
        candidates.append(("imageData", None))
    return candidates, notes


def _other_spellings(name: str, json_path: Path) -> list[Path]:
    """Images next to the JSON file whose name, or the JSON's, is another spelling of the wanted one."""
    wanted = [spelled.rsplit("/", 1)[-1] for _, spelled in other_spellings(name)]
    stems = [json_path.stem, *(spelled for _, spelled in other_spellings(json_path.stem))]
    wanted += [stem + suffix for stem in stems for suffix in IMAGE_SUFFIXES]
    spellings = [unicodedata.normalize(form, one) for one in [name, *wanted] if one for form in ("NFC", "NFD")]
    return [
        json_path.with_name(one) for one in spellings if one not in (".", "..") and "/" not in one and "\0" not in one
    ]


def _same_stem(json_path: Path, suffix: str) -> list[Path]:
    return [json_path.with_name(json_path.stem + spelling) for spelling in (suffix, suffix.upper())]


def _is_image_file(path: Path, json_path: Path, allowed_root: Path | None) -> bool:
    try:
        if path == json_path or path.suffix.lower() == ".json" or not path.is_file():
            return False
        return allowed_root is None or allowed_root.resolve() in path.resolve().parents
    except (OSError, ValueError):  # imagePath is free text: a name may be too long or contain NUL
        return False


def _stored_form(image: Image.Image, content: bytes, notes: list[Note]) -> tuple[bytes, str, list[Note]]:
    """(bytes, suffix, notes) of the file to store for a decoded image; content: the bytes that it was decoded from."""
    if image.mode in HIGH_DEPTH_MODES:
        return encode_png(to_8_bit(image)), ".png", [*notes, Note("sixteen_bit", describe_depth(image))]
    if image.format in _KEPT_FORMATS:
        return content, _KEPT_FORMATS[image.format], notes
    plain = image if image.mode in ("L", "RGB") else image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return encode_png(plain), ".png", notes
