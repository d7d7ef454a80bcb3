"""What the values of a mask mean: one decision for all masks of a source, from evidence, with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vesselseg.imaging.mask_evidence import FIRST_LARGE, IGNORE_VALUES, Evidence, class_numbers
from vesselseg.imaging.mask_option import BY_EVIDENCE, MaskValues

_STRAY = 0.01  # of the labelled pixels; fewer with another value are stray ones
_STRAY_PIXELS = 16  # per mask, which are stray ones up to five times that share: small masks
_SLOPES = 0.5  # of the pixels between two values; from here on they are smoothed edges
_FLAT = 0.8  # of the labelled pixels; from here on each value is an area of its own
_CLASSES = 8  # more values than this, of which some are no class numbers, are objects or grey levels
_WHITE = {"grey": 255.0, "deep": 65535.0}
_MOST_BYTES = 1 << 29  # of all masks of one file; more objects than this become one
OBJECT = "object"  # label of all pixels where values are object numbers


@dataclass(frozen=True)
class Meaning:
    """How values are read."""

    kind: Literal["classes", "objects", "cut"]
    cut: float = 0.0
    """values above are vessel, where kind is "cut" """
    full: float = 1.0
    """the value that stands for vessel, where kind is "cut"; its text is the label"""
    background: float = 0.0
    ignore: tuple[float, ...] = ()
    """values of pixels about which nothing is said"""
    reason: str = ""
    code: str = ""
    """of the finding (`prepare.findings`); "" where nothing is doubtful"""
    other: Meaning | None = None
    """the second reading, where there is doubt"""

    def describe(self) -> str:
        """In a few words, for the report."""
        what = {"classes": "every value is a class", "objects": "every value is an object"}.get(self.kind)
        ignored = f", {_listed(self.ignore)} ignored" if self.ignore else ""
        return (what or f"above {self.cut:g} is vessel") + ignored


def decide(evidence: Evidence, asked: MaskValues = BY_EVIDENCE) -> Meaning:
    """The meaning of all values that the evidence counts. Raises ValueError where there is none."""
    if asked.ignore:
        evidence = replace(evidence, counts=_without(evidence, asked.ignore))
        if evidence.counts:
            evidence = replace(evidence, highest=max(evidence.counts))
    found = _as_asked(evidence, asked.meaning) if asked.meaning else _by_evidence(evidence)
    if asked:
        found = replace(found, code="", other=None, reason=f"--mask-values {asked}")
    return replace(found, ignore=(*asked.ignore, *(value for value in found.ignore if value not in asked.ignore)))


def apply(
    values: np.ndarray, meaning: Meaning, name: Callable[[float], str]
) -> tuple[list[tuple[str, np.ndarray]], np.ndarray]:
    """((label, (height, width) bool) per class or object, (height, width) bool of the ignored pixels)."""
    ignored = np.isin(values, meaning.ignore) if meaning.ignore else np.zeros(values.shape, bool)
    if np.issubdtype(values.dtype, np.floating):
        ignored |= ~np.isfinite(values)
    if meaning.kind == "cut":
        vessel = (np.nan_to_num(values) > meaning.cut) & ~ignored
        return ([(name(meaning.full), vessel)] if vessel.any() else []), ignored
    distinct = np.unique(values[~ignored])
    background = meaning.background if len(distinct) > 1 else 0
    label = name if meaning.kind == "classes" else lambda value: OBJECT
    if meaning.kind == "objects" and len(distinct) * values.size > _MOST_BYTES:
        return [(OBJECT, (values != background) & ~ignored)], ignored
    return [(label(value), (values == value) & ~ignored) for value in distinct.tolist() if value != background], ignored


def _without(evidence: Evidence, values: tuple[float, ...]) -> Counter[float]:
    return Counter({value: pixels for value, pixels in evidence.counts.items() if value not in values})


def _as_asked(evidence: Evidence, meaning: str) -> Meaning:
    if meaning in ("classes", "objects"):
        if evidence.fractions:
            raise ValueError(
                f"--mask-values {meaning}: the masks hold fractions, {evidence.lowest:g} to {evidence.highest:g}"
            )
        return _classes(evidence, "classes" if meaning == "classes" else "objects")
    if meaning == "binary":
        return _cut(evidence, evidence.highest or 1.0)
    return _cut(evidence, 1.0 if evidence.fractions and evidence.highest <= 1 else _white(evidence))


def _by_evidence(evidence: Evidence) -> Meaning:
    if evidence.fractions:
        return _fractions(evidence)
    if evidence.kind == "colour":
        if evidence.lossy or len(evidence.counts) > _CLASSES:
            raise ValueError(f"mask of {len(evidence.counts)} colours; expected black and one colour per class")
        return _classes(evidence)
    if evidence.lossy:
        return _grey(evidence, _white(evidence))
    values = [value for value in evidence.values if value]
    numbers, ignore = class_numbers(values), tuple(value for value in values if value in IGNORE_VALUES)
    if numbers and ignore and 0 in evidence.counts and len(numbers) + len(ignore) == len(values):
        return _ignore(evidence, numbers, ignore)
    if len(evidence.values) <= 2 or len(numbers) == len(values):
        return _classes(evidence)
    return _large(evidence, values)


def _ignore(evidence: Evidence, numbers: list[float], ignore: tuple[float, ...]) -> Meaning:
    """Class numbers beside 255: an ignore value, stray numbers, or masks of two makers."""
    classes, joint = _classes(evidence), evidence.joint
    if not joint["files"]:
        reason = f"some masks hold {_listed(numbers)}, others {_listed(ignore)}; both are read as vessel"
        return replace(classes, reason=reason, code="mask_mixed", other=replace(classes, ignore=ignore))
    share = joint["numbers"] / (joint["numbers"] + joint["ignore"])
    ignoring = replace(classes, ignore=ignore)
    if _are_stray(share, joint["numbers"] / joint["files"]) and ignore[-1] > 0:
        reason = f"{share:.2%} of the labelled pixels hold {_listed(numbers)}: stray values, read as background"
        return replace(_cut(evidence, ignore[-1]), reason=reason, code="mask_stray", other=ignoring)
    reason = (
        f"{_listed(ignore)} beside the class number(s) {_listed(numbers)} is read as an ignore value, not as vessel"
    )
    return replace(ignoring, reason=reason, code="mask_ignore", other=classes)


def _large(evidence: Evidence, values: list[float]) -> Meaning:
    """Three or more values, of which some are too large for class numbers."""
    labelled = sum(evidence.counts[value] for value in values)
    classes, highest = _classes(evidence), max(values)
    others = labelled - evidence.counts[highest]
    stray = others / labelled
    if evidence.kind != "index" and _are_stray(stray, others / evidence.files) and 0 in evidence.counts:
        rest = _listed([value for value in values if value != highest])
        reason = f"{stray:.2%} of the labelled pixels hold {rest}: stray values, cut at half"
        return replace(_cut(evidence, highest), reason=reason, code="mask_stray", other=classes)
    if evidence.kind == "index":
        return classes if len(values) <= _CLASSES else _classes(evidence, "objects")
    if evidence.slope_share >= _SLOPES:
        return _grey(evidence, _white(evidence), classes if len(values) <= _CLASSES else None)
    if evidence.flat_share >= _FLAT:
        if len(values) > _CLASSES:
            reason = f"{len(values)} values in areas of their own: object numbers, all of them vessel"
            return replace(
                _classes(evidence, "objects"), reason=reason, code="mask_objects", other=_cut(evidence, highest)
            )
        if evidence.kind == "grey" and highest == 255:
            reason = f"{_listed(values)} in areas of their own: classes, all of them vessel unless --labels says more"
            return replace(classes, reason=reason, code="mask_classes", other=_cut(evidence, highest))
        return classes
    return _grey(evidence, _white(evidence), classes if len(values) <= _CLASSES else None)


def _are_stray(share: float, per_mask: float) -> bool:
    return share < _STRAY or (share < 5 * _STRAY and per_mask <= _STRAY_PIXELS)


def _fractions(evidence: Evidence) -> Meaning:
    low, high = evidence.lowest, evidence.highest
    span = f"fractions from {low:.3g} to {high:.3g}"
    if low >= 0 and high <= 1:
        meaning = replace(_cut(evidence, 1.0), reason=f"{span}: probabilities, cut at 0.5", code="mask_probability")
        return meaning
    if low < 0:
        return Meaning(
            "cut", 0.0, 1.0, reason=f"{span}: logits, cut at 0", code="mask_logits", other=Meaning("cut", 0.5, 1.0)
        )
    full = 255.0 if 192 <= high <= 256 else high
    return replace(_cut(evidence, full), reason=f"{span}, cut at {full / 2:g}", code="mask_grey")


def _classes(evidence: Evidence, kind: Literal["classes", "objects"] = "classes") -> Meaning:
    values = evidence.values
    if len(values) > 1 and 0 not in values:
        background = min(value for value in values if value not in IGNORE_VALUES[2:])
        return Meaning(kind, background=background)
    return Meaning(kind)


def _grey(evidence: Evidence, full: float, other: Meaning | None = None) -> Meaning:
    levels = len(evidence.counts)
    reason = f"{levels} grey levels of smoothed edges, thresholded at {full / 2:g}"
    return replace(_cut(evidence, full), reason=reason, code="mask_grey", other=other)


def _cut(evidence: Evidence, full: float) -> Meaning:
    return Meaning("cut", full / 2, full)


def _white(evidence: Evidence) -> float:
    """The value that stands for vessel in grey levels: white, unless nothing comes near it."""
    white = _WHITE.get(evidence.kind, 1.0)
    if evidence.lossy or evidence.highest >= 0.75 * white:
        return white
    return evidence.highest if evidence.highest >= FIRST_LARGE else white


def _listed(values: list[float] | tuple[float, ...]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:5])
    return shown + (f" and {len(values) - 5} more" if len(values) > 5 else "")
