"""Files in, result files out: what is found is shared out, predicted and written, see `PredictRun`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vesselseg.dataset.feature_store import digest, weights_fingerprint
from vesselseg.inference.predictor import Predictor
from vesselseg.output_folder import check_apart
from vesselseg.predict.inputs import InputUnit, find_inputs
from vesselseg.predict.options import Outcome, PredictOptions, checked
from vesselseg.predict.result_files import PROBABILITY_SCALE
from vesselseg.predict.result_folder import ResultFolder
from vesselseg.predict.run import PredictRun
from vesselseg.predict.shared_work import SharedWork


def predict_files(
    model: str, source: Path, out: Path, options: PredictOptions, load: Callable[[], Predictor]
) -> Outcome | None:
    """Predict what `find_inputs` finds into out, and go on where an earlier call has ended.

    model: its name, for predictions.json; load: opens it. Under torchrun each process predicts its share; the first one
    returns the outcome of all, the others None. Raises UserError for input that is of no use as a whole; single files
    that fail are in the outcome and in predictions.json.
    """
    options, work = checked(options), SharedWork()
    listed = work.broadcast("inputs", lambda: [unit.to_json() for unit in _listed(Path(source), Path(out))])
    inputs = [InputUnit.from_json(content) for content in listed]
    work.choose_gpu()
    predictor = load()
    options = replace(options, phrases=tuple(dict.fromkeys(map(predictor.resolve_phrase, options.phrases))))
    fingerprint = predictor_fingerprint(predictor)
    if not work.is_main_process:
        work.broadcast("opened", lambda: True)
        with ResultFolder(out).joined(work.rank) as results:
            PredictRun(predictor, fingerprint, results, inputs, options, work).run()
        return None
    with ResultFolder(out).opened(_header(model, predictor, fingerprint, options)) as results:
        work.broadcast("opened", lambda: True)
        outcome = PredictRun(predictor, fingerprint, results, inputs, options, work).run()
        results.take_in_parts()
    return outcome


def _header(model: str, predictor: Predictor, fingerprint: str, options: PredictOptions) -> dict[str, Any]:
    return {
        "model": {"path": str(model), "fingerprint": fingerprint},
        "probability_scale": PROBABILITY_SCALE,
        **options.deciding(clip=True),
        "threshold": predictor.threshold if options.threshold is None else options.threshold,
        "threshold_origin": "stored with the model" if options.threshold is None else "given",
    }


def predictor_fingerprint(predictor: Predictor) -> str:
    """24 hex digits that tell models apart: weights, the views of an image, the template, threshold and temperature."""
    weights = weights_fingerprint(predictor.model.state_dict().items())
    return digest(
        [weights, asdict(predictor.views), predictor.prompt_format, predictor.threshold, predictor.temperature]
    )


def _listed(source: Path, out: Path) -> list[InputUnit]:
    inputs = find_inputs(source)
    _check_apart(source, inputs, out)
    return inputs


def _check_apart(source: Path, inputs: Sequence[InputUnit], out: Path) -> None:
    """Results among the input would be input of the next call."""
    check_apart(out, [*([source] if source.is_dir() else []), *(item.path for item in inputs)])
