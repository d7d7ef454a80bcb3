"""Folds for a cross-validation, by group: each of them is a dataset folder that every tool takes.

    python tools/make_folds.py data/NAME --folds 5
    bash tools/dist.sh train configs/x.py 4 --cfg-options data_root=data/NAME/folds/2 --work-dir work_dirs/x_fold2
    python tools/eval.py work_dirs/x_fold2/best.pth --data data/NAME/folds/2 --out work_dirs/x_fold2/eval

Every image is tested on in exactly one fold. tools/pool_folds.py puts the results of all folds together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vesselseg.dataset.manifest import FOLDS, read_fold
from vesselseg.prepare.folds import make_folds
from vesselseg.run_tool import run_tool


def main() -> None:
    """Parse, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="dataset folder made by tools/prepare_data.py")
    parser.add_argument("--folds", type=int, default=5, help="how many (default: %(default)s)")
    parser.add_argument("--val", type=float, default=0.1, metavar="SHARE", help="of the images that a fold does not "
                        "test on, how many it validates on (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same folds (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace the folds that are stored there")
    arguments = parser.parse_args()
    splits = make_folds(arguments.data, arguments.folds, arguments.val, arguments.seed, arguments.force)
    for number, one in enumerate(splits, start=1):
        folder = arguments.data / FOLDS / str(number)
        print(f"{folder}: " + ", ".join(f"{name} {len(images)}" for name, images in one.items()))
    fold = read_fold(arguments.data / FOLDS / "1")
    print(f"fingerprint of the folds: {fold.fingerprint if fold else ''}")


if __name__ == "__main__":
    run_tool(main)
