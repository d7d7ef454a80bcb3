"""Score a model, a checkpoint or a folder of masks or probabilities on one split, and write a report.

    python tools/eval.py MODEL_OR_CHECKPOINT_OR_MASK_FOLDER --data data/NAME --split test --threshold auto --out DIR

A mask folder holds one PNG, TIFF, NPY, NPZ or NIfTI per image, named as the image: images/a/b.png -> a/b.nii.gz.
nnU-Net's and MedSAM's folders are read as they are.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from vesselseg.dataset.manifest import SPLITS, read_manifest
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.evaluator import AUTO, Options, evaluate
from vesselseg.evaluation.results import RESULTS_FILE
from vesselseg.evaluation.sources import open_source
from vesselseg.evaluation.store_threshold import check_storable, store_found
from vesselseg.inference.flips import FLIPS
from vesselseg.inference.model_arguments import add_model_arguments, add_refining_arguments, loading_of
from vesselseg.inference.post_processing import PostProcessing
from vesselseg.output_folder import check_output
from vesselseg.progress import batch_progress
from vesselseg.reports.console import console_summary
from vesselseg.reports.evaluation_report import write_evaluation
from vesselseg.run_tool import positive, run_tool


def main() -> None:
    """Parse, evaluate, write, print."""
    arguments = _arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _check_paths(arguments)
    options = _options(arguments)
    source = open_source(arguments.source, read_manifest(arguments.data), loading_of(arguments))
    evaluation = evaluate(
        arguments.data,
        arguments.split,
        source,
        arguments.threshold,
        arguments.batch,
        arguments.seed,
        batch_progress,
        options,
    )
    report = write_evaluation(evaluation, source, arguments.out, arguments.force)
    print("\n".join(console_summary(evaluation)))
    print(f"report: {report}")
    if arguments.store_threshold:
        threshold, temperature = store_found(evaluation)
        print(f"stored in {arguments.source}: threshold {threshold:.4g}, temperature {temperature:.4g}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="exported model folder, checkpoint (.pth) or folder of predictions")
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--split", choices=SPLITS, default="test", help="what is reported (default: test)")
    parser.add_argument(
        "--threshold",
        type=_threshold,
        help="a number, or auto: searched on the validation split (default: the one stored with the model)",
    )
    parser.add_argument(
        "--threshold-metric", metavar="NAME", default="dice", help="what auto makes best (default: dice)"
    )
    parser.add_argument("--calibrate", action="store_true", help="fit a temperature on the validation split")
    parser.add_argument(
        "--store-threshold",
        action="store_true",
        help="write what auto (and --calibrate) found into the exported model's folder",
    )
    add_refining_arguments(parser)
    parser.add_argument("--subgroups", type=Path, metavar="CSV", help="columns image (or group) and view, centre ...")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; appears whole or not at all")
    parser.add_argument("--batch", type=positive, default=4, help="images given to the model at once (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace an earlier evaluation in --out")
    add_model_arguments(parser)
    return parser.parse_args()


def _threshold(text: str) -> float | str:
    if text == AUTO:
        return AUTO
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to below 1, or auto")
    return value


def _options(arguments: argparse.Namespace) -> Options:
    """Refuses to store before any work is done what could not be stored after it."""
    if arguments.store_threshold:
        if arguments.threshold != AUTO or arguments.tta:
            raise EvaluationError(
                "--store-threshold stores what --threshold auto found, for predicting without --tta: "
                "add the one and leave the other away"
            )
        check_storable(arguments.source, arguments.calibrate)
    return Options(
        metric=arguments.threshold_metric,
        flips=arguments.tta == FLIPS,
        post_processing=PostProcessing(arguments.min_component, arguments.fill_holes),
        calibrate=arguments.calibrate,
        subgroups=arguments.subgroups,
    )


def _check_paths(arguments: argparse.Namespace) -> None:
    """Refuse before any work is done what would be refused after it."""
    check_output(arguments.out, arguments.force, RESULTS_FILE)
    out = arguments.out.resolve()
    for folder in (arguments.source.resolve(), arguments.data.resolve()):
        if out == folder or folder in out.parents:
            raise EvaluationError(f"--out {arguments.out} lies inside {folder}, which is input; choose another folder")
        if out in folder.parents:
            raise EvaluationError(f"--out {arguments.out} holds the input {folder}; choose another folder")


if __name__ == "__main__":
    run_tool(main)
