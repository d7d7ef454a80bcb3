"""What is to be predicted: an image, a folder or a list of paths -> files, and each file -> a picture or a reason."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from vesselseg.data.rgb import as_rgb
from vesselseg.data.source_files import list_source, printable
from vesselseg.data.source_images import (
    DAMAGED,
    DEEP_MODES,
    IMAGE_SUFFIXES,
    decode_image,
    describe_damage,
    describe_depth,
)
from vesselseg.errors import UserError

LIST_SUFFIX = ".txt"
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".wmv", ".m4v", ".mpg", ".mpeg", ".webm")
LEAST_SIDE = 8  # pixels; anything smaller is a placeholder, not a picture
_LARGEST_FILE = 2 << 30  # bytes; it is read whole
_NOT_YET = {
    **dict.fromkeys(DICOM_SUFFIXES, "DICOM files are not read yet; save the frames as PNG, e.g. with dcm2img of DCMTK"),
    **dict.fromkeys(VIDEO_SUFFIXES, "videos are not read yet; take out the frames: ffmpeg -i VIDEO frames/%05d.png"),
}


@dataclass(frozen=True)
class InputFile:
    """path: where it lies. file: its path below the input's folder, with forward slashes, valid as text."""

    path: Path
    file: str


@dataclass(frozen=True)
class ReadFile:
    """What reading gave: an 8-bit RGB image, upright; or nothing and the error.

    size: bytes. sha256: of the bytes, "" where they could not be read. notes: what was changed or guessed.
    """

    source: InputFile
    size: int = 0
    sha256: str = ""
    image: Image.Image | None = None
    notes: tuple[str, ...] = ()
    error: str = ""


def find_inputs(source: Path) -> list[InputFile]:
    """The files of an image, a folder (however deep) or a text file with one path per line, relative to itself.

    Videos and DICOM files of a folder are among them, so that they are reported and not passed over in silence.
    Raises UserError where source is nothing of these, or holds no image at all.
    """
    source, suffix = Path(source), Path(source).suffix.lower()
    if source.is_dir():
        return _of_folder(source)
    if not source.exists():
        raise UserError(f"{source} does not exist; name an image, a folder of images or a text file of paths")
    if suffix in _NOT_YET:
        raise UserError(f"{source}: {_NOT_YET[suffix]}")
    if suffix == LIST_SUFFIX:
        return _of_list(source)
    if suffix not in IMAGE_SUFFIXES:
        raise UserError(
            f"{source}: expected an image ({', '.join(IMAGE_SUFFIXES)}), a folder, or a {LIST_SUFFIX} file with one "
            "path per line"
        )
    return [InputFile(source, printable(source.name))]


def _of_folder(source: Path) -> list[InputFile]:
    listed = list_source(source)
    refused = [name for name in listed.others if Path(name).suffix.lower() in _NOT_YET]
    if not listed.images:
        kinds = Counter(Path(name).suffix.lower() or "without ending" for name in (*listed.others, *listed.jsons))
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
        hint = f"; {_NOT_YET[Path(refused[0]).suffix.lower()]}" if refused else ""
        raise UserError(f"{source}: no image in it ({', '.join(IMAGE_SUFFIXES)}); found {found}{hint}")
    names = sorted([*listed.images, *refused])
    return _unique([InputFile(source / name, printable(name)) for name in names])


def _of_list(source: Path) -> list[InputFile]:
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: expected text in UTF-8 with one path per line ({error})") from None
    folder = Path(os.path.abspath(source.parent))  # noqa: PTH100 - Path.absolute() keeps ".." in it
    paths = [Path(os.path.normpath(folder / line.strip())) for line in lines if line.strip()]
    if not paths:
        raise UserError(f"{source}: no path in it; expected one per line, relative to {folder}")
    paths = list(dict.fromkeys(paths))
    inside = all(folder in path.parents for path in paths)
    root = folder if inside else Path(os.path.commonpath([path.parent for path in paths]))
    return _unique([InputFile(path, printable(path.relative_to(root).as_posix())) for path in paths])


def _unique(inputs: Sequence[InputFile]) -> list[InputFile]:
    """Names in an old encoding may read alike as text; the later ones get a number."""
    taken: set[str] = set()
    unique = []
    for item in inputs:
        place, file, number = PurePosixPath(item.file), item.file, 2
        while file in taken:
            file, number = place.with_name(f"{place.stem}_{number}{place.suffix}").as_posix(), number + 1
        taken.add(file)
        unique.append(InputFile(item.path, file))
    return unique


def read_file(source: InputFile, is_finished: Callable[[InputFile, int, str], bool]) -> ReadFile | None:
    """Read, hash and decode one file; None if it is finished, which size and hash of its bytes tell."""
    refusal = _NOT_YET.get(source.path.suffix.lower(), "")
    if refusal:
        return ReadFile(source, error=refusal)
    try:
        size = source.path.stat().st_size
        if size > _LARGEST_FILE:
            return ReadFile(source, size, error=f"{size >> 20} MiB; expected an image of at most 2 GiB")
        content = source.path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ReadFile(source, error="no such file")
    except OSError as error:
        return ReadFile(source, error=f"cannot be read: {error.strerror}")
    sha256 = hashlib.sha256(content).hexdigest()
    if is_finished(source, len(content), sha256):
        return None
    image, notes, reason = _decode(content)
    return ReadFile(source, len(content), sha256, image, notes, reason)


def _decode(content: bytes) -> tuple[Image.Image | None, tuple[str, ...], str]:
    """(image, notes, "") or (None, (), why not)."""
    if content[128:132] == b"DICM":
        return None, (), _NOT_YET[DICOM_SUFFIXES[0]]
    try:
        image, changes = decode_image(content, None)
    except Image.DecompressionBombError:
        return None, (), f"too large: more than {2 * int(Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels"
    except DAMAGED as error:
        return None, (), describe_damage(error, content)
    if min(image.size) < LEAST_SIDE:
        return None, (), f"{image.width}x{image.height} pixels; expected at least {LEAST_SIDE} a side"
    notes = [reason for _, reason in changes]
    if image.mode in DEEP_MODES:
        notes.append(describe_depth(image))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        notes.append("transparent pixels are taken as black")
    return as_rgb(image), tuple(notes), ""
