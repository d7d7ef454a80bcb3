"""Which bits of a stored DICOM value are the pixel (PS3.5, 8.1.1), checked against the values themselves."""

from __future__ import annotations

import numpy as np
from pydicom import Dataset

from vesselseg.imaging.dicom_elements import number
from vesselseg.imaging.notes import Note

_OVERLAYS = range(0x6000, 0x6020, 2)


def pixel_bits(values: np.ndarray, header: Dataset, native: bool) -> tuple[np.ndarray, int, list[Note]]:
    """Stored values (height, width) -> the pixels' values, how many bits they have, and notes.

    native: not from a codec, which returns the pixels' bits as the lowest ones whatever the header says.
    Bits above the stored ones are dropped where the header keeps overlays there. Else they belong to the pixels, and
    the header's number is too low, unless they are the padding value's.
    """
    width, stored = 8 * values.dtype.itemsize, int(number(header, "BitsStored") or 0)
    if values.dtype.kind not in "iu" or not 1 <= stored < width:
        return values, stored or width, []
    signed = values.dtype.kind == "i"
    plain = values.view(f"u{values.dtype.itemsize}")
    notes: list[Note] = []
    shift = int(number(header, "HighBit") or 0) + 1 - stored
    if native and 0 < shift <= width - stored:
        if not (plain & ((1 << shift) - 1)).any():
            plain = plain >> shift
        elif not _has_overlay_bits(header):
            notes.append(Note("dicom_header", "the high bit is too high: the lowest bits are in use, and count"))
    mask = plain.dtype.type((1 << stored) - 1)
    inner = _signed(plain & mask, stored, values.dtype) if signed else plain & mask
    if _has_overlay_bits(header):
        return inner, stored, notes
    beyond = (inner != plain.view(values.dtype)) & (plain > mask)
    padding = number(header, "PixelPaddingValue")
    if padding is not None:
        beyond &= values != padding
    if beyond.any():
        bits = _bits_of(values)
        notes.append(Note("dicom_header", f"the values have {bits} bits, the header says {stored}; all count"))
        return values, bits, notes
    return (inner if padding is None else np.where(values == padding, values, inner)), stored, notes


def _signed(plain: np.ndarray, stored: int, dtype: np.dtype) -> np.ndarray:
    """Two's complement of `stored` bits."""
    sign = 1 << (stored - 1)
    return ((plain.astype(np.int64) ^ sign) - sign).astype(dtype)


def _bits_of(values: np.ndarray) -> int:
    signed = values.dtype.kind == "i"
    return max(int(values.max()).bit_length(), (-int(values.min()) - 1).bit_length() if signed else 0) + signed


def _has_overlay_bits(header: Dataset) -> bool:
    """Whether overlays lie in unused bits of the pixels (retired)."""
    return any((group, 0x0102) in header and (group, 0x3000) not in header for group in _OVERLAYS)
