"""Store a threshold and its temperature in an exported model's folder: config.json and model card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesselseg.evaluation.errors import EvaluationError
from vesselseg.output_folder import replace_text

if TYPE_CHECKING:
    from vesselseg.evaluation.result_types import Evaluation

_CONFIG, _CARD, _CODE = "config.json", "README.md", "*.py"
_ROW = re.compile(r"^\| threshold \|.*$", re.MULTILINE)


def check_storable(folder: Path, temperature: bool) -> None:
    """Raise EvaluationError where folder cannot store a threshold, or a temperature if `temperature` is true."""
    advice = "--store-threshold writes into a folder that vesselseg convert wrote"
    if not folder.exists():
        raise EvaluationError(f"{folder} does not exist; {advice}")
    if folder.is_file():
        raise EvaluationError(
            f"{folder} is a checkpoint, which keeps the threshold of its training; {advice}: convert it first"
        )
    if not (folder / _CONFIG).is_file():
        raise EvaluationError(f"{folder} contains predictions, not a model; {advice}")
    if "threshold" not in _read(folder):
        raise EvaluationError(f"{folder / _CONFIG} has no threshold, so another program wrote the folder; {advice}")
    code = "".join(file.read_text(encoding="utf-8") for file in folder.glob(_CODE))
    if temperature and "mask_temperature" not in code:
        raise EvaluationError(
            f"{folder}: its model code does not support a temperature and would apply the threshold to uncalibrated "
            "probabilities; convert the checkpoint again with vesselseg convert, or omit --calibrate"
        )


def store_threshold(folder: Path, threshold: float, temperature: float | None = None) -> tuple[float, float]:
    """Store the threshold and return the stored (threshold, temperature).

    temperature: fitted to the folder's present probabilities, so it multiplies the stored one; None keeps the latter.
    threshold: for the probabilities with that temperature. Raises EvaluationError, see ``check_storable``.
    """
    check_storable(folder, temperature is not None)
    content = _read(folder)
    content["threshold"] = round(threshold, 6)
    content["mask_temperature"] = round(float(content.get("mask_temperature", 1.0)) * (temperature or 1.0), 6)
    replace_text(folder / _CONFIG, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    card = folder / _CARD
    if card.is_file():
        at = f" at temperature {content['mask_temperature']:.3f}" if content["mask_temperature"] != 1 else ""
        row = f"| threshold | {threshold:.2f}{at}, chosen on the validation split |"
        replace_text(card, _ROW.sub(row, card.read_text(encoding="utf-8")))
    return content["threshold"], content["mask_temperature"]


def store_evaluation_threshold(evaluation: Evaluation) -> tuple[float, float]:
    """``store_threshold`` with the threshold of the folder's evaluation, and its temperature if one was fitted."""
    fitted = evaluation.calibration
    if fitted is None or fitted.temperature is None or fitted.threshold is None:
        return store_threshold(evaluation.source, evaluation.threshold.value)
    return store_threshold(evaluation.source, fitted.threshold, fitted.temperature)


def _read(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{folder / _CONFIG}: not readable as JSON ({error}); convert the model again") from None
    if not isinstance(content, dict):
        raise EvaluationError(f"{folder / _CONFIG}: expected an object, found {type(content).__name__}")
    return content
