"""Draw a small set of synthetic coronary angiograms as LabelMe files (PNG and JSON), for trying the main path.

python tools/make_synthetic.py --out work_dirs/synthetic --count 60
python tools/prepare_data.py work_dirs/synthetic --out data/synthetic --group-regex '(p[0-9]+)_'

With --cine, one cine run instead: frames/000.png, ... and true masks/000.png, ...
python tools/make_synthetic.py --out work_dirs/cine --cine 48
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vesselseg.errors import UserError
from vesselseg.run_tool import run_tool
from vesselseg.synthetic.angiograms import write_synthetic
from vesselseg.synthetic.cine import write_cine


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files; it must not hold any yet")
    parser.add_argument("--count", type=int, default=60, help="pictures (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="pixels of each side (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same set (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=3, help="pictures of each patient, p000_f1.png, p000_f2.png, ... "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--cine", type=int, metavar="FRAMES", help="draw one cine run of so many frames and their "
                        "masks: a tree that moves, fills and empties")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="write into a folder that holds files already")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(arguments)


def main() -> int:
    """Arguments -> one call."""
    arguments = parse_arguments()
    if arguments.out.is_dir() and any(arguments.out.iterdir()) and not arguments.force:
        raise UserError(f"--out {arguments.out} is not empty; choose another folder, or give --force to write into it")
    if arguments.cine is not None:
        write_cine(arguments.out, arguments.cine, arguments.size, arguments.seed)
        print(f"{arguments.out}: a cine run of {arguments.cine} frames, with masks")
        return 0
    written = write_synthetic(
        arguments.out, arguments.count, arguments.size, arguments.seed, arguments.frames, progress=not arguments.quiet
    )
    patients = len({path.name.split("_")[0] for path in written})
    print(f"{arguments.out}: {len(written)} pictures of {patients} patients, with LabelMe labels")
    return 0


if __name__ == "__main__":
    run_tool(main)
