"""What is to be predicted: a file, a folder or a list of paths -> units, each an image or a clip.

A unit is what is predicted, finished and skipped as a whole: an image, a video, a DICOM file, or the single DICOM
pictures of one series that lie in one folder, by InstanceNumber.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from vesselseg.errors import UserError
from vesselseg.imaging.decode import IMAGE_SUFFIXES, is_dicom
from vesselseg.imaging.dicom import SeriesPosition, read_series_position
from vesselseg.imaging.frames import VIDEO_SUFFIXES, FrameSource, SeriesFrames, UnreadableInputError, open_frames
from vesselseg.imaging.source_files import list_source_files, printable

LIST_SUFFIX = ".txt"
KINDS = f"an image ({', '.join(IMAGE_SUFFIXES)}), a DICOM file or a video ({', '.join(VIDEO_SUFFIXES)})"
_CHUNK = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True)
class InputUnit:
    """path: where it lies. file: its path below the input's folder, with forward slashes, valid as text.

    parts: the files of a series in order, path is their folder; nothing for a single file. notes: on the series.
    """

    path: Path
    file: str
    parts: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files of the unit."""
        return self.parts or (self.path,)

    def to_json(self) -> list[Any]:
        """What `from_json` makes the same unit of."""
        return [str(self.path), self.file, list(map(str, self.parts)), list(self.notes)]

    @classmethod
    def from_json(cls, content: list[Any]) -> InputUnit:
        """The unit that `to_json` gave this for."""
        path, file, parts, notes = content
        return cls(Path(path), file, tuple(map(Path, parts)), tuple(notes))


@dataclass(frozen=True)
class ReadUnit:
    """What reading gave: pictures, or nothing and the error.

    size: bytes. sha256: of the bytes, "" where they could not be read.
    """

    source: InputUnit
    size: int = 0
    sha256: str = ""
    pictures: FrameSource | None = None
    error: str = ""


def find_inputs(source: Path) -> list[InputUnit]:
    """The units of a file, a folder (however deep) or a text file with one path per line, relative to itself.

    Raises UserError where source is nothing of these, or holds nothing of the kind.
    """
    source, suffix = Path(source), Path(source).suffix.lower()
    if source.is_dir():
        return _of_folder(source)
    if not source.exists():
        raise UserError(f"{source} does not exist; name an image, a video, a DICOM file, a folder or a list of paths")
    if suffix == LIST_SUFFIX:
        return _of_list(source)
    if suffix not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) and not is_dicom(source):
        raise UserError(f"{source}: expected {KINDS}, a folder, or a {LIST_SUFFIX} file with one path per line")
    return [InputUnit(source, printable(source.name))]


def _of_folder(source: Path) -> list[InputUnit]:
    listed = list_source_files(source)
    names = [*listed.images, *listed.others_with(*VIDEO_SUFFIXES), *listed.dicoms]
    if not names:
        kinds = Counter(Path(name).suffix.lower() or "without ending" for name in (*listed.others, *listed.jsons))
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
        raise UserError(f"{source}: found {found}; expected {KINDS}")
    return _unique(_in_series([InputUnit(source / name, printable(name)) for name in sorted(names)]))


def _in_series(units: Sequence[InputUnit]) -> list[InputUnit]:
    """Single DICOM pictures of a folder and series become one unit, in the place of the first."""
    members: dict[tuple[Path, str, tuple[int, int]], list[tuple[SeriesPosition, InputUnit]]] = defaultdict(list)
    for unit in units:
        place = read_series_position(unit.path) if is_dicom(unit.path) else None
        if place is not None:
            members[unit.path.parent, place.series, place.size].append((place, unit))
    runs = {run[0][1]: run for run in members.values() if len(run) > 1}
    taken = {unit for run in runs.values() for _, unit in run}
    return [_series(runs[unit]) if unit in runs else unit for unit in units if unit in runs or unit not in taken]


def _series(run: Iterable[tuple[SeriesPosition, InputUnit]]) -> InputUnit:
    ordered = sorted(run, key=lambda member: (member[0].number, member[1].file))
    first, unit = ordered[0]
    name = PurePosixPath(unit.file).with_name(f"series_{first.series_number}").as_posix()
    notes = _gaps([place.number for place, _ in ordered])
    return InputUnit(unit.path.parent, name, tuple(member.path for _, member in ordered), notes)


def _gaps(numbers: Sequence[int]) -> tuple[str, ...]:
    """What InstanceNumbers in order say of pictures that are not there; numbers by twos and the like leave none out."""
    steps = [later - earlier for earlier, later in pairwise(numbers) if later > earlier]
    if not steps or len(set(steps)) == 1:
        return ()
    missing = sum(step - 1 for step in steps)
    after = next(earlier for earlier, later in pairwise(numbers) if later - earlier > 1)
    span = f"{numbers[0]} to {numbers[-1]}"
    return (f"pictures may be missing: {missing} of the InstanceNumbers {span} have none, the first is {after + 1}",)


def _of_list(source: Path) -> list[InputUnit]:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: expected text in UTF-8 with one path per line ({error})") from None
    folder = Path(os.path.abspath(source.parent))  # noqa: PTH100 - Path.absolute() keeps ".." in it
    # Neither splitlines nor a plain strip: both take U+2028 and the like for blanks, which may stand in a name.
    lines = [line.strip(" \t") for line in text.split("\n")]
    paths = [Path(os.path.normpath(folder / line)) for line in lines if line]
    if not paths:
        raise UserError(f"{source}: no path in it; expected one per line, relative to {folder}")
    paths = list(dict.fromkeys(paths))
    inside = all(folder in path.parents for path in paths)
    root = folder if inside else Path(os.path.commonpath([path.parent for path in paths]))
    return _unique(_in_series([InputUnit(path, printable(path.relative_to(root).as_posix())) for path in paths]))


def _unique(inputs: Sequence[InputUnit]) -> list[InputUnit]:
    """Names in an old encoding may read alike as text; the later ones get a number."""
    taken: set[str] = set()
    unique = []
    for item in inputs:
        place, file, number = PurePosixPath(item.file), item.file, 2
        while file in taken:
            file, number = place.with_name(f"{place.stem}_{number}{place.suffix}").as_posix(), number + 1
        taken.add(file)
        unique.append(replace(item, file=file))
    return unique


def read_unit(source: InputUnit, is_finished: Callable[[InputUnit, int, str], bool]) -> ReadUnit | None:
    """Hash and open one unit; None if it is finished, which size and hash of its bytes tell."""
    size, sha256 = 0, ""
    try:
        size, sha256 = _fingerprint(source.paths)
        if is_finished(source, size, sha256):
            return None
        pictures = (
            SeriesFrames(source.parts, source.notes) if source.parts else open_frames(source.path.name, source.path)
        )
    except UnreadableInputError as error:
        return ReadUnit(source, size, sha256, error=str(error))
    except (FileNotFoundError, NotADirectoryError):
        return ReadUnit(source, error="no such file")
    except OSError as error:
        return ReadUnit(source, size, sha256, error=f"cannot be read: {error.strerror}")
    return ReadUnit(source, size, sha256, pictures)


def _fingerprint(paths: Sequence[Path]) -> tuple[int, str]:
    """(bytes, SHA-256) of a file, or of the bytes of several, one after the other."""
    size, hashed = 0, hashlib.sha256()
    for path in paths:
        if path.is_dir():
            raise UnreadableInputError("a directory; expected a file")
        with path.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                size += len(chunk)
                hashed.update(chunk)
    return size, hashed.hexdigest()
