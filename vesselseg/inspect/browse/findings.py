"""What was found about a dataset folder's images: report.json of preparing, check.json of checking."""

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
class Note:
    """One finding, for reading.

    source: "preparing" or "checking". code: its kind. title: the kind in words. effect: what happened or how bad it is.
    where: file and shape in the words of the source. reason: in words.
    """

    source: str
    code: str
    title: str
    effect: str
    where: str
    reason: str

    def as_json(self) -> dict[str, str]:
        """For the page."""
        return asdict(self)


@dataclass(frozen=True)
class Findings:
    """by_image: notes per image name. elsewhere: of files that are no image of the folder. problems: broken reports.

    report: report.json as it stands, empty if there is none.
    """

    by_image: dict[str, tuple[Note, ...]]
    elsewhere: tuple[Note, ...]
    problems: tuple[str, ...]
    report: dict[str, Any]


def read_findings(root: Path, records: Sequence[Record]) -> Findings:
    """Everything that the reports of a dataset folder say; a report that is missing or damaged stops nothing."""
    names = _names(records)
    by_image: defaultdict[str, list[Note]] = defaultdict(list)
    elsewhere: list[Note] = []
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
        problems.append(f"{path.name} is no report: expected an object, found {type(content).__name__}")
        return {}
    return content


def _entries(report: dict[str, Any]) -> Iterable[dict[str, Any]]:
    found = report.get("findings")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _names(records: Sequence[Record]) -> dict[str, str]:
    """Names that a report may use for an image -> the image: its own, and that without its ending."""
    whole = {record.image: record.image for record in records}
    return {**{str(PurePosixPath(image).with_suffix("")): image for image in whole}, **whole}


def _images(entry: dict[str, Any], names: dict[str, str]) -> list[str]:
    """The images that a finding is about.

    Preparing names the file of the source, whose leading folders the dataset folder has dropped.
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


def _note(source: str, entry: dict[str, Any]) -> Note:
    code = str(entry.get("code", "finding"))
    effect, title = FINDING_KINDS.get(code, ("check", code.replace("_", " ").capitalize()))
    index = entry.get("index")
    listed = entry.get("images")
    file = entry.get("file") or entry.get("image") or (", ".join(map(str, listed)) if isinstance(listed, list) else "")
    return Note(
        source,
        code,
        str(entry.get("title") or title),
        str(entry.get("effect") or entry.get("severity") or effect),
        f"{file}, shape {index}" if isinstance(index, int) else str(file),
        str(entry.get("reason") or entry.get("message") or title),
    )
