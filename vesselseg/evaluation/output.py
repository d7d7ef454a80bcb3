"""An output folder that appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vesselseg.evaluation.errors import EvaluationError


def check_output(out: Path, force: bool, marker: str) -> None:
    """Raise EvaluationError where out cannot be written: it exists without force, or force would delete other things.

    marker: a file that every earlier output of this kind holds; a non-empty folder without it is never replaced.
    """
    out = Path(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise EvaluationError(f"{out} is a file; name a folder with --out")
    if any(out.iterdir()):
        if not force:
            raise EvaluationError(f"{out} exists; choose another --out, or --force to replace it")
        if not (out / marker).exists():
            raise EvaluationError(f"{out} holds no {marker}, so it is no earlier output: --force does not delete it")


@contextmanager
def whole_folder(out: Path, force: bool, marker: str) -> Iterator[Path]:
    """A temporary folder beside out that becomes out when the block ends well and vanishes when it does not.

    force, marker: see ``check_output``, which is run before anything is written.
    """
    out = Path(out)
    check_output(out, force, marker)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        new = staging / "new"
        new.mkdir()
        yield new
        _move_into_place(new, out, staging / "old")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_into_place(new: Path, out: Path, aside: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    out.rename(aside)
    try:
        new.rename(out)
    except OSError:
        aside.rename(out)
        raise
