"""`vesselseg eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from vesselseg.cli.parameters import (
    Batch,
    Data,
    Flat,
    Force,
    Loading,
    Out,
    Seed,
    Steps,
    Values,
    show_warnings,
    text_parser,
)
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.options import AUTO, COUNT_METRICS, MASK_METRICS, RESULTS_FILE, EvaluationOptions
from vesselseg.imaging.mask_option import BY_EVIDENCE
from vesselseg.inference.options import DEFAULT_LOADING, LoadOptions
from vesselseg.inference.post_processing import NO_POST_PROCESSING
from vesselseg.output_folder import check_apart, check_output

STORED = "stored"


def threshold_of(text: str) -> float | str | None:
    """A number, AUTO, or None: the one stored with the model."""
    if text in (AUTO, STORED):
        return AUTO if text == AUTO else None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ValueError(f"{text!r}: expected a number from 0 to below 1, {AUTO} or {STORED}")
    return value


def metric_of(text: str) -> str:
    """A metric whose best threshold can be searched."""
    if text not in (*COUNT_METRICS, *MASK_METRICS):
        names = ", ".join((*COUNT_METRICS, *MASK_METRICS))
        raise ValueError(f"{text}: no best threshold to search; expected one of {names}")
    return text


@dataclass(frozen=True)
class Options(EvaluationOptions):
    """`EvaluationOptions`, by the names of the command line."""

    metric: Annotated[str, Parameter(name="--threshold-metric", converter=text_parser(metric_of), n_tokens=1)] = (
        EvaluationOptions.metric
    )
    post_processing: Steps = NO_POST_PROCESSING


def evaluate(
    source: Path,
    data: Data,
    *,
    out: Out,
    split: Literal["train", "val", "test"] = "test",
    threshold: Annotated[
        float | str | None, Parameter(converter=text_parser(threshold_of), n_tokens=1, show_default=False)
    ] = None,
    store_threshold: bool = False,
    options: Annotated[Options, Flat] = Options(),
    batch: Batch = 4,
    seed: Seed = 0,
    force: Force = False,
    mask_values: Values = BY_EVIDENCE,
    loading: Annotated[LoadOptions, Loading] = DEFAULT_LOADING,
) -> None:
    """Score a model, a checkpoint or a folder of masks or probabilities on one split, and write a report.

    vesselseg eval MODEL_OR_CHECKPOINT_OR_MASK_FOLDER --data data/NAME --split test --threshold auto --out DIR

    A mask folder holds one PNG, TIFF, NPY, NPZ or NIfTI per image, named as the image: images/a/b.png -> a/b.nii.gz.
    nnU-Net's and MedSAM's folders are read as they are.

    Args:
        source: exported model folder, checkpoint (.pth) or folder of predictions
        split: the split that is reported
        threshold: a number, auto: searched on the validation split, or stored: the one stored with the model (default)
        mask_values: binary, classes, objects, probability, ignore=255 or classes,ignore=255 (default: by evidence)
        store_threshold: write what auto (and --calibrate) found into the exported model's folder
    """
    check_output(out, force, RESULTS_FILE)
    check_apart(out, (source, data))
    check_options(source, threshold, store_threshold, options)
    from vesselseg.dataset.manifest import read_manifest
    from vesselseg.evaluation.evaluator import evaluate as score
    from vesselseg.evaluation.prediction_sources import open_predictions
    from vesselseg.evaluation.store_threshold import store_evaluation_threshold
    from vesselseg.progress import batch_progress
    from vesselseg.reports.console import console_summary
    from vesselseg.reports.evaluation_report import write_evaluation

    show_warnings()
    predictions = open_predictions(source, read_manifest(data), loading, mask_values)
    evaluation = score(data, split, predictions, threshold, batch, seed, batch_progress, options)
    report = write_evaluation(evaluation, predictions, out, force)
    print("\n".join(console_summary(evaluation)))
    print(f"report: {report}")
    if store_threshold:
        found, temperature = store_evaluation_threshold(evaluation)
        print(f"stored in {source}: threshold {found:.4g}, temperature {temperature:.4g}")


def check_options(source: Path, threshold: float | str | None, store_threshold: bool, options: Options) -> None:
    """Refuse before any work is done what would be refused after it."""
    if options.metric != EvaluationOptions.metric and threshold != AUTO:
        raise EvaluationError(
            f"--threshold-metric {options.metric}: without --threshold auto nothing is searched; leave it out"
        )
    if store_threshold:
        from vesselseg.evaluation.store_threshold import check_storable

        if threshold != AUTO or options.flips:
            raise EvaluationError(
                "--store-threshold stores what --threshold auto found, for predicting without --tta: "
                "add the one and leave the other away"
            )
        check_storable(source, options.calibrate)
