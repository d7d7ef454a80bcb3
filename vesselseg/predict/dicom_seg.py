"""Masks of a DICOM image or clip -> a DICOM Segmentation object (PS3.3, A.51) that refers to it.

highdicom writes slices with a position in the patient directly. It does not accept clips without positions, such as
projections: for those it creates the object of one frame, and this module adds the other frames: their bits, their
segment, and the source frame that they refer to.
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

# Words of a phrase -> SNOMED CT code; the first match counts.
_TYPES = (
    (r"lymph|淋巴", codes.SCT.LymphaticVessel),
    (r"aort|主动脉", codes.SCT.Aorta),
    (r"coronary|冠", codes.SCT.CoronaryArtery),
    (r"arter|动脉", codes.SCT.Artery),
    (r"vein|venous|静脉", codes.SCT.Vein),
    (r"vessel|vascul|血管", codes.SCT.BloodVessel),
)
_DEVICES = r"catheter|wire|stent|device|导管|导丝|支架"
_PRIVATE_SCHEME = "99VESSELSEG"  # designators that begin with 99 are private (PS3.3, 8.2)
# Attributes that highdicom reads and that the standard allows to be empty.
_OPTIONAL = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "SliceThickness"),
)
_POSITION = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Modality")
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# Attributes about positions and frames, which do not apply to an object of one frame.
_DROPPED = (
    *("NumberOfFrames", "FrameIncrementPointer", "FrameOfReferenceUID", "ImagePositionPatient", "PixelSpacing"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionIndexSequence"),
    *("ImageOrientationPatient", "SliceThickness"),
)


class SegmentationObject:
    """Collects the masks of one unit, frame by frame. paths: the DICOM file, or those of a series, one per frame.

    model: fingerprint. Raises UserError if the header lacks the UIDs that a reference needs.
    """

    def __init__(self, paths: Sequence[Path], phrases: Sequence[str], model: str) -> None:
        self._headers = [dcmread(path, stop_before_pixels=True, force=True) for path in paths]
        lacking = [name for name in _NEEDED if not all(header.get(name) for header in self._headers)]
        if lacking:
            raise UserError(f"dicom-seg refers to the input by UIDs, and the header lacks {', '.join(lacking)}")
        self._phrases, self._model = tuple(phrases), model
        self._packed: list[np.ndarray] = []
        self._shape = (0, 0)

    def add(self, masks: np.ndarray) -> None:
        """Add the next frame's masks, (phrases, height, width) bool."""
        self._shape = masks.shape[1:]
        self._packed += [np.packbits(mask, bitorder="little") for mask in masks.reshape(len(masks), -1)]

    def content(self) -> bytes:
        """The bytes of the DICOM file. Raises UserError if highdicom rejects the header."""
        with suppress_warnings():  # warnings may quote patient data of the header
            try:
                positioned = _has_positions(self._headers, self._shape)
                segmentation = self._positioned() if positioned else self._without_positions()
            # The header violates the standard. The message is not shown, since it may quote patient data.
            except (AttributeError, TypeError, ValueError) as error:
                raise UserError(f"highdicom rejects the header ({type(error).__name__})") from None
            buffer = io.BytesIO()
            segmentation.save_as(buffer)
        return buffer.getvalue()

    def _positioned(self) -> highdicom.seg.Segmentation:
        """highdicom's object for slices, in its own order: by segment and position."""
        masks = np.stack(self._unpacked()).reshape(len(self._headers), -1, *self._shape)  # (slices, phrases, h, w)
        pixels = np.moveaxis(masks, 1, -1)  # (slices, h, w, phrases)
        sources = [_with_optional_attributes(header) for header in self._headers]
        return _segmentation(sources, pixels, self._phrases, self._model)

    def _without_positions(self) -> highdicom.seg.Segmentation:
        """highdicom's object for one empty frame, then filled with all frames."""
        source = _with_optional_attributes(self._headers[0])
        for name in _DROPPED:
            if name in source:
                delattr(source, name)
        source.SOPClassUID = ComputedRadiographyImageStorage  # a single-frame class; references name the real one
        empty = np.zeros((1, *self._shape, len(self._phrases)), np.uint8)
        segmentation = _segmentation([source], empty, self._phrases, self._model)
        self._add_frames(segmentation)
        return segmentation

    def _add_frames(self, segmentation: highdicom.seg.Segmentation) -> None:
        segments = list(segmentation.PerFrameFunctionalGroupsSequence)
        frames = len(self._packed) // len(segments)
        segmentation.NumberOfFrames = len(self._packed)
        segmentation.PixelData = self._bits()
        if len(segments) > 1:
            segmentation.SegmentsOverlap = "UNDEFINED"
        references = [_reference(header) for header in self._headers]
        segmentation.SourceImageSequence = references
        segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence = copy.deepcopy(references)
        position = copy.deepcopy(segmentation.DimensionIndexSequence[0])
        position.DimensionIndexPointer = 0x00209057  # InStackPositionNumber
        position.FunctionalGroupPointer = 0x00209111  # FrameContentSequence
        position.DimensionDescriptionLabel = "Frame of the source"
        segmentation.DimensionIndexSequence.append(position)
        segmentation.PerFrameFunctionalGroupsSequence = [
            self._frame_groups(groups, segment, frame)
            for frame in range(frames)
            for segment, groups in enumerate(segments, 1)
        ]

    def _frame_groups(self, template: Dataset, segment: int, frame: int) -> Dataset:
        """Functional groups of one frame and segment. segment: from 1, frame: from 0."""
        groups = copy.deepcopy(template)
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
        """Bits of all frames without padding in between, first pixel in the lowest bit (PS3.5, 8.1.1); even length."""
        if self._shape[0] * self._shape[1] % 8:
            content = np.packbits(np.concatenate(self._unpacked()), bitorder="little").tobytes()
        else:
            content = b"".join(frame.tobytes() for frame in self._packed)
        return content + b"\0" * (len(content) % 2)

    def _unpacked(self) -> list[np.ndarray]:
        """Per frame and segment (pixels,) uint8, 0 or 1."""
        pixels = self._shape[0] * self._shape[1]
        return [np.unpackbits(frame, count=pixels, bitorder="little") for frame in self._packed]


def _has_positions(headers: Sequence[Dataset], shape: tuple[int, ...]) -> bool:
    """Whether these are slices of one volume at distinct positions, with as many pixels as the masks."""
    if not all(header.get(name) for header in headers for name in _POSITION):
        return False
    positions = {tuple(header.ImagePositionPatient) for header in headers}
    references = {header.FrameOfReferenceUID for header in headers}
    grids = {(*header.ImageOrientationPatient, *header.PixelSpacing, header.Rows, header.Columns) for header in headers}
    single = all(int(header.get("NumberOfFrames") or 1) == 1 for header in headers)
    fits = (headers[0].Rows, headers[0].Columns) == tuple(shape)
    return single and fits and len(positions) == len(headers) and len(references) == len(grids) == 1


def _with_optional_attributes(header: Dataset) -> Dataset:
    """A copy in which every attribute of _OPTIONAL exists."""
    source = copy.deepcopy(header)
    for name in _OPTIONAL:
        if name not in source:
            setattr(source, name, None)
    return source


def _segmentation(
    sources: Sequence[Dataset], pixels: np.ndarray, phrases: Sequence[str], model: str
) -> highdicom.seg.Segmentation:
    """highdicom's object. pixels: (sources, height, width, phrases) uint8, 0 or 1."""
    import highdicom

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=f"vesselseg {model}", version=vesselseg.__version__, family=codes.DCM.ArtificialIntelligence
    )
    return highdicom.seg.Segmentation(
        sources,
        pixels,
        highdicom.seg.SegmentationTypeValues.BINARY,
        [_segment_description(number, phrase, algorithm) for number, phrase in enumerate(phrases, 1)],
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


def _segment_description(number: int, phrase: str, algorithm: Any) -> highdicom.seg.SegmentDescription:
    import highdicom

    code = next((code for words, code in _TYPES if re.search(words, phrase, re.IGNORECASE)), None)
    device = code is None and re.search(_DEVICES, phrase, re.IGNORECASE)
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=phrase[:64],
        segmented_property_category=codes.SCT.PhysicalObject if device else codes.SCT.AnatomicalStructure,
        segmented_property_type=code or highdicom.sr.CodedConcept(_private_code(phrase), _PRIVATE_SCHEME, phrase[:64]),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
    )


def _private_code(phrase: str) -> str:
    """16 characters, DICOM's maximum; a hash of the phrase, as a code must mean the same in all files (PS3.3, 8.1)."""
    return hashlib.sha256(phrase.encode()).hexdigest()[:16].upper()


def _reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item
