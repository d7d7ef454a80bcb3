"""Score models and masks beside a tuned Frangi filter and a small U-Net on the same test images, in one table.

    python tools/compare_baselines.py data/NAME work_dirs/mine/hf --out work_dirs/baselines
    python tools/compare_baselines.py data/NAME mine=work_dirs/mine/hf nnU-Net=predictions --out work_dirs/baselines

Takes exported models, checkpoints (.pth), folders of masks or probabilities, and finished evaluations (folders with
results.json). Both baselines learn from the training split of data/NAME; a second call with the same --out and options
takes them as they are. Thresholds are searched on the validation split where a method predicts it.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from vesselseg.baselines.methods import BASELINES, Runtime, baseline_notes, compare_methods, parse_method
from vesselseg.baselines.unet import UNetOptions
from vesselseg.inference.load import choose_device
from vesselseg.output_folder import check_output
from vesselseg.progress import batch_progress
from vesselseg.reports.comparison_report import table_lines
from vesselseg.reports.methods_report import TABLE_MARKDOWN, write_methods
from vesselseg.run_tool import run_tool


def main() -> None:
    """Parse, make the baselines, evaluate, compare, print."""
    arguments = _arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vesselseg").setLevel(logging.INFO)
    check_output(arguments.out, force=True, marker=BASELINES)
    methods = [parse_method(text) for text in arguments.methods]
    unet = UNetOptions(size=arguments.size, epochs=arguments.epochs, minutes=arguments.minutes, seed=arguments.seed)
    comparison, folders = compare_methods(
        arguments.data,
        methods,
        arguments.out,
        unet,
        choose_device(arguments.device),
        arguments.metric,
        Runtime(arguments.device, arguments.batch, batch_progress),
    )
    notes = baseline_notes(arguments.out)
    page = write_methods(comparison, folders, arguments.out, notes)
    print("\n".join([*table_lines(comparison), *notes]))
    print(f"table: {page}, {arguments.out / TABLE_MARKDOWN}")


def _arguments() -> argparse.Namespace:
    preset = UNetOptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="dataset folder")
    parser.add_argument("methods", nargs="*", metavar="[NAME=]PATH", help="model, checkpoint, folder or evaluation")
    parser.add_argument("--out", type=Path, required=True, help="folder for baselines, evaluations and the table")
    parser.add_argument("--metric", default="dice", help="what decides the paired comparison (default: dice)")
    parser.add_argument("--epochs", type=int, default=preset.epochs, help=f"U-Net: at most (default: {preset.epochs})")
    parser.add_argument("--minutes", type=float, default=preset.minutes, help="U-Net: at most (default: 10)")
    parser.add_argument("--size", type=int, default=preset.size, help=f"U-Net: side in pixels (default: {preset.size})")
    parser.add_argument("--seed", type=int, default=0, help="of both baselines (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--batch", type=int, default=4, help="images given to a model at once (default: 4)")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(main)
