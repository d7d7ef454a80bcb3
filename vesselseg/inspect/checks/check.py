"""Check a dataset folder: measure every image, run all checks, write check.json and check.html."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import vesselseg
from vesselseg.inspect.checks import find_anomalies, find_leaks
from vesselseg.inspect.checks.measured_dataset import MeasuredDataset, Track, measure_dataset, summary_of_splits
from vesselseg.inspect.checks.page import check_page
from vesselseg.inspect.checks.result import CheckResult

CHECK_FILE, CHECK_PAGE = "check.json", "check.html"


def check_dataset(folder: Path, workers: int = 0, track: Track = lambda facts, _: facts) -> CheckResult:
    """Check a dataset folder or a fold of it; nothing is written.

    workers: processes, 0 for all cores. track: shows progress, see `measure_dataset`. Raises ManifestError if
    annotations.json or splits.json cannot be read.
    """
    measured = measure_dataset(folder, workers, track)
    duplicates = find_leaks.find_duplicates(measured)
    findings = [
        *find_leaks.check_files_and_splits(measured),
        *find_leaks.check_groups(measured),
        *find_leaks.check_duplicates(measured, duplicates),
        *find_anomalies.check_labels(measured),
        *find_anomalies.check_masks(measured),
        *find_anomalies.check_observers(measured),
        *find_anomalies.check_images(measured),
    ]
    return CheckResult(measured, duplicates, sorted(findings, key=lambda finding: finding.sort_key))


def write_check(check: CheckResult, folder: Path, changes: Sequence[str] = ()) -> None:
    """Write check.json and check.html into a folder. changes: what --fix did, as messages."""
    text = json.dumps(as_dict(check, changes), ensure_ascii=False, indent=1, allow_nan=False)
    (Path(folder) / CHECK_FILE).write_text(text + "\n", encoding="utf-8")
    (Path(folder) / CHECK_PAGE).write_text(check_page(check, changes), encoding="utf-8")


def as_dict(check: CheckResult, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The content of check.json."""
    measured = check.measured
    return {
        "vesselseg": vesselseg.__version__,
        "data": str(measured.folder),
        "fingerprint": measured.fingerprint,
        "counts": check.counts,
        "changes": list(changes),
        "findings": [finding.as_json() for finding in check.findings],
        "splits": summary_of_splits(measured),
        "images": {record.image: _describe_image(measured, index) for index, record in enumerate(measured.records)},
    }


def _describe_image(measured: MeasuredDataset, index: int) -> dict[str, Any]:
    record, facts = measured.records[index], measured.facts[index]
    known: dict[str, Any] = {"splits": list(measured.splits_of[record.image]), "group": record.group}
    if facts.problem is not None:
        return {**known, "problem": facts.problem[1]}
    return {
        **known,
        "look": facts.image_format,
        "brightness": round(facts.brightness, 2),
        "contrast": round(facts.contrast, 2),
        "share": round(facts.share, 6),
        "specks": list(facts.specks),
        "observers": [asdict(one) for one in facts.agreement],
    }
