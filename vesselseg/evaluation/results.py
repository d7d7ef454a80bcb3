"""results.json and results.csv: every value of an evaluation, in a form that other programs read."""

from __future__ import annotations

import csv
import json
import math
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from vesselseg.evaluation.metrics import EMPTY_MASK_RULE, METRICS
from vesselseg.evaluation.scores import Curve, Evaluation, Scored
from vesselseg.evaluation.statistics import CONFIDENCE, RESAMPLES
from vesselseg.evaluation.threshold import THRESHOLDS

RESULTS_FILE = "results.json"
FORMAT = 1
_PACKAGES = ("vesselseg", "numpy", "scikit-image", "scipy", "pillow", "torch", "transformers", "sam2")


def write_json(evaluation: Evaluation, folder: Path) -> None:
    """Write ``folder/results.json``."""
    text = json.dumps(as_dict(evaluation), ensure_ascii=False, indent=1, allow_nan=False)
    (Path(folder) / RESULTS_FILE).write_text(text + "\n", encoding="utf-8")


def write_csv(evaluation: Evaluation, folder: Path) -> None:
    """Write ``folder/results.csv``: one row per item, one column per metric."""
    rows = [_flat(item) for item in evaluation.items]
    with (Path(folder) / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The content of results.json."""
    choice = evaluation.threshold
    return {
        "format": FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "source": {"path": str(evaluation.source), "kind": evaluation.kind},
        "data": {
            "folder": str(evaluation.data),
            "fingerprint": evaluation.data_fingerprint,
            "split": evaluation.split,
            "images": len({item.image for item in evaluation.items}),
            "items": len(evaluation.items),
            "groups": evaluation.groups,
        },
        "threshold": {"value": choice.value, "origin": choice.origin, "search": _curve(choice.searched)},
        "curve_of_reported_split": _curve(evaluation.curve),
        "empty_mask_rule": EMPTY_MASK_RULE,
        "bootstrap": {
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
            "seed": evaluation.seed,
            "unit": "group" if evaluation.grouped else "image",
        },
        "summary": {name: summary.to_dict() for name, summary in evaluation.summary.items()},
        "warnings": list(evaluation.warnings),
        "versions": versions(),
        "items": [{**asdict(item), "metrics": _defined(item.metrics)} for item in evaluation.items],
    }


def versions() -> dict[str, str]:
    """Installed versions of what the figures depend on, Python's first."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _curve(curve: Curve | None) -> dict[str, Any] | None:
    if curve is None:
        return None
    return {
        "split": curve.split,
        "items": curve.items,
        "thresholds": [float(value) for value in THRESHOLDS],
        "dice": [float(value) for value in curve.dice],
        "iou": [float(value) for value in curve.iou],
    }


def _flat(item: Scored) -> dict[str, Any]:
    row = asdict(item)
    values = row.pop("metrics")
    return {**row, **{name: "" if value is None else f"{value:.6f}" for name, value in _defined(values).items()}}


def _defined(metrics: dict[str, float]) -> dict[str, float | None]:
    """In the order of METRICS; None for an undefined value."""
    return {name: None if math.isnan(metrics[name]) else metrics[name] for name in METRICS}
