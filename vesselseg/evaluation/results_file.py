"""results.json and results.csv: every value of an evaluation for other programs.

An undefined value is null in the JSON and an empty cell in the CSV.
"""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from vesselseg.dataset.manifest import read_fold
from vesselseg.evaluation.metrics import EMPTY_MASK_RULE, METRIC_TABLE, METRICS
from vesselseg.evaluation.options import RESULTS_FILE
from vesselseg.evaluation.result_types import Curve, Evaluation
from vesselseg.evaluation.statistics import CONFIDENCE, RESAMPLES
from vesselseg.evaluation.threshold import THRESHOLDS
from vesselseg.inference.model_files import weights_digest

FORMAT = 2
_PACKAGES = ("vesselseg", "numpy", "scikit-image", "scikit-learn", "scipy", "pillow", "torch", "transformers", "sam2")


def write_json(evaluation: Evaluation, folder: Path) -> None:
    """Write ``folder/results.json``."""
    text = json.dumps(as_dict(evaluation), ensure_ascii=False, indent=1, allow_nan=False)
    (Path(folder) / RESULTS_FILE).write_text(text + "\n", encoding="utf-8")


def write_csv(evaluation: Evaluation, folder: Path) -> None:
    """Write ``folder/results.csv``: one row per item, one column per metric."""
    rows = []
    for item in evaluation.items:
        row = asdict(item)
        values = row.pop("metrics")
        cells = {name: f"{values[name]:.6f}" if math.isfinite(values[name]) else "" for name in METRICS}
        rows.append({**row, **cells})
    with (Path(folder) / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The content of results.json."""
    content = {
        "format": FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **_about(evaluation),
        **_measured(evaluation),
        "metrics": {name: asdict(metric) for name, metric in METRIC_TABLE.items()},
        "versions": versions(),
        "items": [asdict(item) for item in evaluation.items],
    }
    plain: dict[str, Any] = _plain(content)
    return plain


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that the results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _about(evaluation: Evaluation) -> dict[str, Any]:
    choice, fold = evaluation.threshold, read_fold(evaluation.data)
    return {
        "source": {
            "path": str(evaluation.source),
            "kind": evaluation.kind,
            "weights": weights_digest(evaluation.source) if evaluation.kind == "model" else None,
        },
        "data": {
            "folder": str(evaluation.data),
            "fingerprint": evaluation.data_fingerprint,
            "fill": evaluation.fill,
            "fold": None if fold is None else asdict(fold),
            "split": evaluation.split,
            "images": len({item.image for item in evaluation.items}),
            "items": len(evaluation.items),
            "groups": evaluation.groups,
            "seen_in_training": evaluation.seen_in_training,
        },
        "threshold": {"value": choice.value, "origin": choice.origin, "search": _curve(choice.searched)},
        "test_time": evaluation.test_time,
        "post_processing": evaluation.post_processing,
        "baseline_threshold": evaluation.baseline_threshold,
        "length_unit": evaluation.length_unit,
        "empty_mask_rule": EMPTY_MASK_RULE,
        "bootstrap": {
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
            "seed": evaluation.seed,
            "unit": "group" if evaluation.grouped else "image",
        },
        "warnings": [*filter(None, [evaluation.leakage]), *evaluation.warnings],
    }


def _measured(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "summary": {name: summary.to_dict() for name, summary in evaluation.summary.items()},
        "group_summary": {name: summary.to_dict() for name, summary in evaluation.group_summary.items()},
        "thresholds": [{**asdict(found), "loss": found.loss} for found in evaluation.thresholds],
        "curve_of_reported_split": _curve(evaluation.curve),
        "calibration": None if evaluation.calibration is None else asdict(evaluation.calibration),
        # The keys "switches" and "switch" are kept: results.json is read by other programs, which know no other name.
        "switches": [
            {"switch" if key == "option" else key: value for key, value in asdict(effect).items()}
            for effect in evaluation.ablations
        ],
        "subgroups": [asdict(subgroup) for subgroup in evaluation.subgroups],
        "per_group": [asdict(mean) for mean in evaluation.per_group],
    }


def _plain(value: Any) -> Any:
    """Values of JSON: arrays become lists, undefined numbers None."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _curve(curve: Curve | None) -> dict[str, Any] | None:
    if curve is None:
        return None
    return {
        "split": curve.split,
        "items": curve.items,
        "thresholds": THRESHOLDS,
        "dice": curve.dice,
        "iou": curve.iou,
    }
