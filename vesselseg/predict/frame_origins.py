"""Which file and DICOM instance an image or a frame of a clip comes from, as told in predictions.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from vesselseg.imaging.dicom_series import instance_of, read_instance
from vesselseg.imaging.frames import DicomFrames, FrameSource
from vesselseg.imaging.source_files import printable
from vesselseg.predict.inputs import InputUnit

Origin = dict[str, Any]


def frame_origins(unit: InputUnit, pictures: FrameSource) -> Callable[[int], Origin]:
    """The origin of a frame of a unit, which is counted from 0.

    `source`: the file, relative to the input. `source_frame`: in that file, counted from 1 as in DICOM. `instance`:
    SOPInstanceUID, only of DICOM files that have one.
    """
    if unit.parts:
        folder = PurePosixPath(unit.file).parent
        return lambda frame: _origin(
            (folder / printable(unit.parts[frame].name)).as_posix(), 1, read_instance(unit.parts[frame])
        )
    instance = instance_of(pictures.file.header) if isinstance(pictures, DicomFrames) else None
    return lambda frame: _origin(unit.file, frame + 1, instance)


def _origin(source: str, frame: int, instance: str | None) -> Origin:
    named = {} if instance is None else {"instance": instance}
    return {"source": source, "source_frame": frame, **named}
