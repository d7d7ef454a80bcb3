"""A dataset folder for browsing: list of images, details, pixels and masks. Nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vesselseg.dataset.manifest import SPLITS, Record, dataset_home, fingerprint, image_path, read_manifest, read_splits
from vesselseg.dataset.record_masks import record_masks
from vesselseg.errors import ManifestError
from vesselseg.imaging.decode import DECODE_ERRORS
from vesselseg.imaging.read_image import read_image, unreadable
from vesselseg.inspect.browse.findings import Findings, ReportNote, read_findings

NO_SPLIT = "none"
_MODES = {"1": "1 bit", "L": "8-bit grey", "RGB": "8-bit colour", "I;16": "16-bit grey", "P": "palette"}
BINS = 64  # of a histogram over grey values 0..255


@dataclass(frozen=True)
class Entry:
    """One image of the list."""

    number: int  # index in annotations.json
    record: Record
    split: str  # train, val, test or NO_SPLIT
    index_in_split: int  # -1 without a split
    size: tuple[int, int] | None  # (width, height), None if the file cannot be read
    share: float | None  # fraction of labelled pixels, 0..1, None if unknown
    notes: tuple[ReportNote, ...]  # findings of preparation and checks
    problem: str  # why the image cannot be shown, or ""

    def as_json(self) -> dict[str, Any]:
        """The image's entry in the list of the page."""
        return {
            "number": self.number,
            "name": self.record.image,
            "split": self.split,
            "group": self.record.group,
            "phrases": list(dict.fromkeys(self.record.phrases)),
            "size": self.size,
            "share": self.share,
            "codes": list(dict.fromkeys(note.code for note in self.notes)),
            "notes": len(self.notes),
            "problem": self.problem,
        }


class Catalogue:
    """All images of a dataset folder or fold. Raises ManifestError if annotations.json or splits.json is invalid."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        records = read_manifest(self.root)
        self.splits = read_splits(self.root)
        self.fingerprint = fingerprint(self.root)
        self.findings: Findings = read_findings(dataset_home(self.root), records)
        self._allowed = (dataset_home(self.root) / "images").resolve()
        places = {image: (split, place) for split in SPLITS for place, image in enumerate(self.splits[split])}
        self.entries = [self._entry(number, record, places) for number, record in enumerate(records)]

    @property
    def name(self) -> str:
        """Name of the dataset folder, with the number of a fold."""
        home = dataset_home(self.root).resolve()
        return home.name if home == self.root.resolve() else f"{home.name}, fold {self.root.resolve().name}"

    def as_json(self) -> dict[str, Any]:
        """The list of images and the facts on the folder as a whole."""
        phrases = Counter(phrase for entry in self.entries for phrase in set(entry.record.phrases))
        notes = [note for entry in self.entries for note in entry.notes] + list(self.findings.elsewhere)
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "source": str(self.findings.report.get("source", "")),
            "prepared_with": str(self.findings.report.get("vesselseg", "")),
            "phrases": [phrase for phrase, _ in phrases.most_common()],
            "kinds": {note.code: note.title for note in notes},
            "elsewhere": [note.as_json() for note in self.findings.elsewhere],
            "problems": list(self.findings.problems),
            "images": [entry.as_json() for entry in self.entries],
        }

    def details(self, number: int) -> dict[str, Any]:
        """Everything on one image except its pixels; "problem" states why it cannot be shown, or is empty."""
        entry = self.entries[number]
        known = {**entry.as_json(), "notes": [note.as_json() for note in entry.notes], "objects": [], "observers": []}
        try:
            image, masks, path = self.image(number), self.masks(number), self.file(number)
            with Image.open(path) as opened:
                stored = f"{opened.format}, {_MODES.get(opened.mode, opened.mode)}"
        except (ManifestError, ValueError) as error:
            return {**known, "problem": str(error)}
        grey = np.asarray(image.convert("L"))
        rest = grey[~masks.any(axis=0)]
        known |= {"problem": "", "stored": stored, "bytes": path.stat().st_size, "background": _histogram(rest)}
        known["objects"] = [_measure(phrase, mask, grey) for phrase, mask in zip(entry.record.phrases, masks)]
        known["spacing"] = entry.record.spacing
        known["observers"] = [
            {"name": name, **_compare(masks, self.masks(number, place))}
            for place, name in enumerate(entry.record.observers, start=1)
        ]
        return known

    def file(self, number: int) -> Path:
        """The image's file; raises ManifestError if a link leads outside images/."""
        path = image_path(self.root, self.entries[number].record)
        return _inside(path, self._allowed)

    def image(self, number: int) -> Image.Image:
        """The stored image as 8-bit RGB; raises ManifestError."""
        return read_image(self.file(number))

    def masks(self, number: int, observer: int = 0) -> np.ndarray:
        """(objects, height, width) uint8 0/1 at the stored image's size; raises ManifestError and ValueError.

        observer: 0 for the first, whose masks are used in training, from 1 on for the others.
        """
        record = self.entries[number].record
        names = list(record.observers)
        if observer > len(names):
            raise ManifestError(
                f"{record.image} has no observer {observer}: it has {len(names)} in addition to the first"
            )
        width, height = _size(self.file(number))
        return record_masks(record.with_observer(names[observer - 1]) if observer else record, height, width)

    def _entry(self, number: int, record: Record, places: dict[str, tuple[str, int]]) -> Entry:
        split, place = places.get(record.image, (NO_SPLIT, -1))
        notes = self.findings.by_image.get(record.image, ())
        size, share, problem = None, None, ""
        try:
            size = _size(_inside(image_path(self.root, record), self._allowed))
            masks = record_masks(record, size[1], size[0])
            share = float(masks.any(axis=0).mean()) if len(masks) else 0.0
        except (ManifestError, ValueError) as error:
            problem = str(error)
        return Entry(number, record, split, place, size, share, notes, problem)


def _inside(path: Path, folder: Path) -> Path:
    resolved = path.resolve()
    if not resolved.is_relative_to(folder):
        raise ManifestError(f"{path}: links out of the dataset folder are not followed")
    return resolved


def _size(path: Path) -> tuple[int, int]:
    """(width, height) from the file's header."""
    try:
        with Image.open(path) as opened:
            return opened.size
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from None


def _measure(phrase: str, mask: np.ndarray, grey: np.ndarray) -> dict[str, Any]:
    """Measurements of an object: pixels, fraction, box (left, top, right, bottom), grey values.

    mask, grey: (height, width) uint8, mask 0 or 1.
    """
    inside = grey[mask > 0]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1] if len(rows) else None
    return {
        "phrase": phrase,
        "pixels": len(inside),
        "share": len(inside) / mask.size,
        "box": box,
        "mean": float(inside.mean()) if len(inside) else None,
        "histogram": _histogram(inside),
    }


def _compare(first: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Agreement of an observer with the first: pixels drawn, and Dice, None if both drew nothing.

    first, other: (objects, height, width).
    """
    both = [masks.any(axis=0) for masks in (first, other)]
    drawn = int(both[0].sum()) + int(both[1].sum())
    dice = 2 * int((both[0] & both[1]).sum()) / drawn if drawn else None
    return {"pixels": int(both[1].sum()), "dice": dice}


def _histogram(values: np.ndarray) -> list[int]:
    """Counts of uint8 values in BINS bins."""
    counts = np.bincount(values.reshape(-1), minlength=256)
    return [int(count) for count in counts.reshape(BINS, -1).sum(axis=1)]


def group_count(entries: Sequence[Entry]) -> int:
    """Number of groups of the images."""
    return len({entry.record.group_key for entry in entries})
