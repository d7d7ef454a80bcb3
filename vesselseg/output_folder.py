"""Output folders and files that appear whole or not at all, and never among what they are made from."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vesselseg.errors import UserError

UNFINISHED = ".unfinished"  # suffix of a file that is still being written


@contextmanager
def whole_file(path: Path, unfinished: Path | None = None, durable: bool = False) -> Iterator[Path]:
    """A file next to path to write to: it replaces path when the block ends well and is removed when it does not.

    Readers see the old file or the new one, never a part. A replaced file's permissions are kept. unfinished: its name,
    where several processes may write the same path at once. durable: on the disk before it gets its name, so that a
    power cut leaves no complete-looking part.
    """
    temporary = unfinished or path.with_name(path.name + UNFINISHED)
    try:
        yield temporary
        with suppress(FileNotFoundError):
            temporary.chmod(path.stat().st_mode & 0o777)
        if durable:
            flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file that is whole at any moment."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush_to_disk(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def check_apart(out: Path, inputs: Iterable[Path], option: str = "--out") -> None:
    """Raise UserError where writing to out would change an input: out is inside one, or holds one. Links are followed.

    option: the command line's name for out.
    """
    place = out.resolve()
    for source in inputs:
        resolved = source.resolve()
        if place.is_relative_to(resolved):
            raise UserError(f"{option} {out} is inside {source}, which is input; choose another folder")
        if resolved.is_relative_to(place):
            raise UserError(f"{option} {out} holds the input {source}; choose another folder")


def check_output(out: Path, force: bool, marker: str) -> None:
    """Raise UserError where out cannot be written: it exists without force, or force would delete other things.

    marker: a file that every earlier output of this kind holds; a non-empty folder without it is never replaced.
    """
    out = Path(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; name a folder")
    if any(out.iterdir()):
        if not force:
            raise UserError(f"{out} exists; name another folder, or add --force to replace it")
        if not (out / marker).exists():
            raise UserError(f"{out} holds no {marker}, so it is no earlier output: --force does not delete it")


@contextmanager
def whole_folder(out: Path, force: bool, marker: str) -> Iterator[Path]:
    """A temporary folder beside out that becomes out when the block ends well and vanishes when it does not.

    force, marker: see ``check_output``, which is run before anything is written.
    """
    check_output(out, force, marker)
    with temporary_folder(out, "building") as building:
        yield building
        move_into_place(building, out)


@contextmanager
def temporary_folder(out: Path, purpose: str) -> Iterator[Path]:
    """A folder beside out, on the same file system, so that renaming it is one step; removed afterwards."""
    parent = Path(out).absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{Path(out).name}.{purpose}-", dir=parent))
    except OSError as error:
        raise UserError(f"{out}: no folder can be made in {parent}: {error.strerror}; choose another") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_into_place(building: Path, out: Path) -> None:
    """Rename the finished folder; an existing one is kept aside until the new one stands."""
    mask = os.umask(0)
    os.umask(mask)
    building.chmod(0o777 & ~mask)  # mkdtemp makes folders that only the owner may read
    if not out.exists():
        building.rename(out)
        return
    aside = building.with_name(building.name + ".old")
    out.rename(aside)
    try:
        building.rename(out)
    except OSError:
        aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
