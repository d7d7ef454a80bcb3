"""Check a dataset folder: measure every image, find what is wrong, write check.json and check.html."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import vesselseg
from vesselseg.inspect.checks import find_anomalies, find_leaks
from vesselseg.inspect.checks.measured_dataset import MeasuredDataset, Track, read_dataset, summary_of_splits
from vesselseg.inspect.checks.page import check_page
from vesselseg.inspect.checks.result import Check

CHECK_FILE, CHECK_PAGE = "check.json", "check.html"


def check_dataset(folder: Path, workers: int = 0, track: Track = lambda facts, _: facts) -> Check:
    """Check a dataset folder or a fold of it; nothing is written.

    workers: processes, 0 for all cores. track: shows progress. Raises ManifestError where annotations.json or
    splits.json cannot be read.
    """
    measured = read_dataset(folder, workers, track)
    repeated = find_leaks.find_duplicates(measured)
    findings = [
        *find_leaks.files_and_splits(measured),
        *find_leaks.groups(measured),
        *find_leaks.repeated_pictures(measured, repeated),
        *find_anomalies.labels(measured),
        *find_anomalies.masks(measured),
        *find_anomalies.observers(measured),
        *find_anomalies.pictures(measured),
    ]
    return Check(measured, repeated, sorted(findings, key=lambda finding: finding.sort_key))


def write_check(check: Check, folder: Path, changes: Sequence[str] = ()) -> None:
    """Write check.json and check.html into a folder. changes: what --fix did, in sentences."""
    text = json.dumps(as_dict(check, changes), ensure_ascii=False, indent=1, allow_nan=False)
    (Path(folder) / CHECK_FILE).write_text(text + "\n", encoding="utf-8")
    (Path(folder) / CHECK_PAGE).write_text(check_page(check, changes), encoding="utf-8")


def as_dict(check: Check, changes: Sequence[str] = ()) -> dict[str, Any]:
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
        "images": {record.image: _of_image(measured, place) for place, record in enumerate(measured.records)},
    }


def _of_image(measured: MeasuredDataset, place: int) -> dict[str, Any]:
    record, facts = measured.records[place], measured.facts[place]
    known: dict[str, Any] = {"splits": list(measured.splits_of[record.image]), "group": record.group}
    if facts.problem is not None:
        return {**known, "problem": facts.problem[1]}
    return {
        **known,
        "look": facts.look,
        "brightness": round(facts.brightness, 2),
        "contrast": round(facts.contrast, 2),
        "share": round(facts.share, 6),
        "specks": list(facts.specks),
        "observers": [asdict(one) for one in facts.agreement],
    }
