"""Pixel spacing of a DICOM frame, and whether it is measured at the detector or in the patient.

PS3.3: 10.7.1.3 (pixel spacing and its calibration), C.8.7.5 (Estimated Radiographic Magnification Factor).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydicom import Dataset

from vesselseg.imaging.dicom_elements import numbers, places
from vesselseg.imaging.notes import Note

Plane = Literal["patient", "detector", ""]
_LARGEST_MAGNIFICATION = 10.0  # beyond any angiographic geometry
_AT_DETECTOR = "the spacing is measured at the detector: lengths in mm are too long"


@dataclass(frozen=True)
class Spacing:
    """lengths: (row, column) in mm per pixel, None if unknown. plane: where they are measured, "" if unknown."""

    lengths: tuple[float, float] | None
    plane: Plane
    notes: tuple[Note, ...] = ()


def read_spacing(header: Dataset, frame: int) -> Spacing:
    """Pixel Spacing if it is calibrated, else Imager Pixel Spacing divided by the magnification, else the detector's.

    A Pixel Spacing equal to the detector's, without a calibration type, is the detector's.
    """
    where = places(header, frame)
    own, detector = _lengths(where, "PixelSpacing"), _lengths(where, "ImagerPixelSpacing")
    if own is not None and (own != detector or any("PixelSpacingCalibrationType" in place for place in where)):
        return Spacing(own, "patient")
    if detector is None:
        return Spacing(None, "")
    magnification, note = _magnification(where)
    if magnification is None:
        return Spacing(detector, "detector", (Note("detector_spacing", _AT_DETECTOR + note),))
    return Spacing((detector[0] / magnification, detector[1] / magnification), "patient", _notes(note))


def _magnification(where: list[Dataset]) -> tuple[float | None, str]:
    """The header's own factor, else the ratio of its distances; and a remark."""
    factor = _first(where, "EstimatedRadiographicMagnificationFactor")
    if factor is not None and 1 <= factor <= _LARGEST_MAGNIFICATION:
        return factor, ""
    skipped = "" if factor is None else f"; the header's magnification of {factor:g} is skipped"
    to_detector, to_patient = (_first(where, f"DistanceSourceTo{end}") for end in ("Detector", "Patient"))
    if to_detector and to_patient and 1 <= to_detector / to_patient <= _LARGEST_MAGNIFICATION:
        ratio = to_detector / to_patient
        return ratio, f"the spacing is that of the detector divided by {ratio:.4g}, from the distances{skipped}"
    return None, skipped


def _notes(note: str) -> tuple[Note, ...]:
    return (Note("magnified_spacing", note),) if note else ()


def _first(where: list[Dataset], keyword: str) -> float | None:
    found = (value for place in where for value in numbers(place, keyword)[:1])
    return next((value for value in found if math.isfinite(value)), None)


def _lengths(where: list[Dataset], keyword: str) -> tuple[float, float] | None:
    for place in where:
        values = numbers(place, keyword)
        if len(values) == 2 and all(0 < value < math.inf for value in values):
            return values[0], values[1]
    return None
