"""Files of a source, and unique names for them in the dataset folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vesselseg.imaging.decode import IMAGE_SUFFIXES, is_dicom


@dataclass(frozen=True)
class SourceFiles:
    """Sorted paths below root, with forward slashes."""

    root: Path
    jsons: tuple[str, ...]
    images: tuple[str, ...]  # with one of IMAGE_SUFFIXES
    others: tuple[str, ...]  # neither JSON nor image
    dicoms: tuple[str, ...] = ()  # those of `others` that are DICOM
    links: tuple[tuple[str, str], ...] = ()  # (name, reason) of links to folders that were not followed

    def others_with(self, *suffixes: str) -> list[str]:
        """The other files with one of the suffixes, e.g. ".txt"."""
        return [name for name in self.others if name.lower().endswith(suffixes)]


def list_source_files(root: Path) -> SourceFiles:
    """All files below a folder at any depth. Links to folders are followed, but no folder is listed twice."""
    jsons: list[str] = []
    images: list[str] = []
    others: list[str] = []
    links: list[tuple[str, str]] = []
    for folder, names in _folders(Path(root), links):
        for name in names:
            path = PurePosixPath((folder / name).relative_to(root).as_posix())
            if is_system_file(path):
                continue
            suffix = path.suffix.lower()
            kind = jsons if suffix == ".json" else images if suffix in IMAGE_SUFFIXES else others
            kind.append(str(path))
    dicoms = [name for name in sorted(others) if is_dicom(root / name)]
    return SourceFiles(
        Path(root), tuple(sorted(jsons)), tuple(sorted(images)), tuple(sorted(others)), tuple(dicoms), tuple(links)
    )


def _folders(root: Path, skipped: list[tuple[str, str]]) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files) of the root and all folders below it, linked ones last.

    skipped: receives links whose folder was listed already, or holds the root, as (name, reason).
    """
    seen: set[Path] = set()
    waiting = [Path(root)]
    while waiting:
        start = waiting.pop(0)
        real = start.resolve()
        if start != root and (real in seen or real in Path(root).resolve().parents):
            why = "its folder is in the source already" if real in seen else "its folder holds the source"
            skipped.append((start.relative_to(root).as_posix(), f"link not followed: {why}"))
            continue
        links = []
        for folder, below, names in os.walk(start, onerror=_raise):
            seen.add(Path(folder).resolve())
            links += [Path(folder) / name for name in below if (Path(folder) / name).is_symlink()]
            yield Path(folder), names
        waiting += sorted(links)


def unique_stems(names: Sequence[str]) -> list[str]:
    """A distinct path without suffix for each file of the source, under which its image is stored.

    Folders that all files share are dropped; names that differ only in case or suffix get a number.
    """
    paths = [PurePosixPath(name) for name in names]
    shared = os.path.commonpath([path.parent for path in paths]) if paths else ""
    taken: set[str] = set()
    stems = []
    for path in paths:
        stem = printable(path.relative_to(shared).with_suffix("").as_posix())
        unique, number = stem, 2
        while unique.casefold() in taken:
            unique, number = f"{stem}_{number}", number + 1
        taken.add(unique.casefold())
        stems.append(unique)
    return stems


def printable(name: str) -> str:
    """A file name as valid UTF-8, whatever the locale is: bytes of names in another encoding are replaced."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # half of a surrogate pair, from JSON
        return name.encode("utf-8", "replace").decode("utf-8")


def _raise(error: OSError) -> None:
    raise error


def is_system_file(path: PurePosixPath) -> bool:
    """Whether macOS or Windows added the file to a folder or archive."""
    return (
        "__MACOSX" in path.parts or path.name.startswith("._") or path.name in (".DS_Store", "Thumbs.db", "desktop.ini")
    )
