"""Spacing is the patient's where the header says so or gives the magnification, else the detector's, which is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.imaging.dicom_files import frames, write_dicom
from vesselseg.imaging.dicom import read_frame


@pytest.mark.parametrize(
    ("fields", "spacing", "codes"),
    [
        ({"PixelSpacing": [0.2, 0.3]}, (0.2, 0.3), []),
        ({"PixelSpacing": [0.2, 0.3], "ImagerPixelSpacing": [9, 9]}, (0.2, 0.3), []),
        ({"ImagerPixelSpacing": [0.4, 0.4]}, (0.4, 0.4), ["detector_spacing"]),
        ({"ImagerPixelSpacing": [0.4, 0.4], "EstimatedRadiographicMagnificationFactor": 1.6}, (0.25, 0.25), []),
        ({"PixelSpacing": [0.4, 0.4], "ImagerPixelSpacing": [0.4, 0.4]}, (0.4, 0.4), ["detector_spacing"]),
        (
            {"PixelSpacing": [0.4, 0.4], "ImagerPixelSpacing": [0.4, 0.4], "PixelSpacingCalibrationType": "FIDUCIAL"},
            (0.4, 0.4),
            [],
        ),
        (
            {"ImagerPixelSpacing": [0.4, 0.4], "DistanceSourceToDetector": 1200, "DistanceSourceToPatient": 750},
            (0.25, 0.25),
            ["magnified_spacing"],
        ),
        (
            {"ImagerPixelSpacing": [0.4, 0.4], "EstimatedRadiographicMagnificationFactor": 0.5},
            (0.4, 0.4),
            ["detector_spacing"],
        ),
        ({"PixelSpacing": [0, 0]}, None, []),
        ({}, None, []),
    ],
)
def test_spacing(tmp_path: Path, fields: dict[str, Any], spacing: Any, codes: list[str]) -> None:
    write_dicom(tmp_path / "a.dcm", frames(), **fields)
    frame = read_frame(tmp_path / "a.dcm")
    assert frame.spacing == (None if spacing is None else pytest.approx(spacing))
    assert [code for code, _ in frame.notes] == codes
    assert frame.plane == ("" if spacing is None else "detector" if "detector_spacing" in codes else "patient")
