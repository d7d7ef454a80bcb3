"""What preparing finds: one entry per thing left out, changed or guessed, with file, shape index and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# code -> (what happened to it, title in the report). The order is that of the report: losses first.
FINDING_KINDS: dict[str, tuple[str, str]] = {
    "not_labelme": ("file left out", "JSON that is no readable LabelMe file"),
    "no_image": ("file left out", "Image missing"),
    "unreadable_image": ("file left out", "Image unreadable"),
    "no_usable_shape": ("file left out", "No shape of the file is usable"),
    "too_few_points": ("shape left out", "Too few distinct points"),
    "zero_area": ("shape left out", "No area"),
    "outside": ("shape left out", "Outside the image"),
    "not_finite": ("shape left out", "NaN, infinite or absurd coordinates"),
    "bad_field": ("shape left out", "Field missing or of the wrong type"),
    "bad_mask": ("shape left out", "Bitmap unreadable or of the wrong size"),
    "unknown_type": ("shape left out", "Unknown shape type"),
    "no_width": ("shape left out", "Line or point without --line-width"),
    "rescaled": ("changed", "Coordinates rescaled to the image's size"),
    "clipped": ("changed", "Shape cut off at the image's border"),
    "turned": ("changed", "EXIF orientation"),
    "sixteen_bit": ("changed", "Image scaled to 8 bits"),
    "several_frames": ("changed", "First of several frames used"),
    "image_fallback": ("changed", "Another image used than the one named"),
    "other_stem": ("check", "imagePath names another file than the one beside the JSON"),
    "duplicate_image": ("check", "The same picture twice"),
    "no_group": ("check", "--group-regex does not match"),
    "bad_size": ("check", "imageWidth or imageHeight unusable"),
    "bad_image_data": ("check", "imageData unusable"),
    "encoding": ("check", "Text is not UTF-8"),
    "empty_split": ("check", "A split is empty"),
}


@dataclass(frozen=True)
class Finding:
    """file: path below the source; index: of the shape in the file, None for the file as a whole."""

    file: str
    index: int | None
    code: str
    reason: str

    @property
    def effect(self) -> str:
        """What happened: "file left out", "shape left out", "changed" or "check"."""
        return FINDING_KINDS[self.code][0]

    @property
    def title(self) -> str:
        """The kind of finding in words."""
        return FINDING_KINDS[self.code][1]

    @property
    def sort_key(self) -> tuple[int, str, int]:
        """Kind by kind, losses first; then file by file and shape by shape."""
        return list(FINDING_KINDS).index(self.code), self.file, -1 if self.index is None else self.index

    def as_text(self) -> str:
        """One line: file, shape, reason."""
        where = self.file if self.index is None else f"{self.file}, shape {self.index}"
        return f"{where}: {self.reason}"


def count_by_code(findings: Iterable[Finding]) -> dict[str, int]:
    """How many findings of each kind, losses first."""
    counts = Counter(finding.code for finding in findings)
    return {code: counts[code] for code in FINDING_KINDS if counts[code]}
