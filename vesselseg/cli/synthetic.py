"""`vesselseg synthetic`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vesselseg.cli.parameters import Quiet
from vesselseg.errors import UserError


def synthetic(
    *,
    out: Path,
    count: int = 60,
    size: int = 256,
    seed: Annotated[int, Parameter(help="the same seed draws the same set")] = 0,
    frames: int = 3,
    cine: int | None = None,
    force: Annotated[bool, Parameter(help="write into a folder that holds files already")] = False,
    quiet: Quiet = False,
) -> None:
    """Draw a small set of synthetic coronary angiograms as LabelMe files (PNG and JSON), to try the main path.

    vesselseg synthetic --out work_dirs/synthetic --count 60
    vesselseg prepare work_dirs/synthetic --out data/synthetic --group-regex '(p[0-9]+)_'

    With --cine, one cine run instead: frames/000.png, ... and true masks/000.png, ...
    vesselseg synthetic --out work_dirs/cine --cine 48

    Args:
        out: folder for the files; it must not hold any yet
        count: pictures
        size: pixels of each side
        frames: pictures of each patient, p000_f1.png, p000_f2.png, ...
        cine: draw one cine run of this many frames and their masks: a tree that moves, fills and empties
    """
    if out.is_dir() and any(out.iterdir()) and not force:
        raise UserError(f"--out {out} is not empty; choose another folder, or give --force to write into it")
    if cine is not None:
        from vesselseg.synthetic.cine import write_cine

        write_cine(out, cine, size, seed)
        print(f"{out}: a cine run of {cine} frames, with masks")
        return
    from vesselseg.synthetic.angiograms import write_synthetic

    written = write_synthetic(out, count, size, seed, frames, progress=not quiet)
    patients = len({path.name.split("_")[0] for path in written})
    print(f"{out}: {len(written)} pictures of {patients} patients, with LabelMe labels")
