"""What the values of mask images show: how often each occurs, with which others, and how they lie in the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np

# bits: 1 bit. index: palette. grey: 8 bits. deep: more bits. float: fractions. colour: 0xRRGGBB.
ValueKind = Literal["bits", "index", "grey", "deep", "float", "colour"]
IGNORE_VALUES = (255.0, 65535.0, -1.0)  # of VOC, its 16-bit form, and PyTorch's int masks
FIRST_LARGE = 64  # class numbers are below
_MOST_VALUES = 70_000  # distinct values that are counted in one file: all of 16 bits
_ADDED = ("files", "missing", "middle", "slopes", "labelled", "flat")
_NEIGHBOURS = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class Evidence:
    """Of one mask or, added up, of all masks of a source that store the same kind of value."""

    kind: ValueKind
    counts: Counter[float]
    """pixels by value; empty where values are fractions"""
    files: int = 1
    lossy: bool = False
    """stored as JPEG"""
    fractions: bool = False
    """some value is not an integer"""
    lowest: float = 0.0
    highest: float = 0.0
    missing: int = 0
    """pixels that are not a number"""
    middle: int = 0
    """pixels between the lowest and the highest value of their mask"""
    slopes: int = 0
    """those of `middle` with both a lower and a higher value around them, as at an edge that was smoothed"""
    labelled: int = 0
    """pixels that are not 0"""
    flat: int = 0
    """those of `labelled` around which is no other value except 0"""
    joint: Counter[str] = field(default_factory=Counter)
    """of masks with class numbers and an ignore value: "files", pixels of "numbers" and of "ignore" """

    @property
    def values(self) -> list[float]:
        """All values, the lowest first."""
        return sorted(self.counts)

    @property
    def slope_share(self) -> float:
        """Of `middle`; 0 without any."""
        return self.slopes / self.middle if self.middle else 0.0

    @property
    def flat_share(self) -> float:
        """Of `labelled`; 1 without any."""
        return self.flat / self.labelled if self.labelled else 1.0


def measure(values: np.ndarray, kind: ValueKind, lossy: bool = False) -> Evidence:
    """The evidence of one mask; values: (height, width)."""
    known = np.isfinite(values) if np.issubdtype(values.dtype, np.floating) else np.ones(values.shape, bool)
    missing = int(values.size - known.sum())
    if missing == values.size:
        return Evidence(kind, Counter(), lossy=lossy, missing=missing)
    filled = np.where(known, values, 0) if missing else values
    lowest, highest = float(filled[known].min()), float(filled[known].max())
    fractions = bool(np.issubdtype(values.dtype, np.floating) and (filled != np.round(filled)).any())
    counts: Counter[float] = Counter()
    if not fractions:
        distinct, pixels = np.unique(filled[known], return_counts=True)
        if len(distinct) <= _MOST_VALUES:
            counts = Counter(dict(zip(distinct.astype(float).tolist(), pixels.tolist())))
    middle, slopes, labelled, flat = _shapes(filled.astype(np.float32)) if len(counts) != 2 else (0, 0, 0, 0)
    return Evidence(
        kind, counts, 1, lossy, fractions, lowest, highest, missing, middle, slopes, labelled, flat, _joint(counts)
    )


def add_up(evidence: Iterable[Evidence]) -> Evidence:
    """The evidence of several masks of one kind; at least one."""
    several = list(evidence)
    fractional = any(one.fractions for one in several)
    counts: Counter[float] = Counter()
    joint: Counter[str] = Counter()
    for one in several:
        counts.update(one.counts)
        joint.update(one.joint)
    pixels = {name: sum(getattr(one, name) for one in several) for name in _ADDED}
    return Evidence(
        kind=several[0].kind,
        counts=Counter() if fractional else counts,
        lossy=any(one.lossy for one in several),
        fractions=fractional,
        lowest=min(one.lowest for one in several),
        highest=max(one.highest for one in several),
        joint=joint,
        **pixels,
    )


def class_numbers(values: Iterable[float]) -> list[float]:
    """Those of the values that can be class numbers."""
    return [value for value in values if 0 < value < FIRST_LARGE and value == int(value)]


def _joint(counts: Counter[float]) -> Counter[str]:
    numbers = sum(counts[value] for value in class_numbers(counts))
    ignored = sum(counts[value] for value in IGNORE_VALUES if value in counts)
    return Counter(files=1, numbers=numbers, ignore=ignored) if numbers and ignored else Counter()


def _shapes(values: np.ndarray) -> tuple[int, int, int, int]:
    """`middle`, `slopes`, `labelled` and `flat` of a mask, (height, width) float32 and finite."""
    low, high = cv2.erode(values, _NEIGHBOURS), cv2.dilate(values, _NEIGHBOURS)
    middle = (values > values.min()) & (values < values.max())
    slopes = middle & (low < values) & (high > values)
    labelled = values != 0
    lowest_label = cv2.erode(np.where(labelled, values, np.float32(np.inf)), _NEIGHBOURS)
    highest_label = cv2.dilate(np.where(labelled, values, np.float32(-np.inf)), _NEIGHBOURS)
    flat = labelled & (lowest_label == values) & (highest_label == values)
    return int(middle.sum()), int(slopes.sum()), int(labelled.sum()), int(flat.sum())
