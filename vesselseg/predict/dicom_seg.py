"""Masks of a DICOM picture or clip -> a DICOM Segmentation object (PS3.3, A.51) that refers to it.

Slices with a position in the patient are highdicom's as they are. It takes no clip without positions, which projections
do not have: there it makes the object for one frame, and the other frames are added here: bits, what they are of, and
which frame of the source they belong to.
"""

from __future__ import annotations

import copy
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import ComputedRadiographyImageStorage

import vesselseg
from vesselseg.errors import UserError
from vesselseg.imaging.warning_filters import suppress_warnings

if TYPE_CHECKING:
    import highdicom

# The words of a phrase -> SNOMED CT; the first that fits.
_TYPES = (
    (r"lymph|淋巴", codes.SCT.LymphaticVessel),
    (r"aort|主动脉", codes.SCT.Aorta),
    (r"coronary|冠", codes.SCT.CoronaryArtery),
    (r"arter|动脉", codes.SCT.Artery),
    (r"vein|venous|静脉", codes.SCT.Vein),
    (r"vessel|vascul|血管", codes.SCT.BloodVessel),
)
_DEVICES = r"catheter|wire|stent|device|导管|导丝|支架"
_OWN_SCHEME = "99VESSELSEG"  # codes that begin with 99 are private (PS3.3, 8.2)
_FILLED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "SliceThickness"),
)
_POSITION = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Modality")
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# What ties a header to positions and frames that the object for one frame does not have.
_DROPPED = (
    *("NumberOfFrames", "FrameIncrementPointer", "FrameOfReferenceUID", "ImagePositionPatient", "PixelSpacing"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionIndexSequence"),
    *("ImageOrientationPatient", "SliceThickness"),
)


class SegmentationObject:
    """The masks of one unit, frame after frame. paths: the DICOM file, or those of a series, one per frame.

    model: fingerprint. Raises UserError where the header lacks what a reference needs.
    """

    def __init__(self, paths: Sequence[Path], phrases: Sequence[str], model: str) -> None:
        self._headers = [dcmread(path, stop_before_pixels=True, force=True) for path in paths]
        lacking = [name for name in _NEEDED if not all(header.get(name) for header in self._headers)]
        if lacking:
            raise UserError(f"dicom-seg refers to the input by its UIDs, and its header lacks {', '.join(lacking)}")
        self._phrases, self._model = tuple(phrases), model
        self._packed: list[np.ndarray] = []
        self._shape = (0, 0)

    def add(self, masks: np.ndarray) -> None:
        """masks: (phrases, height, width) bool, of the next frame."""
        self._shape = masks.shape[1:]
        self._packed += [np.packbits(mask, bitorder="little") for mask in masks.reshape(len(masks), -1)]

    def content(self) -> bytes:
        """The file. Raises UserError where highdicom refuses the header."""
        with suppress_warnings():  # they quote the header
            try:
                made = self._in_the_patient() if _positioned(self._headers, self._shape) else self._of_one_frame()
            except (AttributeError, TypeError, ValueError) as error:  # a header against the standard; it may be quoted
                raise UserError(f"highdicom makes no segmentation for its header ({type(error).__name__})") from None
            buffer = io.BytesIO()
            made.save_as(buffer)
        return buffer.getvalue()

    def _in_the_patient(self) -> highdicom.seg.Segmentation:
        """highdicom's object for slices; in its order, by segment and position."""
        masks = np.stack(self._unpacked()).reshape(len(self._headers), -1, *self._shape)
        pixels = np.moveaxis(masks, 1, -1)
        return _segmentation([_filled(header) for header in self._headers], pixels, self._phrases, self._model)

    def _of_one_frame(self) -> highdicom.seg.Segmentation:
        """highdicom's object for one empty frame of a picture like the source, filled with all frames."""
        source = _filled(self._headers[0])
        for name in _DROPPED:
            if name in source:
                delattr(source, name)
        source.SOPClassUID = ComputedRadiographyImageStorage  # one that has no frames; references name the real one
        empty = np.zeros((1, *self._shape, len(self._phrases)), np.uint8)
        made = _segmentation([source], empty, self._phrases, self._model)
        self._fill(made)
        return made

    def _fill(self, made: highdicom.seg.Segmentation) -> None:
        segments = list(made.PerFrameFunctionalGroupsSequence)
        frames = len(self._packed) // len(segments)
        made.NumberOfFrames = len(self._packed)
        made.PixelData = self._bits()
        if len(segments) > 1:
            made.SegmentsOverlap = "UNDEFINED"
        made.SourceImageSequence = [_reference(header) for header in self._headers]
        made.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [_reference(header) for header in self._headers]
        position = copy.deepcopy(made.DimensionIndexSequence[0])
        position.DimensionIndexPointer = 0x00209057  # InStackPositionNumber
        position.FunctionalGroupPointer = 0x00209111  # FrameContentSequence
        position.DimensionDescriptionLabel = "Frame of the source"
        made.DimensionIndexSequence.append(position)
        made.PerFrameFunctionalGroupsSequence = [
            self._groups(groups, segment, frame)
            for frame in range(frames)
            for segment, groups in enumerate(segments, 1)
        ]

    def _groups(self, of_one: Dataset, segment: int, frame: int) -> Dataset:
        groups = copy.deepcopy(of_one)
        content = groups.FrameContentSequence[0]
        content.StackID, content.InStackPositionNumber = "1", frame + 1
        content.DimensionIndexValues = [segment, frame + 1]
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        header = self._headers[frame if len(self._headers) > 1 else 0]
        source.update(_reference(header))
        if int(header.get("NumberOfFrames") or 1) > 1:
            source.ReferencedFrameNumber = frame + 1
        return groups

    def _bits(self) -> bytes:
        """Bits of all frames without gaps, the first pixel in the lowest bit (PS3.5, 8.1.1); of even length."""
        if self._shape[0] * self._shape[1] % 8:
            content = np.packbits(np.concatenate(self._unpacked()), bitorder="little").tobytes()
        else:
            content = b"".join(frame.tobytes() for frame in self._packed)
        return content + b"\0" * (len(content) % 2)

    def _unpacked(self) -> list[np.ndarray]:
        """Per frame and segment (pixels,) uint8, 0 and 1."""
        pixels = self._shape[0] * self._shape[1]
        return [np.unpackbits(frame, count=pixels, bitorder="little") for frame in self._packed]


def _positioned(headers: Sequence[Dataset], shape: tuple[int, ...]) -> bool:
    """Whether these are slices of one volume, each at a place of its own, and masks lie on their pixels."""
    if not all(header.get(name) for header in headers for name in _POSITION):
        return False
    places = {tuple(header.ImagePositionPatient) for header in headers}
    frames = {header.FrameOfReferenceUID for header in headers}
    alike = {(*header.ImageOrientationPatient, *header.PixelSpacing, header.Rows, header.Columns) for header in headers}
    single = all(int(header.get("NumberOfFrames") or 1) == 1 for header in headers)
    fits = (headers[0].Rows, headers[0].Columns) == tuple(shape)
    return single and fits and len(places) == len(headers) and len(frames) == len(alike) == 1


def _filled(header: Dataset) -> Dataset:
    """A copy with what the standard lets be empty and highdicom reads."""
    source = copy.deepcopy(header)
    for name in _FILLED:
        if name not in source:
            setattr(source, name, None)
    return source


def _segmentation(
    sources: Sequence[Dataset], pixels: np.ndarray, phrases: Sequence[str], model: str
) -> highdicom.seg.Segmentation:
    """highdicom's object. pixels: (sources, height, width, phrases) uint8, 0 and 1."""
    import highdicom

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=f"vesselseg {model}", version=vesselseg.__version__, family=codes.DCM.ArtificialIntelligence
    )
    return highdicom.seg.Segmentation(
        sources,
        pixels,
        highdicom.seg.SegmentationTypeValues.BINARY,
        [_describe(number, phrase, algorithm) for number, phrase in enumerate(phrases, 1)],
        series_instance_uid=highdicom.UID(),
        series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="vesselseg",
        manufacturer_model_name="vesselseg",
        software_versions=vesselseg.__version__,
        device_serial_number=model,
        content_label="VESSELS",
        series_description="vesselseg: " + ", ".join(phrases)[:50],
        omit_empty_frames=False,
    )


def _describe(number: int, phrase: str, algorithm: Any) -> highdicom.seg.SegmentDescription:
    import highdicom

    code = next((code for words, code in _TYPES if re.search(words, phrase, re.IGNORECASE)), None)
    device = code is None and re.search(_DEVICES, phrase, re.IGNORECASE)
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=phrase[:64],
        segmented_property_category=codes.SCT.PhysicalObject if device else codes.SCT.AnatomicalStructure,
        segmented_property_type=code or highdicom.sr.CodedConcept(_own_code(phrase), _OWN_SCHEME, phrase[:64]),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
    )


def _own_code(phrase: str) -> str:
    """16 characters, all that DICOM takes; in one scheme a code must mean the same in every file (PS3.3, 8.1)."""
    return hashlib.sha256(phrase.encode()).hexdigest()[:16].upper()


def _reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item
