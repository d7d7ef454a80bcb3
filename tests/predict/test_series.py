"""Which single-frame DICOM files are one clip, what is noted about them, and which file each frame comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.imaging.dicom_files import frames, write_dicom
from tests.imaging.drawn_cases import case_folder
from vesselseg.imaging.dicom_series import Angles, order_notes, read_instance, read_series_position, same_positions
from vesselseg.imaging.frames import open_frames
from vesselseg.predict.frame_origins import frame_origins
from vesselseg.predict.inputs import InputUnit, find_inputs, read_unit

APART = "its series has exposures at {} positions of the C-arm: each is kept apart"


def write_series(folder: Path, *files: dict[str, Any]) -> list[InputUnit]:
    """Files a.dcm, b.dcm, ... of one series. fields: of each, with angles as (primary, secondary)."""
    for index, fields in enumerate(files):
        angles = fields.pop("angles", None)
        if angles is not None:
            fields |= {"PositionerPrimaryAngle": angles[0], "PositionerSecondaryAngle": angles[1]}
        own = {"SeriesInstanceUID": "1.2.3", "SeriesNumber": 7, "SOPInstanceUID": f"1.2.3.{index}"}
        write_dicom(folder / f"{chr(97 + index)}.dcm", frames(seed=index), **own, **fields)
    return find_inputs(folder)


def names(unit: InputUnit) -> list[str]:
    return [path.name for path in unit.paths]


def test_exposures_at_different_positions_are_kept_apart(tmp_path: Path) -> None:
    units = write_series(
        tmp_path, *({"angles": (angle, 0), "InstanceNumber": n} for n, angle in enumerate((-30, 0, 45)))
    )
    assert [names(unit) for unit in units] == [["a.dcm"], ["b.dcm"], ["c.dcm"]]
    assert {unit.notes for unit in units} == {(APART.format(3),)}


def test_two_planes_are_two_clips(tmp_path: Path) -> None:
    planes = [{"angles": (90 * (n % 2), 0), "InstanceNumber": 1 + n // 2} for n in range(6)]
    units = write_series(tmp_path, *planes)
    assert [names(unit) for unit in units] == [["a.dcm", "c.dcm", "e.dcm"], ["b.dcm", "d.dcm", "f.dcm"]]
    assert [unit.file for unit in units] == ["series_7", "series_7_2"]
    assert {unit.notes for unit in units} == {(APART.format(2),)}


def test_a_rotation_is_one_clip(tmp_path: Path) -> None:
    (unit,) = write_series(tmp_path, *({"angles": (4 * n - 20, 0), "InstanceNumber": 9 - n} for n in range(9)))
    assert names(unit) == [f"{letter}.dcm" for letter in "ihgfedcba"] and unit.notes == ()


@pytest.mark.parametrize(
    ("angles", "groups"),
    [
        ([(179, 0), (-179, 0)], 1),  # two degrees, across the end of the scale
        ([(0, 0), (0, 30)], 2),
        ([None, None], 1),
        ([None, (10, 10), None], 1),
        ([None, (10, 10), (40, 10)], 3),
        ([(0, 0), (10, 0), (5, 0)], 1),  # linked by the third
        ([], 0),
    ],
)
def test_positions(angles: list[Any], groups: int) -> None:
    assert len(set(same_positions([None if pair is None else Angles(*pair) for pair in angles]))) == groups


@pytest.mark.parametrize(
    ("numbers", "order", "note"),
    [
        ((2, 1, None), "bac", "InstanceNumber is missing in 1 of 3 files; these are ordered by file name"),
        ((1, 1, 1), "abc", "InstanceNumber is repeated in 3 of 3 files; these are ordered by file name"),
        ((3, 3, 1, None), "cabd", "InstanceNumber is missing in 1 and repeated in 2 of 4 files"),
        ((3, 2, 1), "cba", ""),
    ],
)
def test_missing_and_repeated_numbers_are_noted(tmp_path: Path, numbers: Any, order: str, note: str) -> None:
    (unit,) = write_series(tmp_path, *({} if n is None else {"InstanceNumber": n} for n in numbers))
    assert names(unit) == [f"{letter}.dcm" for letter in order]
    assert unit.notes == () if not note else note in unit.notes[0]


def test_gaps_are_noted_beside_missing_numbers() -> None:
    assert len(order_notes([1, 2, 5, 6, None])) == 2


def test_a_clip_without_a_number_of_frames_is_no_image_of_a_series(tmp_path: Path) -> None:
    for name in ("a", "b"):
        header = write_dicom(tmp_path / f"{name}.dcm", frames(3), SeriesInstanceUID="1.2.3")
        del header.NumberOfFrames
        header.save_as(tmp_path / f"{name}.dcm")
    assert [names(unit) for unit in find_inputs(tmp_path)] == [["a.dcm"], ["b.dcm"]]


def test_frames_name_their_file_and_instance(tmp_path: Path) -> None:
    (unit,) = write_series(tmp_path / "x" / "run", *({"InstanceNumber": 3 - n} for n in range(3)))
    unit = find_inputs(tmp_path / "x")[0]
    read = read_unit(unit, lambda *_: False)
    assert read is not None and read.pictures is not None
    origin = frame_origins(unit, read.pictures)
    assert [origin(frame) for frame in range(3)] == [
        {"source": f"run/{letter}.dcm", "source_frame": 1, "instance": f"1.2.3.{ord(letter) - 97}"} for letter in "cba"
    ]


def test_frames_of_one_file_name_their_number(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", frames(3))
    origin = frame_origins(InputUnit(tmp_path / "a.dcm", "s/a.dcm"), open_frames("a.dcm", tmp_path / "a.dcm"))
    assert origin(2) == {"source": "s/a.dcm", "source_frame": 3, "instance": "1.2.3.4"}
    write_dicom(tmp_path / "a.dcm", frames(), SOPInstanceUID="")
    origin = frame_origins(InputUnit(tmp_path / "a.dcm", "a.dcm"), open_frames("a.dcm", tmp_path / "a.dcm"))
    assert origin(0) == {"source": "a.dcm", "source_frame": 1}


def test_a_damaged_uid_is_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(path, frames(), SeriesInstanceUID="1.2.3")
    for tag in (b"\x08\x00\x18\x00UI", b"\x20\x00\x0e\x00UI"):
        path.write_bytes(path.read_bytes().replace(tag, tag[:4] + b"\xff\xfe"))
    assert read_instance(path) is None and read_series_position(path) is None


def test_the_case_of_single_shots() -> None:
    units = find_inputs(case_folder("dicom_single_shots_one_series") / "source")
    assert [names(unit) for unit in units] == [["shot0.dcm"], ["shot1.dcm"], ["shot2.dcm"]]
    assert {unit.notes for unit in units} == {(APART.format(3),)}
