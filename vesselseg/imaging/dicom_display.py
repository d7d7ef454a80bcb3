"""Stored values of a grey DICOM frame -> displayed values, by the rules of PS3.3 for the image's class.

An element that cannot be used is skipped and named in a note, and the next usable one is taken: the pixels are sound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from pydicom import Dataset

from vesselseg.imaging.dicom_elements import has, items, number, numbers, places, text
from vesselseg.imaging.eight_bits import scale_to_uint8
from vesselseg.imaging.notes import Note

# PS3.3, C.8.7.1.1.2: in these classes the modality LUT leads to X-ray intensities and is not for display.
_NOT_FOR_DISPLAY = (
    "1.2.840.10008.5.1.4.1.1.12.1",  # X-Ray Angiographic Image Storage
    "1.2.840.10008.5.1.4.1.1.12.2",  # X-Ray Radiofluoroscopic Image Storage
    "1.2.840.10008.5.1.4.1.1.12.3",  # X-Ray Angiographic Bi-Plane Image Storage, retired
)
_GREY = ("MONOCHROME2", "MONOCHROME1")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True)
class _Table:
    """A LUT (PS3.3, C.11.1.1 and C.11.2.1.1). first: the value that maps to data[0]. bits: of an entry."""

    data: np.ndarray
    first: int
    bits: int

    def look_up(self, values: np.ndarray) -> np.ndarray:
        return self.data[np.clip(values.astype(np.int64) - self.first, 0, len(self.data) - 1)]


@dataclass(frozen=True)
class _Window:
    centre: float
    width: float
    function: str

    def apply(self, values: np.ndarray) -> np.ndarray:
        """0..1 (PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
        shifted = values.astype(np.float64) - self.centre
        if self.function == "SIGMOID":
            return 1 / (1 + np.exp(np.clip(-4 * shifted / self.width, -700, 700)))
        if self.function == "LINEAR_EXACT":
            return np.clip(shifted / self.width + 0.5, 0, 1)
        if self.width <= 1:
            return (shifted > -0.5).astype(np.float64)
        return np.clip((shifted + 0.5) / (self.width - 1) + 0.5, 0, 1)


@dataclass
class _Elements:
    """Finds the usable elements of one frame. skipped: what was not usable."""

    where: list[Dataset]
    signed: bool
    skipped: list[str] = field(default_factory=list)

    def table(self, keyword: str, name: str) -> _Table | None:
        for place in self.where:
            if keyword in place and not items(place, keyword):
                self.skipped.append(f"{name} without an item")
            for item in items(place, keyword):
                table = _read_table(item, self.signed)
                if table is not None:
                    return table
                self.skipped.append(f"{name} with an unusable table")
        return None

    def rescale(self) -> tuple[float, float] | None:
        """(slope, intercept)."""
        for place in self.where:
            if not has(place, "RescaleSlope") and not has(place, "RescaleIntercept"):
                continue
            slope = number(place, "RescaleSlope") if has(place, "RescaleSlope") else 1.0
            intercept = number(place, "RescaleIntercept") if has(place, "RescaleIntercept") else 0.0
            if slope and intercept is not None:
                return slope, intercept
            self.skipped.append("rescale slope of 0" if slope == 0 else "rescale slope or intercept that is no number")
        return None

    def window(self, values: np.ndarray) -> _Window | None:
        for place in self.where:
            centres, widths = numbers(place, "WindowCenter"), numbers(place, "WindowWidth")
            function = text(place, "VOILUTFunction") or "LINEAR"
            if (centres or widths) and function not in _FUNCTIONS:
                self.skipped.append("VOI LUT function that the standard does not know, read as LINEAR")
                function = "LINEAR"
            for centre, width in zip_longest(centres, widths, fillvalue=math.nan):
                window = _Window(centre, width, function)
                fault = _window_fault(window, values)
                if not fault:
                    return window
                self.skipped.append(f"window {fault}")
        return None


def _window_fault(window: _Window, values: np.ndarray) -> str:
    """Why a window cannot be used; "" if it can."""
    if not math.isfinite(window.centre) or not math.isfinite(window.width):
        return "whose centre or width is no number"
    if window.width <= 0 or (window.function == "LINEAR" and window.width < 1):
        return f"of width {window.width:g}"
    ends = np.array([values.min(), values.max()])
    if ends[0] != ends[1] and window.function != "SIGMOID" and np.ptp(window.apply(ends)) == 0:
        return "that shows all pixels as one value"
    return ""


def _read_table(item: Dataset, signed: bool) -> _Table | None:
    described = numbers(item, "LUTDescriptor")
    if len(described) != 3 or not all(map(math.isfinite, described)):
        return None
    entries, first, bits = (int(value) for value in described)
    entries = entries or 2**16
    try:
        data = item.LUTData
    except Exception:  # pydicom raises many types on damaged elements
        return None
    if isinstance(data, bytes):
        data = np.frombuffer(data[: len(data) // 2 * 2], np.uint8 if len(data) < 2 * entries else "<u2")
    data = np.atleast_1d(np.asarray(data))[:entries]
    if not 1 <= bits <= 16 or len(data) < entries or data.dtype.kind not in "iu" or np.ptp(data) == 0:
        return None
    return _Table(data, first - 2**16 if signed and first >= 2**15 else first, bits)


def draw_grey(
    values: np.ndarray, header: Dataset, frame: int, photometric: str, bits: int
) -> tuple[np.ndarray, list[Note]]:
    """Stored values (height, width) of `bits` bits -> displayed grey values (height, width) uint8, and notes.

    Modality LUT except in XA, XRF and biplane images, then VOI LUT or window. Without either, 8-bit pixels are
    unchanged and deeper ones are scaled from the frame's own range, padding excluded. MONOCHROME1 is inverted.
    """
    signed = number(header, "PixelRepresentation") == 1
    elements = _Elements(places(header, frame), signed)
    raw, remark = values, ""
    values, has_modality_lut = _modality_values(values, elements)
    if has_modality_lut and _is_projection(header):
        values, remark = raw, "; the modality LUT is not for display in such X-ray images"
    used, padding = _used_values(raw, values, header, elements)
    low, high = float(used.min()), float(used.max())
    table = elements.table("VOILUTSequence", "VOI LUT")
    window = elements.window(used) if table is None else None
    if table is not None:
        values, low, high, note = table.look_up(values), 0, 2**table.bits - 1, "VOI LUT of the header"
    elif window is not None:
        values, low, high = window.apply(values), 0, 1
        note = f"window of the header: centre {window.centre:g}, width {window.width:g}"
    elif bits <= 8 and values is raw and not signed:
        low, high, note = 0, 2**bits - 1, f"{bits} bits"
    else:
        padded = ", padding excluded" if padding.any() else ""
        absent = "no usable window" if elements.skipped else "no window"
        note = f"{absent} in the header: values {low:g} to {high:g}{padded} are scaled to 0 to 255"
    shown = scale_to_uint8(values, low, high)
    if photometric == "MONOCHROME1":
        shown, note = 255 - shown, f"{note}; inverted (MONOCHROME1)"
    if table is None and window is None:
        shown[padding] = 0
    changed = raw.dtype != np.uint8 or not np.array_equal(raw, shown)
    notes = [Note("windowed", note + remark)] if changed or remark else []
    return shown, [*notes, *skipped_notes(elements.skipped)]


def usable_photometric(header: Dataset) -> tuple[str, list[Note]]:
    """PhotometricInterpretation, or what the number of samples suggests if it is missing or unknown; and a note."""
    found, samples = text(header, "PhotometricInterpretation"), number(header, "SamplesPerPixel") or 1
    tables = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
    if found == "PALETTE COLOR" and all(has(header, table) for table in tables):
        return found, []
    if found in (_GREY if samples == 1 else _COLOUR):
        return found, []
    used = _GREY[0] if samples == 1 else _COLOUR[0]
    fault = "photometric interpretation that does not fit the pixels" if found else "no photometric interpretation"
    return used, skipped_notes([f"{fault}, read as {used}"])


def skipped_notes(skipped: list[str]) -> list[Note]:
    """One note for all elements that were skipped."""
    named = "; ".join(dict.fromkeys(skipped))
    return [Note("display_skipped", f"unusable in the header and skipped: {named}")] if skipped else []


def _modality_values(values: np.ndarray, elements: _Elements) -> tuple[np.ndarray, bool]:
    """Values after the modality LUT, and whether there is one that changes them."""
    table = elements.table("ModalityLUTSequence", "modality LUT")
    if table is not None:
        return table.look_up(values), True
    rescale = elements.rescale()
    if rescale is None or rescale == (1, 0):
        return values, False
    return values.astype(np.float64) * rescale[0] + rescale[1], True


def _is_projection(header: Dataset) -> bool:
    """An XA, XRF or biplane image; without a class, the modality decides."""
    known = text(header, "SOPClassUID")
    return known in _NOT_FOR_DISPLAY or (not known and text(header, "Modality") in ("XA", "RF"))


def _used_values(
    raw: np.ndarray, values: np.ndarray, header: Dataset, elements: _Elements
) -> tuple[np.ndarray, np.ndarray]:
    """The values that are no padding (PS3.3, C.7.5.1.1.2), and where padding is; if all are padding, none is."""
    nowhere = np.zeros(raw.shape, bool)
    padding = number(header, "PixelPaddingValue")
    if padding is None:
        if has(header, "PixelPaddingValue"):
            elements.skipped.append("padding value that is no number")
        return values, nowhere
    ends = [padding, number(header, "PixelPaddingRangeLimit")]
    limits = [_as_stored(end, raw.dtype) for end in ends if end is not None]
    padded = (raw >= min(limits)) & (raw <= max(limits))
    return (values, nowhere) if padded.all() else (values[~padded], padded)


def _as_stored(value: float, dtype: np.dtype) -> float:
    """A padding value of the other signedness, read as the pixels' own."""
    span = 2 ** (8 * dtype.itemsize)
    if dtype.kind == "i" and value >= span // 2:
        return value - span
    return value + span if dtype.kind == "u" and value < 0 else value
