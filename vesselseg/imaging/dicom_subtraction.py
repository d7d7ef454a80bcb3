"""Mask subtraction (DSA) where a DICOM header asks for it: which frames are the mask of a frame, and the difference.

PS3.3, C.7.6.10. Intensities that are linear in X-rays are subtracted as logarithms, so that a vessel's contrast does
not depend on what lies behind it; logarithmic and displayed intensities are subtracted as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from pydicom import Dataset

from vesselseg.imaging.decode import ImageError
from vesselseg.imaging.dicom_elements import items, number, numbers, text
from vesselseg.imaging.eight_bits import scale_to_uint8
from vesselseg.imaging.notes import Note

Decode = Callable[[int], np.ndarray]  # frame, counted from 0 -> stored values (height, width)
_LARGEST_MASK = 64  # frames averaged; more is a damaged header


@dataclass(frozen=True)
class _Operation:
    """One item. masks: numbers of frames, from 1, that are averaged. shift: (rows, columns) of the mask."""

    kind: str
    ranges: tuple[tuple[int, int], ...]
    masks: tuple[int, ...]
    averaged: int
    offset: int
    shift: tuple[float, float]

    def mask_frames(self, frame: int, frames: int) -> tuple[int, ...]:
        """The mask's frames for a frame, all counted from 0; none if the operation does not apply to it."""
        if self.ranges and not any(first <= frame + 1 <= last for first, last in self.ranges):
            return ()
        numbered = {
            "AVG_SUB": tuple(mask - 1 for mask in self.masks),
            "TID": (frame - self.offset,),
            "REV_TID": (2 * (self.ranges[0][0] - 1) - self.offset - frame,) if self.ranges else (),
        }.get(self.kind, ())
        usable = all(0 <= mask < frames for mask in numbered) and len(numbered) <= _LARGEST_MASK
        return numbered if usable and numbered != (frame,) else ()


def subtract_mask(
    values: np.ndarray, header: Dataset, frame: int, frames: int, decode: Decode, photometric: str
) -> tuple[np.ndarray | None, list[Note]]:
    """The difference as displayed (height, width) uint8, or None if none is asked for or possible; and notes."""
    operations = [_read(item) for item in items(header, "MaskSubtractionSequence")]
    mode = text(header, "RecommendedViewingMode")
    if mode == "NAT" or (mode != "SUB" and not operations):
        return None, []
    if mode != "SUB":
        return None, [_note("it describes a mask subtraction without recommending it; the frames are not subtracted")]
    chosen = next((found for found in operations if found.mask_frames(frame, frames)), None)
    covered = sum(any(found.mask_frames(n, frames) for found in operations) for n in range(min(frames, 10_000)))
    if not covered:
        return None, [_note("it asks for mask subtraction, but names no usable mask; the frames are not subtracted")]
    notes = [_note(f"its mask is subtracted from {covered} of {frames} frames, as the header asks")]
    if chosen is None:
        return None, notes
    try:
        mask = _mask(chosen, frame, frames, header, decode, values.shape)
    except ImageError:
        return None, [_note("it asks for mask subtraction, but the mask is damaged; frames are not subtracted")]
    contrast = _mean(_contrast_frames(chosen, frame, frames), header, decode, {frame: values})
    difference = contrast - mask
    low, high = float(difference.min()), float(difference.max())
    shown = scale_to_uint8(difference, low, high)
    return (255 - shown if photometric == "MONOCHROME1" else shown), notes


def _note(message: str) -> Note:
    return Note("mask_subtraction", f"DSA: {message}")


def _read(item: Dataset) -> _Operation:
    ends = _whole(item, "ApplicableFrameRange")
    shift = numbers(item, "MaskSubPixelShift")
    usable = len(shift) == 2 and all(math.isfinite(value) and abs(value) < 1000 for value in shift)
    return _Operation(
        text(item, "MaskOperation"),
        tuple(zip(ends[::2], ends[1::2])),
        tuple(_whole(item, "MaskFrameNumbers")),
        max(1, int(number(item, "ContrastFrameAveraging") or 1)),
        int(number(item, "TIDOffset") or 1),
        (shift[0], shift[1]) if usable else (0.0, 0.0),
    )


def _whole(item: Dataset, keyword: str) -> list[int]:
    return [int(value) for value in numbers(item, keyword) if math.isfinite(value)]


def _contrast_frames(operation: _Operation, frame: int, frames: int) -> range:
    count = operation.averaged if operation.kind == "AVG_SUB" and operation.averaged <= _LARGEST_MASK else 1
    return range(frame, min(frame + count, frames))


def _mask(
    operation: _Operation, frame: int, frames: int, header: Dataset, decode: Decode, shape: tuple[int, ...]
) -> np.ndarray:
    mask = _mean(operation.mask_frames(frame, frames), header, decode, {})
    if mask.shape != shape:
        raise ImageError("bad_dicom", "a mask of another size")
    if operation.shift == (0.0, 0.0):
        return mask
    rows, columns = operation.shift
    move = np.array([[1, 0, columns], [0, 1, rows]], np.float64)
    return cv2.warpAffine(mask, move, mask.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _mean(chosen: tuple[int, ...] | range, header: Dataset, decode: Decode, known: dict[int, np.ndarray]) -> np.ndarray:
    """Mean of frames (height, width) float64, as logarithms where intensities are linear in X-rays."""
    total: np.ndarray | float = 0.0
    for frame in chosen:
        values = known[frame] if frame in known else decode(frame)
        total = total + values.astype(np.float64)
    mean = np.asarray(total) / len(chosen)
    if text(header, "PixelIntensityRelationship") != "LIN":
        return mean
    return np.log(np.maximum(mean, 1.0))
