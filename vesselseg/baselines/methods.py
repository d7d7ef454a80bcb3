"""Evaluate and compare baselines, models and predictions of other programs on one test split.

Thresholds are searched on the validation split where a method predicts it, never on the test split.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vesselseg.baselines.folder import read_pixels
from vesselseg.baselines.frangi_baseline import write_frangi_baseline
from vesselseg.baselines.options import BASELINES, TUNING_IMAGES, UNetOptions
from vesselseg.baselines.unet_baseline import write_unet_baseline
from vesselseg.dataset.manifest import fingerprint, read_manifest, read_split
from vesselseg.evaluation.comparison import Comparison, compare, read_results
from vesselseg.evaluation.errors import EvaluationError, problem_list
from vesselseg.evaluation.evaluator import SEARCH_SPLIT, Progress, evaluate, no_progress
from vesselseg.evaluation.metrics import METRIC_TABLE
from vesselseg.evaluation.options import AUTO
from vesselseg.evaluation.prediction_folder import SETTINGS_FILE
from vesselseg.evaluation.prediction_sources import FolderSource, PredictionSource, open_predictions
from vesselseg.evaluation.results_file import RESULTS_FILE
from vesselseg.inference.options import LoadOptions
from vesselseg.reports.evaluation_report import write_evaluation

_log = logging.getLogger(__name__)

REPORTED_SPLIT = "test"
FRANGI, UNET = "Frangi", "U-Net"
_PREDICTED = (SEARCH_SPLIT, REPORTED_SPLIT)


@dataclass(frozen=True)
class Method:
    """A method by name, and the path of its model, predictions or finished evaluation."""

    name: str
    path: Path


@dataclass(frozen=True)
class Runtime:
    """How models run."""

    device: str = "auto"
    batch: int = 4  # images per model call
    progress: Progress = no_progress


def parse_method(text: str) -> Method:
    """Parse ``NAME=PATH``, or a path whose last part becomes the name. Raises EvaluationError."""
    name, mark, path = text.partition("=")
    named = bool(mark) and not Path(text).exists()
    method = Method(name, Path(path)) if named else Method(Path(text).name, Path(text))
    if not re.fullmatch(r"\w[\w .+-]*", method.name):
        raise EvaluationError(f"{text}: expected NAME=PATH, with a name of letters, digits, space and . _ + -")
    if not method.path.exists():
        raise EvaluationError(f"{method.path} does not exist; expected a model, a checkpoint or a folder")
    return method


def compare_methods(
    data: Path,
    methods: Sequence[Method],
    out: Path,
    unet: UNetOptions,
    device: torch.device,
    metric: str = "dice",
    runtime: Runtime | None = None,
) -> tuple[Comparison, list[Path]]:
    """Tune and train the baselines in ``out/baselines`` unless finished, evaluate all methods, compare them by metric.

    methods: in addition to the baselines; finished evaluations are used without change. Returns the comparison and, in
    its order, the folders of the results; new ones are in ``out/evaluations``. Raises EvaluationError, ManifestError.
    """
    check_methods(data, methods, metric)
    score = partial(_evaluate, data, out / "evaluations", runtime or Runtime())
    given = [score(method) for method in methods]  # first, so that their errors appear before a training
    baselines = _baselines(data, out / BASELINES, unet, device)
    folders = [*(score(method) for method in baselines), *given]
    names = [method.name for method in (*baselines, *methods)]
    return compare([replace(read_results(folder), name=name) for folder, name in zip(folders, names)], metric), folders


def baseline_notes(out: Path) -> list[str]:
    """Notes for the reader about the baselines in ``out/baselines``, e.g. a training stopped early."""
    settings = json.loads((out / BASELINES / "unet" / SETTINGS_FILE).read_text(encoding="utf-8"))
    training, minutes = settings["training"], settings["params"]["minutes"]
    if training["ended_by"] != "minutes":
        return []
    return [
        f"{UNET} was stopped after {minutes:g} minutes, in epoch {len(training['epochs'])} of "
        f"{settings['params']['epochs']} (best: {training['best_epoch']}): longer, or on a GPU, it may do better."
    ]


def check_methods(data: Path, methods: Sequence[Method], metric: str) -> None:
    """Raise EvaluationError for an unknown metric, duplicate names, evaluations of other data, and several phrases per
    image: errors that would otherwise appear after hours.
    """
    problems = [] if metric in METRIC_TABLE else [f"--metric {metric}: expected one of {', '.join(METRIC_TABLE)}"]
    names = [FRANGI, UNET, *(method.name for method in methods)]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"{name}: the name of more than one method; give them different names, NAME=PATH" for name in twice]
    expected = (fingerprint(data), REPORTED_SPLIT)
    for method in methods:
        if (method.path / RESULTS_FILE).is_file():
            results = read_results(method.path)
            if (results.fingerprint, results.split) != expected:
                problems.append(f"{method.path}: of split {results.split} of data {results.fingerprint}")
    if problems:
        advice = f"Methods are compared on split {REPORTED_SPLIT} of data {expected[0]}."
        raise EvaluationError(problem_list("methods that cannot be compared", problems, advice))
    several = [record.image for record in read_split(data, REPORTED_SPLIT) if len(set(record.phrases)) > 1]
    if several:
        advice = "The baselines predict one mask per image. Prepare the data with one phrase, vesselseg prepare --text."
        raise EvaluationError(problem_list(f"{data}: images with several phrases", several, advice))


def _baselines(data: Path, folder: Path, unet: UNetOptions, device: torch.device) -> list[Method]:
    frangi, network = folder / "frangi", folder / "unet"
    if not _finished(data, frangi, {"tuned_on": {"split": "train", "seed": unet.seed}}):
        write_frangi_baseline(data, _PREDICTED, frangi, TUNING_IMAGES, unet.seed, force=True)
    if not _finished(data, network, {"params": asdict(unet)}):
        write_unet_baseline(data, _PREDICTED, network, unet, device, force=True)
    return [Method(FRANGI, frangi), Method(UNET, network)]


def _finished(data: Path, folder: Path, expected: dict[str, dict[str, Any]]) -> bool:
    """Whether folder holds predictions of this data with the expected settings; folders are written completely."""
    try:
        found = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{folder / SETTINGS_FILE}: not readable ({error}); delete the folder") from None
    same = found.get("data_fingerprint") == fingerprint(data) and set(_PREDICTED) <= set(found.get("splits", ()))
    for section, values in expected.items():
        same = same and values.items() <= found.get(section, {}).items()
    _log.info("%s: %s", folder, "finished, used again" if same else "of other data or options, repeated")
    return bool(same)


def _evaluate(data: Path, folder: Path, runtime: Runtime, method: Method) -> Path:
    """The folder with the method's results.json."""
    if (method.path / RESULTS_FILE).is_file():
        return method.path
    _log.info("scoring %s", method.name)
    source = open_predictions(method.path, read_manifest(data), LoadOptions(runtime.device))
    threshold = AUTO if _predicts_validation(data, source) else None
    evaluation = evaluate(data, REPORTED_SPLIT, source, threshold, runtime.batch, progress=runtime.progress)
    out = folder / method.name
    write_evaluation(evaluation, source, out, force=True)
    return out


def _predicts_validation(data: Path, source: PredictionSource) -> bool:
    """Whether a threshold can be searched: not for masks, nor for a folder of the reported split only."""
    if not isinstance(source, FolderSource):
        return True
    if not all(source.holds(record.image) for record in read_split(data, SEARCH_SPLIT)):
        _log.info("%s has no predictions of %s: using the threshold %.2f", source.path, SEARCH_SPLIT, source.threshold)
        return False
    # Only a look into the files shows whether a folder holds masks or probabilities.
    sizes = {}
    for record in (record for split in _PREDICTED for record in read_split(data, split)):
        height, width, _ = read_pixels(data, record).shape
        sizes[record.image] = (height, width)
    source.check(sizes)
    return source.kind != "masks"
