"""Which files a source holds, and the name that each will have in the dataset folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vesselseg.data.archive import is_junk
from vesselseg.data.prepare_file import FileTask
from vesselseg.data.source_images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class SourceFiles:
    """Paths below root, with forward slashes, sorted. others: neither JSON nor image."""

    root: Path
    jsons: tuple[str, ...]
    images: tuple[str, ...]
    others: tuple[str, ...]


def list_source(root: Path) -> SourceFiles:
    """All files below a folder, however deep; links to folders are not followed."""
    jsons: list[str] = []
    images: list[str] = []
    others: list[str] = []
    for folder, _, names in os.walk(root, onerror=_raise):
        for name in names:
            path = PurePosixPath((Path(folder) / name).relative_to(root).as_posix())
            if is_junk(path):
                continue
            suffix = path.suffix.lower()
            kind = jsons if suffix == ".json" else images if suffix in IMAGE_SUFFIXES else others
            kind.append(str(path))
    return SourceFiles(Path(root), tuple(sorted(jsons)), tuple(sorted(images)), tuple(sorted(others)))


def name_files(files: SourceFiles) -> list[FileTask]:
    """One task per JSON. The folders that all JSONs share are dropped; names that differ only in case get a number."""
    paths = [PurePosixPath(name) for name in files.jsons]
    shared = os.path.commonpath([path.parent for path in paths]) if paths else ""
    taken: set[str] = set()
    tasks = []
    for path in paths:
        stem = printable(path.relative_to(shared).with_suffix("").as_posix())
        unique, number = stem, 2
        while unique.casefold() in taken:
            unique, number = f"{stem}_{number}", number + 1
        taken.add(unique.casefold())
        tasks.append(FileTask(files.root / path, printable(str(path)), unique))
    return tasks


def printable(name: str) -> str:
    """A file name as valid text: names in another encoding than the system's hold bytes that UTF-8 cannot write."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def _raise(error: OSError) -> None:
    raise error
