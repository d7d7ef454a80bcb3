"""Findings on the images of a dataset folder, from report.json of preparation and check.json of the checks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vesselseg.dataset.manifest import Record
from vesselseg.prepare.findings import FINDING_KINDS

REPORTS = {"report.json": "preparing", "check.json": "checking"}


@dataclass(frozen=True)
class ReportNote:
    """One finding, as the page shows it."""

    source: str  # "preparing" or "checking"
    code: str  # kind of finding
    title: str  # of the kind
    effect: str  # consequence or severity
    where: str  # file and shape, as in the report
    reason: str

    def as_json(self) -> dict[str, str]:
        """The finding as JSON for the page."""
        return asdict(self)


@dataclass(frozen=True)
class Findings:
    """All findings of a dataset folder.

    by_image: image name -> its findings. elsewhere: findings on files that are not images of the folder. problems:
    messages on invalid reports. report: content of report.json, empty if there is none.
    """

    by_image: dict[str, tuple[ReportNote, ...]]
    elsewhere: tuple[ReportNote, ...]
    problems: tuple[str, ...]
    report: dict[str, Any]


def read_findings(root: Path, records: Sequence[Record]) -> Findings:
    """Read all findings of a dataset folder; missing or invalid reports are tolerated."""
    names = _names(records)
    by_image: defaultdict[str, list[ReportNote]] = defaultdict(list)
    elsewhere: list[ReportNote] = []
    problems: list[str] = []
    reports = {name: _read(root / name, problems) for name in REPORTS}
    for name, report in reports.items():
        for entry in _entries(report):
            note = _note(REPORTS[name], entry)
            images = _images(entry, names)
            for image in images:
                by_image[image].append(note)
            if not images:
                elsewhere.append(note)
    return Findings(
        {image: tuple(notes) for image, notes in by_image.items()},
        tuple(elsewhere),
        tuple(problems),
        reports["report.json"],
    )


def _read(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} is not a report: expected an object, found {type(content).__name__}")
        return {}
    return content


def _entries(report: dict[str, Any]) -> Iterable[dict[str, Any]]:
    found = report.get("findings")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _names(records: Sequence[Record]) -> dict[str, str]:
    """Names that a report may use for an image -> the image: its own name, with and without suffix."""
    whole = {record.image: record.image for record in records}
    return {**{str(PurePosixPath(image).with_suffix("")): image for image in whole}, **whole}


def _images(entry: dict[str, Any], names: dict[str, str]) -> list[str]:
    """The images that a finding refers to.

    Preparation reports the path in the source, of which the dataset folder drops leading folders.
    """
    listed = entry.get("images")
    named = [str(name) for name in listed] if isinstance(listed, list) else []
    named += [str(entry[key]) for key in ("image", "file") if isinstance(entry.get(key), str)]
    found = (_image(name, names) for name in named)
    return list(dict.fromkeys(image for image in found if image is not None))


def _image(name: str, names: dict[str, str]) -> str | None:
    parts = PurePosixPath(name).parts
    for first in range(len(parts)):
        rest = PurePosixPath(*parts[first:])
        for candidate in (str(rest), str(rest.with_suffix(""))):
            if candidate in names:
                return names[candidate]
    return None


def _note(source: str, entry: dict[str, Any]) -> ReportNote:
    code = str(entry.get("code", "finding"))
    effect, title = FINDING_KINDS.get(code, ("check", code.replace("_", " ").capitalize()))
    index = entry.get("index")
    listed = entry.get("images")
    file = entry.get("file") or entry.get("image") or (", ".join(map(str, listed)) if isinstance(listed, list) else "")
    return ReportNote(
        source,
        code,
        str(entry.get("title") or title),
        str(entry.get("effect") or entry.get("severity") or effect),
        f"{file}, shape {index}" if isinstance(index, int) else str(file),
        str(entry.get("reason") or entry.get("message") or title),
    )
