"""Mask images as labels: one meaning of their values for the whole source, several observers, ignored pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from vesselseg.imaging.label_shapes import ImageLabels, InvalidShape, LabelFileError, Shape, full_image_mask
from vesselseg.imaging.mask_evidence import Evidence, ValueKind, add_up
from vesselseg.imaging.mask_files import RawMask, read_raw_mask
from vesselseg.imaging.mask_option import BY_EVIDENCE, MaskValues
from vesselseg.imaging.mask_values import OBJECT, Meaning, apply, decide
from vesselseg.imaging.notes import Note
from vesselseg.machine import available_cores

_MOST = 0.5  # of the image; a vessel mask that covers more is probably inverted
Meanings = dict[tuple[ValueKind, bool], Meaning]  # by kind of value, and whether it is stored as JPEG


@dataclass(frozen=True)
class ReadMask:
    """classes: label -> (height, width) bool for each value except the background; several may share a label.

    ignored: (height, width) bool. size: (width, height). readings: how the mask is read, and how it could be, each with
    its (height, width) bool, where there is doubt.
    """

    classes: tuple[tuple[str, np.ndarray], ...]
    ignored: np.ndarray
    size: tuple[int, int]
    notes: tuple[Note, ...]
    readings: tuple[tuple[str, np.ndarray], ...] = ()

    @property
    def union(self) -> np.ndarray:
        """(height, width) bool of all that is vessel."""
        return _union(self.classes, self.ignored.shape)


@dataclass(frozen=True)
class MaskLabels:
    """The mask files of one image, the first observer's first. notes: on how they were paired with the image.

    meanings: per observer, what values mean (`settle_meanings`); empty: decided by each file alone.
    """

    paths: tuple[Path, ...]
    notes: tuple[Note, ...] = ()
    meanings: tuple[Meanings, ...] = ()
    asked: MaskValues = BY_EVIDENCE
    names: Mapping[str, str] = field(default_factory=dict)
    """value as text -> label, where the source names its classes"""

    @property
    def path(self) -> Path:
        """The first observer's mask."""
        return self.paths[0]

    def read(self) -> ImageLabels:
        """One shape per value and observer; the label is the value as text: "1", "255", "#ff0000"."""
        first = self._read(0)
        shapes, broken, observers, notes = _shapes(first, ""), [], [], [*first.notes]
        for number in range(2, len(self.paths) + 1):
            try:
                other = self._read(number - 1)
                if other.size != first.size:
                    raise LabelFileError(
                        f"{other.size[0]}x{other.size[1]}, the first observer's is {first.size[0]}x{first.size[1]}"
                    )
            except LabelFileError as error:
                broken.append(InvalidShape(0, "", "bad_mask", f"observer {number}: {error}"))
                continue
            shapes += _shapes(other, str(number))
            observers.append(str(number))
            notes += [Note(code, f"observer {number}: {reason}") for code, reason in other.notes]
        return ImageLabels(
            tuple(shapes), tuple(broken), "", None, first.size, (*self.notes, *notes), observers=tuple(observers),
            ignored=first.ignored if first.ignored.any() else None, readings=first.readings,
        )  # fmt: skip

    def _read(self, observer: int) -> ReadMask:
        mask = read_mask(self.paths[observer], self.meanings[observer] if self.meanings else {}, self.asked)
        return replace(mask, classes=tuple((self.names.get(label, label), bitmap) for label, bitmap in mask.classes))


def settle_meanings(labels: Sequence[MaskLabels], asked: MaskValues) -> list[MaskLabels]:
    """The labels with the meaning of their values: one decision per observer and kind of value, from all files.

    Each file is read for it: one mask may hold the ignore value alone, and only the others show that it is one.
    """
    evidence: dict[tuple[int, tuple[ValueKind, bool]], list[Evidence]] = defaultdict(list)
    jobs = [(observer, path) for one in labels for observer, path in enumerate(one.paths)]
    with ThreadPoolExecutor(min(8, available_cores())) as pool:
        for (observer, _), found in zip(jobs, pool.map(_evidence, [path for _, path in jobs])):
            if found is not None:
                evidence[observer, (found.kind, found.lossy)].append(found)
    meanings: dict[int, Meanings] = defaultdict(dict)
    for (observer, kind), several in evidence.items():
        try:
            meanings[observer][kind] = decide(add_up(several), asked)
        except ValueError:  # colours of a photograph among them: each file alone is read or refused
            continue
    return [
        replace(one, meanings=tuple(meanings[observer] for observer in range(len(one.paths))), asked=asked)
        for one in labels
    ]


def _evidence(path: Path) -> Evidence | None:
    try:
        return read_raw_mask(path).evidence()
    except LabelFileError:  # listed when the labels are read
        return None


def read_mask(path: Path, meanings: Meanings | None = None, asked: MaskValues = BY_EVIDENCE) -> ReadMask:
    """A mask file; meanings: of its values, by their kind; without one, the file alone decides.

    Raises LabelFileError.
    """
    raw = read_raw_mask(path)
    try:
        meaning = _meaning(raw, meanings or {}, asked)
    except ValueError as error:
        raise LabelFileError(str(error)) from None
    classes, ignored = apply(raw.values, meaning, raw.name)
    draw = partial(_reading, raw)
    readings = (draw(meaning), draw(meaning.other)) if meaning.other is not None else ()
    notes = [*raw.notes, *_notes(raw, meaning, classes, ignored)]
    return ReadMask(tuple(classes), ignored, raw.size, tuple(notes), readings)


def _meaning(raw: RawMask, meanings: Meanings, asked: MaskValues) -> Meaning:
    """That of the source; a mask of two values that all lie below its cut has another maker and is read by itself."""
    meaning = meanings.get((raw.kind, raw.lossy))
    if meaning is None or meaning.kind != "cut" or raw.lossy or asked or float(raw.values.max()) > meaning.cut:
        return meaning or decide(raw.evidence(), asked)
    values = np.unique(raw.values)
    if len(values) != 2 or values[0] != 0:
        return meaning
    reason = f"only 0 and {values[1]:g}, while other masks have grey levels up to {meaning.full:g}; read as vessel"
    return Meaning("classes", code="mask_mixed", reason=reason, other=meaning)


def _notes(raw: RawMask, meaning: Meaning, classes: list[tuple[str, np.ndarray]], ignored: np.ndarray) -> list[Note]:
    notes = []
    if meaning.code and (meaning.code != "mask_ignore" or ignored.any()):
        of_this = f"; {ignored.mean():.1%} of this mask" if ignored.any() else ""
        notes.append(Note(meaning.code, meaning.reason + of_this))
    elif ignored.any():
        notes.append(Note("mask_ignore", f"{ignored.mean():.1%} of this mask is ignored: {meaning.describe()}"))
    if meaning.kind == "objects" and len(classes) == 1 and len(np.unique(raw.values)) > 2:
        notes.append(Note("mask_objects", "too many objects for separate masks; read as one"))
    if meaning.background:
        background = raw.name(meaning.background)
        notes.append(Note("mask_background", f"no 0 in the masks; {background} is used as the background"))
    if ignored.any() and not classes:
        notes.append(Note("only_ignored", "no vessel beside the ignored pixels; is the value really an ignore value?"))
    share = float(_union(classes, ignored.shape).mean())
    if share > _MOST:
        notes.append(Note("mostly_labelled", f"{share:.0%} of the image is labelled; is the mask inverted?"))
    return notes


def _reading(raw: RawMask, meaning: Meaning) -> tuple[str, np.ndarray]:
    classes, _ = apply(raw.values, meaning, raw.name)
    return meaning.describe(), _union(classes, raw.values.shape)


def _union(classes: Sequence[tuple[str, np.ndarray]], shape: tuple[int, ...]) -> np.ndarray:
    return np.any([bitmap for _, bitmap in classes], axis=0) if classes else np.zeros(shape, bool)


def _shapes(mask: ReadMask, observer: str) -> list[Shape]:
    return [
        full_image_mask(index, label, bitmap, None if label == OBJECT else label, observer)
        for index, (label, bitmap) in enumerate(mask.classes)
    ]
