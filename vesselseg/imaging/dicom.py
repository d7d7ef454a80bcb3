"""DICOM files: number of frames, and single frames as 8-bit images, windowed as the header specifies.

Of the header, only the pixel spacing and the patient leave this module; preparation uses the patient only hashed.
Messages contain fixed words and numbers, never the text of a header element.
"""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_windowing
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, SegmentationStorage

from vesselseg.imaging.codec_process import CompressedFile
from vesselseg.imaging.decode import ImageError, scale_to_uint8
from vesselseg.imaging.notes import Note
from vesselseg.imaging.warning_filters import suppress_warnings

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote the header

_WINDOW = ("WindowCenter", "WindowWidth", "VOILUTFunction")
_VALUES = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence")
_DEFERRED = 1 << 16  # bytes; larger elements are read from disk on first access
_META = 4096  # bytes; the transfer syntax stands at a file's beginning
_PIECE = 1 << 20
LARGEST_INFLATED = 1 << 29  # bytes; no angiogram is stored deflated and larger
LARGEST_FRAME = 2 * int(Image.MAX_IMAGE_PIXELS or 0)  # pixels, as for other images
_LAYOUT = ("PhotometricInterpretation", "PixelRepresentation", "BitsStored")


@dataclass(frozen=True)
class DicomFrame:
    """One decoded frame.

    pixels: mode L or RGB. notes: conversions that were applied. spacing: (row, column) in mm per pixel, or None.
    patient: identifies the patient: issuer and PatientID, else name and date of birth, else the study; "" if unknown.
    """

    pixels: Image.Image
    notes: tuple[Note, ...]
    spacing: tuple[float, float] | None
    patient: str


def _read(source: Path | bytes, **arguments: Any) -> Dataset:
    """pydicom's header of a file; raises ImageError (bad_dicom) for a deflated one that grows beyond a limit."""
    if _is_deflated(source):
        arguments.pop("defer_size", None)  # pydicom would look for the element in the deflated file
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    return dcmread(opened, force=True, **arguments)


def _is_deflated(source: Path | bytes) -> bool:
    """pydicom inflates a deflated file as a whole, 1 MB to 1 GB at worst: counts first, in pieces."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as opened:
        if DeflatedExplicitVRLittleEndian.encode() not in opened.read(_META):
            return False
        opened.seek(0)
        read_preamble(opened, force=True)
        if _read_file_meta_info(opened).get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return False
        inflater, total, piece = zlib.decompressobj(-zlib.MAX_WBITS), 0, opened.read(_PIECE)
        while piece:
            total += len(inflater.decompress(piece, _PIECE))
            if total > LARGEST_INFLATED:
                raise ImageError("bad_dicom", f"inflates to more than {LARGEST_INFLATED >> 20} MiB")
            piece = inflater.unconsumed_tail or opened.read(_PIECE)
    return True


def _check_bounds(frames: int, size: tuple[int, int], stored: int) -> None:
    """Raise ImageError for what no file of `stored` bytes can hold, before memory is taken for it."""
    if min(size) < 1:
        raise ImageError("bad_dicom", f"{size[0]}x{size[1]} pixels: expected at least one")
    if size[0] * size[1] > LARGEST_FRAME:
        raise ImageError("bad_dicom", f"too large: more than {LARGEST_FRAME // 10**6} million pixels")
    if frames > stored:
        raise ImageError("bad_dicom", f"promises {frames} frames in {stored} bytes")


def count_frames(path: Path) -> int:
    """Number of frames of a DICOM file; 1 if it cannot be read (reading a frame then reports why)."""
    try:
        with suppress_warnings():
            header = _read(path, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
            return max(1, int(header.get("NumberOfFrames") or 1))
    except Exception:  # pydicom raises many types on damaged headers
        return 1


def read_patient(path: Path) -> str:
    """The patient of a file, see ``DicomFrame.patient``; "" if it cannot be read."""
    try:
        with suppress_warnings():
            return _patient(_read(path, stop_before_pixels=True))
    except Exception:  # pydicom raises many types on damaged headers
        return ""


@dataclass(frozen=True)
class SeriesPosition:
    """Where a single-frame DICOM image belongs in its series.

    series: SeriesInstanceUID. series_number: SeriesNumber. number: InstanceNumber. size: (width, height).
    """

    series: str
    series_number: int
    number: int
    size: tuple[int, int]


def read_series_position(path: Path) -> SeriesPosition | None:
    """The position of a single-frame image in its series; None for a clip, without a series, or if unreadable."""
    tags = ["SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "NumberOfFrames", "Rows", "Columns", "SOPClassUID"]
    try:
        with suppress_warnings():
            header = _read(path, stop_before_pixels=True, specific_tags=tags)
            single = int(header.get("NumberOfFrames") or 1) == 1 and header.get("SOPClassUID") != SegmentationStorage
            if not single or not header.get("SeriesInstanceUID"):
                return None
            series, number = (int(header.get(name) or 0) for name in ("SeriesNumber", "InstanceNumber"))
            size = int(header.Columns), int(header.Rows)
            return SeriesPosition(str(header.SeriesInstanceUID), series, number, size)
    except Exception:  # pydicom raises many types on damaged headers
        return None


def read_frame(path: Path, frame: int | None = None) -> DicomFrame:
    """One frame, counted from 0; None: the only one. Raises ImageError (bad_dicom, no_decoder, which_frame)."""
    opened = DicomFile(path)
    return opened.frame(opened.resolve_frame(frame))


class DicomFile:
    """A DICOM image or clip that is decoded frame by frame.

    source: a path, then pixels stay on disk, or the file's bytes. header: large elements are loaded on access.
    frames: number of frames, 1 for a single image. size: (width, height). Raises ImageError (bad_dicom).
    """

    def __init__(self, source: Path | bytes) -> None:
        self._source = source
        with _dicom_errors():
            self.header = _read(source, defer_size=None if isinstance(source, bytes) else _DEFERRED)
            if "PixelData" not in self.header:
                found = "not a DICOM file" if "SOPClassUID" not in self.header else "a DICOM file without PixelData"
                raise ImageError("bad_dicom", f"{found}: expected an image")
            if self.header.get("SOPClassUID") == SegmentationStorage:
                raise ImageError("bad_dicom", "a DICOM segmentation: expected the image that it refers to")
            self.frames = max(1, int(self.header.get("NumberOfFrames") or 1))
            self.size = int(self.header.Columns), int(self.header.Rows)
            _check_bounds(self.frames, self.size, len(source) if isinstance(source, bytes) else source.stat().st_size)

    def resolve_frame(self, frame: int | None) -> int:
        """`frame` if it exists, 0 if it is None and there is only one frame; else raises ImageError (which_frame)."""
        if frame is None and self.frames > 1:
            raise ImageError(
                "which_frame",
                f"a clip of {self.frames} frames, but the name of the label file ends in no frame number",
            )
        if frame is not None and not 0 <= frame < self.frames:
            raise ImageError("which_frame", f"frame {frame + 1} of {self.frames} is labelled")
        return frame or 0

    def frame(self, number: int) -> DicomFrame:
        """One frame, counted from 0. Raises ImageError (bad_dicom, no_decoder).

        Rendered as a viewer shows it first: modality LUT, then the header's VOI LUT or window. Without a window, 8-bit
        pixels are unchanged and deeper ones are scaled from the frame's own range. MONOCHROME1 is inverted.
        """
        with _dicom_errors():
            return _decode(self.header, number, self._pixels(number))

    def times(self) -> tuple[float, ...] | None:
        """Seconds from the start of a clip, per frame (PS3.3, C.7.6.5); None if the header has none."""
        with _dicom_errors():
            steps = self.header.get("FrameTimeVector")
            if steps is not None and not np.isscalar(steps) and len(steps) == self.frames:
                return tuple(float(time) / 1000 for time in np.cumsum([float(step) for step in steps]))
            rate = float(self.header.get("RecommendedDisplayFrameRate") or self.header.get("CineRate") or 0)
            step = float(self.header.get("FrameTime") or 0) / 1000 or (1 / rate if rate > 0 else 0)
            return tuple(number * step for number in range(self.frames)) if step > 0 else None

    @cached_property
    def _compressed(self) -> CompressedFile:
        return CompressedFile(self._source)

    def _pixels(self, number: int) -> np.ndarray:
        has_syntax = "TransferSyntaxUID" in self.header.get("file_meta", {})
        _check_decoder(self.header)
        syntax = self.header.file_meta.TransferSyntaxUID
        if _by_codec(syntax):
            return self._compressed.frame(number)
        if isinstance(self._source, Path) and has_syntax and not syntax.is_deflated:  # reads only this frame
            return pixel_array(self._source, index=number)
        return pixel_array(self.header, index=number)


@contextmanager
def _dicom_errors() -> Iterator[None]:
    """Turn whatever reading a damaged file raises into ImageError (bad_dicom), without text of the header."""
    try:
        with suppress_warnings():  # pydicom's warnings quote the header
            yield
    except ImageError:
        raise
    except Exception as error:  # pydicom and its decoders raise many types
        raise ImageError("bad_dicom", f"damaged, truncated or not conforming ({type(error).__name__})") from None


def _decode(header: Dataset, frame: int, values: np.ndarray) -> DicomFrame:
    view = _frame_view(header, frame)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, header)
    if values.ndim == 3:
        notes: list[Note] = []
        bits = 8 * values.dtype.itemsize if header.PhotometricInterpretation == "PALETTE COLOR" else header.BitsStored
        pixels = Image.fromarray(scale_to_uint8(values, 0, 2**bits - 1))
    else:
        grey, notes = _grey(values, view)
        pixels = Image.fromarray(grey)
    spacing, spacing_notes = _spacing(header, frame)
    return DicomFrame(pixels, tuple(notes + spacing_notes), spacing, _patient(header))


def _check_decoder(header: Dataset) -> None:
    syntax = header.file_meta.TransferSyntaxUID if "TransferSyntaxUID" in header.get("file_meta", {}) else None
    if syntax is None:  # a file from before PS3.10: only this default syntax is possible
        header.ensure_file_meta()
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    elif syntax.is_compressed and not syntax.is_deflated and not _can_decode(syntax):
        raise ImageError(
            "no_decoder",
            f'compressed as {syntax.name}, and no decoder for it is installed: pip install "vesselseg[dicom]"',
        )


def _by_codec(syntax: Any) -> bool:
    """Whether pixels are decoded by a library that a damaged file can end; pydicom itself reads the others."""
    return bool(syntax.is_compressed and not syntax.is_deflated and syntax != RLELossless)


def _can_decode(syntax: Any) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        message = f"compressed as {syntax.name}, which pydicom does not decode; convert it to an uncompressed file"
        raise ImageError("no_decoder", message) from None


def _frame_view(header: Dataset, frame: int) -> Dataset:
    """The elements that define how a frame is displayed; enhanced DICOM keeps them in functional groups."""
    view = Dataset()
    for keyword in (*_LAYOUT, *_VALUES, *_WINDOW):
        value = _find(header, frame, keyword)
        if value is not None:
            setattr(view, keyword, value)
    if isinstance(header.get("file_meta"), Dataset):
        view.file_meta = header.file_meta  # type: ignore[assignment]
    return view


def _find(header: Dataset, frame: int, keyword: str) -> Any:
    """An element of the file, or of the per-frame or shared functional groups; None if absent or empty."""
    groups = [
        (header.get("PerFrameFunctionalGroupsSequence"), frame),
        (header.get("SharedFunctionalGroupsSequence"), 0),
    ]
    datasets = [header]
    for sequence, position in groups:
        if sequence and position < len(sequence):
            datasets += [
                item[0] for item in (element.value for element in sequence[position] if element.VR == "SQ") if item
            ]
    values = (dataset.get(keyword) for dataset in datasets)
    return next((value for value in values if value not in (None, "")), None)


def _grey(values: np.ndarray, view: Dataset) -> tuple[np.ndarray, list[Note]]:
    """Stored values (height, width) -> displayed grey values (height, width) uint8, and a note if they differ."""
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
    return shown, [Note("windowed", note)] if changed else []


def _window(values: np.ndarray, view: Dataset) -> tuple[np.ndarray, tuple[float, float]]:
    """Values after windowing (PS3.3, C.11.2.1.2), and the output range of the window."""
    ends = np.array([-1e12, 1e12])  # beyond any window, so they map to the ends of the output range
    with np.errstate(over="ignore"):
        shown = apply_windowing(np.concatenate([values.astype(np.float64).ravel(), ends]), view)
    return shown[:-2].reshape(values.shape), (float(shown[-2]), float(shown[-1]))


def _look_up(values: np.ndarray, table: Dataset) -> tuple[np.ndarray, tuple[float, float]]:
    """Apply a VOI LUT (PS3.3, C.11.2.1.1); pydicom's own wraps around in 8-bit tables of over 256 entries."""
    entries, first, bits = (int(number) for number in table.LUTDescriptor)
    entries = entries or 2**16
    data = table.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * entries else "<u2")
    data = np.asarray(data)[:entries]
    return data[np.clip(values.astype(np.int64) - first, 0, len(data) - 1)], (0, 2**bits - 1)


def _first(value: Any) -> float:
    return float(value if np.isscalar(value) or not hasattr(value, "__len__") else value[0])


def _spacing(header: Dataset, frame: int) -> tuple[tuple[float, float] | None, list[Note]]:
    """(row, column) in mm. ImagerPixelSpacing refers to the detector; divided by the magnification, to the patient.

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
    return detector, [Note("detector_spacing", "the spacing is measured at the detector: lengths in mm are too long")]


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
