"""report.json of a dataset folder: counts, sizes, labels, vessel fractions, every finding."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vesselseg
from vesselseg.dataset.manifest import SPLITS, Record
from vesselseg.prepare.findings import Finding, count_by_code
from vesselseg.prepare.options import PrepareOptions
from vesselseg.prepare.prepare_image import ImageResult


@dataclass(frozen=True)
class PreparationResult:
    """Outcome of preparing a source."""

    source: Path  # folder or archive
    options: PrepareOptions
    format: str  # of the labels, a key of readers.formats.FORMATS
    usable: list[ImageResult]  # results with a record, in the order of `records`
    left_out: list[ImageResult]  # the other results
    records: list[Record]  # with their groups
    splits: dict[str, list[str]]  # image names per split
    findings: list[Finding]  # of all results, sorted
    unlabelled: list[str]  # image files without labels
    pseudonymised: bool = False  # whether names are hashed
    fill_by: str = ""  # how the fill was chosen, "" where the user did

    @property
    def group_rule(self) -> str | None:
        """How images are grouped, for the report; None if they are not."""
        if self.options.group_regex:
            return self.options.group_regex
        return "patients of the DICOM headers" if any(result.patient for result in self.usable) else None


def write_splits(folder: Path, splits: dict[str, list[str]]) -> None:
    """Write ``folder/splits.json``: image names per split."""
    (folder / "splits.json").write_text(json.dumps(splits, ensure_ascii=False, indent=1), encoding="utf-8")


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write ``folder/report.json``."""
    (folder / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")


def build_report(prepared: PreparationResult) -> dict[str, Any]:
    """The content of report.json, except the fingerprint of the dataset folder."""
    usable = prepared.usable
    sizes = Counter(f"{result.size[0]}x{result.size[1]}" for result in usable)
    return {
        "vesselseg": vesselseg.__version__,
        "source": str(prepared.source),
        "format": prepared.format,
        "pseudonymised": prepared.pseudonymised,
        "options": _describe_options(prepared.options),
        "counts": _count(prepared),
        "group_rule": prepared.group_rule,
        "fill_by": prepared.fill_by,
        "splits": {name: _describe_split(prepared, name) for name in SPLITS},
        "sizes": dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))),
        "labels": _describe_labels(prepared),
        "fractions": {r.image: round(result.fraction, 6) for r, result in zip(prepared.records, usable)},
        "findings_by_code": count_by_code(prepared.findings),
        "findings": [_describe_finding(finding) for finding in prepared.findings],
        "unlabelled": prepared.unlabelled,
    }


def _describe_options(options: PrepareOptions) -> dict[str, Any]:
    """The options that affect the content of the folder."""
    return {
        "text": options.default_phrase,
        "labels": None if options.labels is None else dict(options.labels),
        "split": list(options.fractions),
        "group_regex": options.group_regex,
        "val_regex": options.val_regex,
        "test_regex": options.test_regex,
        "seed": options.seed,
        "per_shape": options.per_shape,
        "line_width": options.line_width,
        "fill": options.fill,
        "masks": list(options.masks),
        "mask_values": str(options.mask_values),
    }


def _count(prepared: PreparationResult) -> dict[str, int]:
    everything = prepared.usable + prepared.left_out
    return {
        "label_files": len(everything),
        "images": len(prepared.records),
        "files_left_out": len(prepared.left_out),
        "objects": sum(bool(regions) for record in prepared.records for regions in record.regions),
        "shapes": sum(result.used.total() for result in prepared.usable),
        "shapes_left_out": sum(result.dropped.total() for result in everything),
        "negatives": sum(not any(record.regions) for record in prepared.records),
        "rescaled": sum(finding.code == "rescaled" for finding in prepared.findings),
        "observers": sum(bool(record.observers) for record in prepared.records),
        "groups": len({record.group_key for record in prepared.records}),
    }


def _describe_split(prepared: PreparationResult, name: str) -> dict[str, float]:
    members = set(prepared.splits[name])
    fractions = [f.fraction for r, f in zip(prepared.records, prepared.usable) if r.image in members]
    groups = {record.group_key for record in prepared.records if record.image in members}
    mean = sum(fractions) / len(fractions) if fractions else 0.0
    return {"images": len(members), "groups": len(groups), "mean_fraction": round(mean, 6)}


def _describe_labels(prepared: PreparationResult) -> list[dict[str, Any]]:
    """One entry per label, the most frequent first; phrase None if the label map leaves it out."""
    used: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    phrases: dict[str, set[str]] = defaultdict(set)
    in_files: Counter[str] = Counter()
    for result in prepared.usable + prepared.left_out:
        used.update(result.used)
        dropped.update(result.dropped)
        ignored.update(result.ignored)
        in_files.update(set(result.used) | set(result.dropped) | set(result.ignored))
        for label, phrase in result.phrases.items():
            phrases[label].add(phrase)
    return [
        {
            "label": label,
            "phrase": ", ".join(sorted(phrases[label])) or _phrase(label, prepared.options),
            "shapes": used[label] + ignored[label],
            "left_out": dropped[label],
            "files": in_files[label],
        }
        for label in sorted(in_files, key=lambda name: (-used[name], name))
    ]


def _phrase(label: str, options: PrepareOptions) -> str | None:
    """The phrase of a label without any used shape."""
    return options.default_phrase if options.labels is None else options.labels.get(label)


def _describe_finding(finding: Finding) -> dict[str, Any]:
    return {
        "file": finding.file,
        "index": finding.index,
        "code": finding.code,
        "effect": finding.effect,
        "reason": finding.reason,
    }
