"""Tune a Frangi filter on the training split and predict other splits with it, as a baseline.

python tools/baseline_frangi.py data/NAME --split test --out work_dirs/frangi
python tools/eval.py work_dirs/frangi --data data/NAME --split test --out work_dirs/frangi_eval
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from vesselseg.baselines.frangi_baseline import TUNING_IMAGES, write_frangi_baseline
from vesselseg.run_tool import run_tool


def main() -> None:
    """Parse, tune, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="dataset folder")
    parser.add_argument("--split", nargs="+", choices=("val", "test"), default=["test"], help="what to predict")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; appears whole or not at all")
    parser.add_argument("--images", type=int, default=TUNING_IMAGES, help=f"to tune on (default: {TUNING_IMAGES})")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of these images (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace an earlier baseline in --out")
    arguments = parser.parse_args()
    if arguments.images < 1:
        parser.error(f"--images {arguments.images}: expected at least 1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vesselseg").setLevel(logging.INFO)
    params = write_frangi_baseline(
        arguments.data, arguments.split, arguments.out, arguments.images, arguments.seed, arguments.force
    )
    print(f"parameters: {params.to_dict()}")
    print(f"predictions: {arguments.out}")


if __name__ == "__main__":
    run_tool(main)
