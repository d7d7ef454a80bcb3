"""Input units: a file, a folder or a list of paths -> units, each an image or a clip.

A unit is predicted, finished and skipped as a whole: an image, a video, a DICOM file, or the single-frame DICOM files
of one series in one folder and at one position of the C-arm, ordered by InstanceNumber.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from vesselseg.errors import UserError
from vesselseg.imaging.decode import IMAGE_SUFFIXES, is_dicom
from vesselseg.imaging.dicom_series import SeriesPosition, order_notes, read_series_position, same_positions
from vesselseg.imaging.frames import VIDEO_SUFFIXES, FrameSource, SeriesFrames, UnreadableInputError, open_frames
from vesselseg.imaging.source_files import list_source_files, printable

LIST_SUFFIX = ".txt"
KINDS = f"an image ({', '.join(IMAGE_SUFFIXES)}), a DICOM file or a video ({', '.join(VIDEO_SUFFIXES)})"
_CHUNK = 1 << 20  # bytes hashed at a time

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputUnit:
    """One image or clip of the input."""

    path: Path  # of the file, or of the folder of a series
    file: str  # name of the unit: its path relative to the input folder, with forward slashes, valid UTF-8
    parts: tuple[Path, ...] = ()  # files of a series, in order; empty for a single file
    notes: tuple[str, ...] = ()  # remarks on the series of the file or files

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files of the unit."""
        return self.parts or (self.path,)

    def to_json(self) -> list[Any]:
        """JSON-compatible form, see `from_json`."""
        return [str(self.path), self.file, list(map(str, self.parts)), list(self.notes)]

    @classmethod
    def from_json(cls, content: list[Any]) -> InputUnit:
        """The inverse of `to_json`."""
        path, file, parts, notes = content
        return cls(Path(path), file, tuple(map(Path, parts)), tuple(notes))


@dataclass(frozen=True)
class ReadUnit:
    """An opened unit."""

    unit: InputUnit
    size: int = 0  # bytes
    sha256: str = ""  # of the bytes; "" if they could not be read
    pictures: FrameSource | None = None  # None after an error
    error: str = ""


def find_inputs(source: Path) -> list[InputUnit]:
    """The units of a file, a folder (recursively) or a text file with one path per line, relative to that file.

    Raises UserError if source is none of these or contains no supported file.
    """
    source, suffix = Path(source), Path(source).suffix.lower()
    if source.is_dir():
        return _units_in_folder(source)
    if not source.exists():
        raise UserError(f"{source} does not exist; name an image, a video, a DICOM file, a folder or a list of paths")
    if suffix == LIST_SUFFIX:
        return _units_in_list(source)
    if suffix not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) and not is_dicom(source):
        raise UserError(f"{source}: expected {KINDS}, a folder, or a {LIST_SUFFIX} file with one path per line")
    return [InputUnit(source, printable(source.name))]


def _units_in_folder(source: Path) -> list[InputUnit]:
    listed = list_source_files(source)
    for name, reason in listed.links:
        _log.warning("%s: %s", printable(name), reason)
    names = [*listed.images, *listed.others_with(*VIDEO_SUFFIXES), *listed.dicoms]
    if not names:
        kinds = Counter(Path(name).suffix.lower() or "without suffix" for name in (*listed.others, *listed.jsons))
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
        raise UserError(f"{source}: found {found}; expected {KINDS}")
    return _unique_names(_group_series([InputUnit(source / name, printable(name)) for name in sorted(names)]))


def _group_series(units: Sequence[InputUnit]) -> list[InputUnit]:
    """Combine single-frame DICOM files of one folder, series, size and position of the C-arm into a clip.

    It takes the place of its first file. Exposures at a position of their own remain single images.
    """
    members: dict[tuple[Path, str, tuple[int, int]], list[tuple[SeriesPosition, InputUnit]]] = defaultdict(list)
    for unit in units:
        place = read_series_position(unit.path) if is_dicom(unit.path) else None
        if place is not None:
            members[unit.path.parent, place.series, place.size].append((place, unit))
    combined: dict[InputUnit, InputUnit | None] = {}  # file -> the clip or image in its place
    for group in members.values():
        positions = same_positions([place.angles for place, _ in group])
        for position in dict.fromkeys(positions):
            part = [member for member, own in zip(group, positions) if own == position]
            combined |= dict.fromkeys((unit for _, unit in part), None)
            combined[part[0][1]] = _series_unit(part, len(set(positions)))
    replaced = [combined.get(unit, unit) for unit in units]
    return [unit for unit in replaced if unit is not None]


def _series_unit(group: Sequence[tuple[SeriesPosition, InputUnit]], positions: int) -> InputUnit:
    """One clip, or an image alone. positions: of the C-arm in the whole series."""
    ordered = sorted(group, key=lambda member: (member[0].number is None, member[0].number or 0, member[1].file))
    first, unit = ordered[0]
    apart = f"its series has exposures at {positions} positions of the C-arm: each is kept apart"
    notes: tuple[str, ...] = (apart,) if positions > 1 else ()
    if len(ordered) == 1:
        return replace(unit, notes=notes)
    name = PurePosixPath(unit.file).with_name(f"series_{first.series_number}").as_posix()
    notes += order_notes([place.number for place, _ in ordered])
    return InputUnit(unit.path.parent, name, tuple(member.path for _, member in ordered), notes)


def _units_in_list(source: Path) -> list[InputUnit]:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: expected text in UTF-8 with one path per line ({error})") from None
    folder = Path(os.path.abspath(source.parent))  # noqa: PTH100 - Path.absolute() keeps ".." in it
    # Not splitlines or a plain strip: both treat U+2028 and similar characters as white space, but names may have them.
    lines = [line.strip(" \t") for line in text.split("\n")]
    paths = [Path(os.path.normpath(folder / line)) for line in lines if line]
    if not paths:
        raise UserError(f"{source}: contains no path; expected one per line, relative to {folder}")
    paths = list(dict.fromkeys(paths))
    inside = all(folder in path.parents for path in paths)
    root = folder if inside else Path(os.path.commonpath([path.parent for path in paths]))
    return _unique_names(
        _group_series([InputUnit(path, printable(path.relative_to(root).as_posix())) for path in paths])
    )


def _unique_names(units: Sequence[InputUnit]) -> list[InputUnit]:
    """Number later units whose names are equal as text, which names in a legacy encoding can be."""
    taken: set[str] = set()
    unique = []
    for unit in units:
        name, file, number = PurePosixPath(unit.file), unit.file, 2
        while file in taken:
            file, number = name.with_name(f"{name.stem}_{number}{name.suffix}").as_posix(), number + 1
        taken.add(file)
        unique.append(replace(unit, file=file))
    return unique


def read_unit(unit: InputUnit, is_finished: Callable[[InputUnit, int, str], bool]) -> ReadUnit | None:
    """Hash and open a unit; None if it is finished. is_finished: called with the unit, its bytes and their SHA-256."""
    size, sha256 = 0, ""
    try:
        size, sha256 = _size_and_digest(unit.paths)
        if is_finished(unit, size, sha256):
            return None
        pictures = SeriesFrames(unit.parts, unit.notes) if unit.parts else open_frames(unit.path.name, unit.path)
    except UnreadableInputError as error:
        return ReadUnit(unit, size, sha256, error=str(error))
    except (FileNotFoundError, NotADirectoryError):
        return ReadUnit(unit, error="no such file")
    except OSError as error:
        return ReadUnit(unit, size, sha256, error=f"cannot be read: {error.strerror}")
    return ReadUnit(unit, size, sha256, pictures)


def _size_and_digest(paths: Sequence[Path]) -> tuple[int, str]:
    """(bytes, SHA-256) of the concatenated files."""
    size, hashed = 0, hashlib.sha256()
    for path in paths:
        if path.is_dir():
            raise UnreadableInputError("a directory; expected a file")
        with path.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                size += len(chunk)
                hashed.update(chunk)
    return size, hashed.hexdigest()
