"""DICOM: how many frames a file has, and one frame as the 8-bit picture that its header asks for.

Nothing of the header leaves this file but the pixel spacing and the patient, which preparing only uses hashed. Messages
hold words of this file and numbers, never what an element of the header says.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_windowing
from pydicom.uid import ImplicitVRLittleEndian, SegmentationStorage

from vesselseg.imaging.decode import ImageError, scale_to_uint8
from vesselseg.imaging.warning_filters import suppress_warnings

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it logs what it warns of, which quotes the header

_WINDOW = ("WindowCenter", "WindowWidth", "VOILUTFunction")
_VALUES = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence")
_DEFERRED = 1 << 16  # bytes; larger elements stay on disk until they are asked for
_LAYOUT = ("PhotometricInterpretation", "PixelRepresentation", "BitsStored")


@dataclass(frozen=True)
class DicomFrame:
    """pixels: mode L or RGB; notes: (code, message) of what was done; spacing: (row, column) mm per pixel, or None.

    patient: what tells patients apart (issuer and PatientID, else name and date of birth, else the study), or "".
    """

    pixels: Image.Image
    notes: tuple[tuple[str, str], ...]
    spacing: tuple[float, float] | None
    patient: str


def count_frames(path: Path) -> int:
    """Frames of a DICOM file; 1 where it cannot be read (reading a frame then says why)."""
    try:
        with suppress_warnings():
            header = dcmread(path, force=True, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
            return max(1, int(header.get("NumberOfFrames") or 1))
    except Exception:  # whatever a damaged header leads pydicom to
        return 1


def read_patient(path: Path) -> str:
    """What tells the patient of a file from others, see ``DicomFrame``; "" where it cannot be read."""
    try:
        with suppress_warnings():
            return _patient(dcmread(path, force=True, stop_before_pixels=True))
    except Exception:  # whatever a damaged header leads pydicom to
        return ""


@dataclass(frozen=True)
class SeriesPosition:
    """What tells which pictures make a run: the series, its number, the picture's own number, and its size."""

    series: str
    series_number: int
    number: int
    size: tuple[int, int]


def read_series_position(path: Path) -> SeriesPosition | None:
    """The place of a single picture in its series; None for a clip, without a series, and where it cannot be read."""
    tags = ["SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "NumberOfFrames", "Rows", "Columns", "SOPClassUID"]
    try:
        with suppress_warnings():
            header = dcmread(path, force=True, stop_before_pixels=True, specific_tags=tags)
            single = int(header.get("NumberOfFrames") or 1) == 1 and header.get("SOPClassUID") != SegmentationStorage
            if not single or not header.get("SeriesInstanceUID"):
                return None
            series, number = (int(header.get(name) or 0) for name in ("SeriesNumber", "InstanceNumber"))
            size = int(header.Columns), int(header.Rows)
            return SeriesPosition(str(header.SeriesInstanceUID), series, number, size)
    except Exception:  # whatever a damaged header leads pydicom to
        return None


def read_frame(path: Path, frame: int | None = None) -> DicomFrame:
    """One frame, counted from 0; None: the only one. See ``DicomFile.frame``; raises ImageError (which_frame) too."""
    opened = DicomFile(path)
    return opened.frame(opened.choose(frame))


class DicomFile:
    """A DICOM picture or clip, frame by frame. source: its path, then pixels stay on disk, or its bytes.

    header: all but large elements, which are read where they are asked for. frames: 1 for a single picture.
    Raises ImageError (bad_dicom).
    """

    def __init__(self, source: Path | bytes) -> None:
        self._source = source
        with _readable():
            opened = io.BytesIO(source) if isinstance(source, bytes) else source
            self.header = dcmread(opened, force=True, defer_size=None if isinstance(source, bytes) else _DEFERRED)
            if "PixelData" not in self.header:
                found = "no DICOM file" if "SOPClassUID" not in self.header else "a DICOM file without PixelData"
                raise ImageError("bad_dicom", f"{found}: expected a picture")
            if self.header.get("SOPClassUID") == SegmentationStorage:
                raise ImageError("bad_dicom", "a DICOM segmentation: expected the picture that it belongs to")
            self.frames = max(1, int(self.header.get("NumberOfFrames") or 1))
            self.size = int(self.header.Columns), int(self.header.Rows)

    def choose(self, frame: int | None) -> int:
        """The frame that is meant, checked; raises ImageError (which_frame)."""
        if frame is None and self.frames > 1:
            raise ImageError(
                "which_frame", f"a clip of {self.frames} frames, and the label's name does not end in a frame's number"
            )
        if frame is not None and not 0 <= frame < self.frames:
            raise ImageError("which_frame", f"frame {frame + 1} of {self.frames} is labelled")
        return frame or 0

    def frame(self, number: int) -> DicomFrame:
        """One frame, counted from 0. Raises ImageError (bad_dicom, no_decoder).

        The picture is what a viewer shows first: modality LUT, then VOI LUT or window of the header. Without one, 8-bit
        pixels stay as they are, and deeper ones are scaled from the frame's own range. MONOCHROME1 is inverted.
        """
        with _readable():
            return _decode(self.header, number, self._pixels(number))

    def times(self) -> tuple[float, ...] | None:
        """Seconds from the start of a clip, per frame (PS3.3, C.7.6.5); None where nothing tells."""
        with _readable():
            steps = self.header.get("FrameTimeVector")
            if steps is not None and not np.isscalar(steps) and len(steps) == self.frames:
                return tuple(float(time) / 1000 for time in np.cumsum([float(step) for step in steps]))
            rate = float(self.header.get("RecommendedDisplayFrameRate") or self.header.get("CineRate") or 0)
            step = float(self.header.get("FrameTime") or 0) / 1000 or (1 / rate if rate > 0 else 0)
            return tuple(number * step for number in range(self.frames)) if step > 0 else None

    def _pixels(self, number: int) -> np.ndarray:
        has_syntax = "TransferSyntaxUID" in self.header.get("file_meta", {})
        _check_decoder(self.header)
        if isinstance(self._source, Path) and has_syntax:  # reads this frame only
            return pixel_array(self._source, index=number)
        return pixel_array(self.header, index=number)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        with suppress_warnings():  # pydicom's quote the header
            yield
    except ImageError:
        raise
    except Exception as error:  # whatever a damaged file leads pydicom and its decoders to
        raise ImageError("bad_dicom", f"damaged, cut off or against the standard ({type(error).__name__})") from None


def _decode(header: Dataset, frame: int, values: np.ndarray) -> DicomFrame:
    view = _frame_view(header, frame)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, header)
    if values.ndim == 3:
        notes: list[tuple[str, str]] = []
        deepest = (
            8 * values.dtype.itemsize if header.PhotometricInterpretation == "PALETTE COLOR" else header.BitsStored
        )
        pixels = Image.fromarray(scale_to_uint8(values, 0, 2**deepest - 1))
    else:
        grey, notes = _grey(values, view)
        pixels = Image.fromarray(grey)
    spacing, spacing_notes = _spacing(header, frame)
    return DicomFrame(pixels, tuple(notes + spacing_notes), spacing, _patient(header))


def _check_decoder(header: Dataset) -> None:
    syntax = header.file_meta.TransferSyntaxUID if "TransferSyntaxUID" in header.get("file_meta", {}) else None
    if syntax is None:  # written before PS3.10: nothing but this default is allowed
        header.ensure_file_meta()
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    elif syntax.is_compressed and not syntax.is_deflated and not _can_decode(syntax):
        raise ImageError(
            "no_decoder",
            f'compressed as {syntax.name}, which nothing installed decodes: pip install "vesselseg[dicom]"',
        )


def _can_decode(syntax: Any) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        message = f"compressed as {syntax.name}, which pydicom does not decode; convert it to an uncompressed file"
        raise ImageError("no_decoder", message) from None


def _frame_view(header: Dataset, frame: int) -> Dataset:
    """The elements that decide how a frame is shown; enhanced files keep them in functional groups."""
    view = Dataset()
    for keyword in (*_LAYOUT, *_VALUES, *_WINDOW):
        value = _find(header, frame, keyword)
        if value is not None:
            setattr(view, keyword, value)
    if isinstance(header.get("file_meta"), Dataset):
        view.file_meta = header.file_meta  # type: ignore[assignment]
    return view


def _find(header: Dataset, frame: int, keyword: str) -> Any:
    """An element of the file, or of the functional groups of the frame or of all frames; None where it is empty."""
    groups = [
        (header.get("PerFrameFunctionalGroupsSequence"), frame),
        (header.get("SharedFunctionalGroupsSequence"), 0),
    ]
    places = [header]
    for sequence, position in groups:
        if sequence and position < len(sequence):
            places += [
                item[0] for item in (element.value for element in sequence[position] if element.VR == "SQ") if item
            ]
    values = (place.get(keyword) for place in places)
    return next((value for value in values if value not in (None, "")), None)


def _grey(values: np.ndarray, view: Dataset) -> tuple[np.ndarray, list[tuple[str, str]]]:
    raw = values
    values = apply_modality_lut(values, view)
    low, high = float(values.min()), float(values.max())
    if "VOILUTSequence" in view:
        values, (low, high) = _look_up(values, view.VOILUTSequence[0])
        note = "VOI LUT of the header"
    elif "WindowCenter" in view and "WindowWidth" in view:
        values, (low, high) = _window(values, view)
        note = f"window of the header: centre {_first(view.WindowCenter):g}, width {_first(view.WindowWidth):g}"
    elif view.BitsStored <= 8 and values is raw and view.PixelRepresentation == 0:
        low, high, note = 0, 2**view.BitsStored - 1, f"{view.BitsStored} bits"
    else:
        note = f"no window in the header: values {low:g} to {high:g} are scaled to 0 to 255"
    shown = scale_to_uint8(values, low, high)
    if view.PhotometricInterpretation == "MONOCHROME1":
        shown, note = 255 - shown, f"{note}; inverted (MONOCHROME1)"
    changed = raw.dtype != np.uint8 or not np.array_equal(raw, shown)
    return shown, [("windowed", note)] if changed else []


def _window(values: np.ndarray, view: Dataset) -> tuple[np.ndarray, tuple[float, float]]:
    """Values after windowing (PS3.3, C.11.2.1.2), and the range that it maps to."""
    ends = np.array([-1e12, 1e12])  # beyond any window: they come out as the ends of the range
    with np.errstate(over="ignore"):
        shown = apply_windowing(np.concatenate([values.astype(np.float64).ravel(), ends]), view)
    return shown[:-2].reshape(values.shape), (float(shown[-2]), float(shown[-1]))


def _look_up(values: np.ndarray, table: Dataset) -> tuple[np.ndarray, tuple[float, float]]:
    """Values through a VOI LUT (PS3.3, C.11.2.1.1). pydicom's own wraps around for 8-bit tables of over 256 entries."""
    entries, first, bits = (int(number) for number in table.LUTDescriptor)
    entries = entries or 2**16
    data = table.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * entries else "<u2")
    data = np.asarray(data)[:entries]
    return data[np.clip(values.astype(np.int64) - first, 0, len(data) - 1)], (0, 2**bits - 1)


def _first(value: Any) -> float:
    return float(value if np.isscalar(value) or not hasattr(value, "__len__") else value[0])


def _spacing(header: Dataset, frame: int) -> tuple[tuple[float, float] | None, list[tuple[str, str]]]:
    """(row, column) mm. ImagerPixelSpacing is that of the detector; divided by the magnification it is the patient's.

    PS3.3, C.8.7.5 (Estimated Radiographic Magnification Factor) and 10.7.1.3 (pixel spacing).
    """
    own = _two_lengths(_find(header, frame, "PixelSpacing"))
    if own is not None:
        return own, []
    detector = _two_lengths(_find(header, frame, "ImagerPixelSpacing"))
    if detector is None:
        return None, []
    magnification = _first(_find(header, frame, "EstimatedRadiographicMagnificationFactor") or 0)
    if magnification >= 1:
        return (detector[0] / magnification, detector[1] / magnification), []
    return detector, [("detector_spacing", "the spacing is that of the detector: lengths in mm come out too long")]


def _two_lengths(value: Any) -> tuple[float, float] | None:
    try:
        row, column = (float(number) for number in value)
    except (TypeError, ValueError):
        return None
    return (row, column) if 0 < row < np.inf and 0 < column < np.inf else None


def _patient(header: Dataset) -> str:
    fields = [["IssuerOfPatientID", "PatientID"], ["PatientName", "PatientBirthDate"], ["StudyInstanceUID"]]
    for names in fields:
        values = [str(header.get(name) or "").strip() for name in names]
        if values[-1] or (len(names) == 2 and names[0] == "PatientName" and values[0]):
            return "\n".join([names[-1], *values])
    return ""
