"""Where a single-frame DICOM image belongs in its series, and which images of a series are one clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pydicom import Dataset

from vesselseg.imaging.decode import ImageError
from vesselseg.imaging.dicom import DicomFile
from vesselseg.imaging.dicom_elements import number, plain

# Degrees. A rotational run turns the C-arm by less from frame to frame, another exposure by more.
_SAME_POSITION = 5.0


class Angles(NamedTuple):
    """Of the C-arm, in degrees: PositionerPrimaryAngle, PositionerSecondaryAngle."""

    primary: float
    secondary: float


@dataclass(frozen=True)
class SeriesPosition:
    """Position of one image.

    series: SeriesInstanceUID. series_number: SeriesNumber. number: InstanceNumber, None if it is missing.
    size: (width, height). angles: None if unknown.
    """

    series: str
    series_number: int
    number: int | None
    size: tuple[int, int]
    angles: Angles | None = None


def read_series_position(path: Path) -> SeriesPosition | None:
    """The position of a single-frame image in its series; None for a clip, without a series, or if unreadable."""
    try:
        opened = DicomFile(path)
    except (ImageError, OSError):
        return None
    series = plain(opened.header, "SeriesInstanceUID")
    if opened.frames > 1 or not series:
        return None
    own = number(opened.header, "InstanceNumber")
    return SeriesPosition(
        series,
        int(number(opened.header, "SeriesNumber") or 0),
        None if own is None else int(own),
        opened.size,
        _angles(opened.header),
    )


def read_instance(path: Path) -> str | None:
    """SOPInstanceUID of a file; None if it has none or cannot be read."""
    try:
        return instance_of(DicomFile(path).header)
    except (ImageError, OSError):
        return None


def instance_of(header: Dataset) -> str | None:
    """SOPInstanceUID; None if it is missing."""
    return plain(header, "SOPInstanceUID") or None


def same_positions(angles: Sequence[Angles | None]) -> list[int]:
    """A number per image of a series: equal for those that one position, or one rotation, of the C-arm can be.

    Images without angles belong to the only position there is, else to one of their own.
    """
    known = sorted({position for position in angles if position is not None})
    labels: dict[Angles | None, int] = {}
    for position in known:
        near = [other for other in labels if other is not None and _near(position, other)]
        chosen = min((labels[other] for other in near), default=len(labels))
        for other, label in labels.items():
            if label in {labels[one] for one in near}:
                labels[other] = chosen
        labels[position] = chosen
    positions = set(labels.values())
    labels[None] = positions.pop() if len(positions) == 1 else -1
    return [labels[position] for position in angles]


def order_notes(numbers: Sequence[int | None]) -> tuple[str, ...]:
    """Remarks on the InstanceNumbers of a clip: missing, repeated, or with gaps. numbers: sorted, missing ones last."""
    known = [number for number in numbers if number is not None]
    missing = len(numbers) - len(known)
    repeated = sum(count for count in Counter(known).values() if count > 1)
    faults = [f"missing in {missing}"] * bool(missing) + [f"repeated in {repeated}"] * bool(repeated)
    if not faults:
        return _gap_notes(known)
    return (
        f"InstanceNumber is {' and '.join(faults)} of {len(numbers)} files; these are ordered by file name",
        *_gap_notes(known),
    )


def _gap_notes(numbers: Sequence[int]) -> tuple[str, ...]:
    """A note if sorted InstanceNumbers have gaps; a constant step other than 1 counts as complete."""
    steps = [later - earlier for earlier, later in pairwise(numbers) if later > earlier]
    if not steps or len(set(steps)) == 1:
        return ()
    missing = sum(step - 1 for step in steps)
    after = next(earlier for earlier, later in pairwise(numbers) if later - earlier > 1)
    span = f"{numbers[0]} to {numbers[-1]}"
    return (f"images may be missing: {missing} InstanceNumbers from {span} are absent, the first is {after + 1}",)


def _near(one: Angles, other: Angles) -> bool:
    return all(abs((a - b + 180) % 360 - 180) <= _SAME_POSITION for a, b in zip(one, other))


def _angles(header: Dataset) -> Angles | None:
    primary, secondary = (number(header, f"Positioner{which}Angle") for which in ("Primary", "Secondary"))
    return None if primary is None and secondary is None else Angles(primary or 0.0, secondary or 0.0)
