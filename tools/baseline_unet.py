"""Train a small U-Net on the training split and predict other splits with it, as a baseline.

python tools/baseline_unet.py data/NAME --out work_dirs/unet
python tools/eval.py work_dirs/unet --data data/NAME --split test --out work_dirs/unet_eval

Epoch and threshold are those with the best mean Dice on the validation split. It ends after --epochs or --minutes,
whichever comes first; a GPU takes a few minutes for 200 epochs of 70 images, a CPU core sees ten epochs in that time.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from vesselseg.baselines.unet import UNetOptions
from vesselseg.baselines.unet_baseline import write_unet_baseline
from vesselseg.inference.load import choose_device
from vesselseg.run_tool import run_tool


def main() -> None:
    """Parse, train, predict, print."""
    preset = UNetOptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="dataset folder")
    parser.add_argument("--split", nargs="+", choices=("val", "test"), default=["val", "test"], help="what to predict")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; appears whole or not at all")
    parser.add_argument("--epochs", type=int, default=preset.epochs, help=f"at most (default: {preset.epochs})")
    parser.add_argument("--minutes", type=float, default=preset.minutes, help=f"at most (default: {preset.minutes:g})")
    parser.add_argument("--size", type=int, default=preset.size, help=f"side in pixels (default: {preset.size})")
    parser.add_argument("--batch", type=int, default=preset.batch, help=f"images per step (default: {preset.batch})")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--seed", type=int, default=preset.seed, help="of weights and augmentation (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace an earlier baseline in --out")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vesselseg").setLevel(logging.INFO)
    options = UNetOptions(
        size=arguments.size,
        epochs=arguments.epochs,
        minutes=arguments.minutes,
        batch=arguments.batch,
        seed=arguments.seed,
    )
    trained = write_unet_baseline(
        arguments.data, arguments.split, arguments.out, options, choose_device(arguments.device), arguments.force
    )
    best = trained.epochs[trained.best]
    print(f"best of {len(trained.epochs)} epochs: {trained.best + 1}, validation Dice {best.dice:.4f}")
    print(f"threshold: {best.threshold:.2f}")
    if trained.ended_by == "minutes":
        print(f"ended after {options.minutes:g} minutes; more, or a GPU, may do better, and runs differ a little")
    print(f"predictions: {arguments.out}")


if __name__ == "__main__":
    run_tool(main)
