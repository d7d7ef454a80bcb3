"""An output folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vesselseg.errors import UserError


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
