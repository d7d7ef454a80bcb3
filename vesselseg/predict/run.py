"""The prediction run: list the input, load the model, predict on all processes, write one result folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vesselseg.dataset.feature_store import digest, weights_fingerprint
from vesselseg.inference.predictor import Predictor
from vesselseg.output_folder import check_apart
from vesselseg.predict.distributed_work import DistributedWork
from vesselseg.predict.inputs import InputUnit, find_inputs
from vesselseg.predict.options import Outcome, PredictOptions, validate_options
from vesselseg.predict.result_files import PROBABILITY_SCALE
from vesselseg.predict.result_folder import ResultFolder
from vesselseg.predict.worker import PredictWorker


def predict_files(
    model: str, source: Path, out: Path, options: PredictOptions, load: Callable[[], Predictor]
) -> Outcome | None:
    """Predict the units that `find_inputs` lists into `out`; continues an earlier run there.

    model: its name, for predictions.json; load: loads it. Under torchrun each process predicts its share; the main
    process returns the outcome of all, the others None. Raises UserError for input that is unusable as a whole; single
    files that fail are listed in the outcome and in predictions.json.
    """
    options, work = validate_options(options), DistributedWork()
    listed = work.broadcast("inputs", lambda: [unit.to_json() for unit in _list_inputs(Path(source), Path(out))])
    inputs = [InputUnit.from_json(content) for content in listed]
    work.select_gpu()
    predictor = load()
    options = replace(options, phrases=tuple(dict.fromkeys(map(predictor.resolve_phrase, options.phrases))))
    fingerprint = predictor_fingerprint(predictor)
    if not work.is_main_process:
        work.broadcast("opened", lambda: True)  # waits until the main process has opened the folder
        with ResultFolder(out).open_for_rank(work.rank) as results:
            PredictWorker(predictor, fingerprint, results, inputs, options, work).run()
        return None
    with ResultFolder(out).open(_header(model, predictor, fingerprint, options)) as results:
        work.broadcast("opened", lambda: True)
        outcome = PredictWorker(predictor, fingerprint, results, inputs, options, work).run()
        results.merge_rank_files()
    return outcome


def _header(model: str, predictor: Predictor, fingerprint: str, options: PredictOptions) -> dict[str, Any]:
    return {
        "model": {"path": str(model), "fingerprint": fingerprint},
        "probability_scale": PROBABILITY_SCALE,
        **options.result_options(clip=True),
        "threshold": predictor.threshold if options.threshold is None else options.threshold,
        "threshold_origin": "stored with the model" if options.threshold is None else "given",
    }


def predictor_fingerprint(predictor: Predictor) -> str:
    """24 hex digits over weights, image views, prompt format, threshold and temperature."""
    weights = weights_fingerprint(predictor.model.state_dict().items())
    settings = [asdict(predictor.views), predictor.prompt_format, predictor.threshold, predictor.temperature]
    return digest([weights, *settings])


def _list_inputs(source: Path, out: Path) -> list[InputUnit]:
    """The input units. Raises UserError if `out` overlaps the input: results would be input of the next call."""
    inputs = find_inputs(source)
    check_apart(out, [*([source] if source.is_dir() else []), *(unit.path for unit in inputs)])
    return inputs
