"""What preparing finds: one entry per thing left out, changed or guessed, with file, shape index and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# code -> (what happened to it, title in the report). The order is that of the report: losses first.
FINDING_KINDS: dict[str, tuple[str, str]] = {
    "not_labelme": ("file left out", "JSON that is no readable LabelMe file"),
    "bad_labels": ("file left out", "Label file unreadable"),
    "no_image": ("file left out", "Image missing"),
    "ambiguous_image": ("file left out", "Label that several images could mean"),
    "ambiguous_mask": ("file left out", "Several masks for one image"),
    "listed_twice": ("file left out", "Image listed more than once; the first entry is used"),
    "unreadable_image": ("file left out", "Image unreadable"),
    "bad_dicom": ("file left out", "DICOM file without a usable picture"),
    "no_decoder": ("file left out", "DICOM compression that nothing installed decodes"),
    "which_frame": ("file left out", "Label that does not name a frame of its DICOM clip"),
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
    "windowed": ("changed", "DICOM values shown as the header asks"),
    "several_frames": ("changed", "First of several frames used"),
    "mask_grey": ("changed", "Mask with grey levels, cut at half"),
    "image_fallback": ("changed", "Another image used than the one named"),
    "other_stem": ("check", "imagePath names another file than the one beside the JSON"),
    "other_phrase": ("check", "Label that is none of the phrases that the model was asked for"),
    "mask_background": ("check", "Mask without 0"),
    "mostly_labelled": ("check", "Most of the picture labelled"),
    "other_mask": ("check", "Mask taken for the field of view"),
    "clip": ("check", "Frames of a DICOM clip"),
    "detector_spacing": ("check", "Pixel spacing at the detector"),
    "duplicate_image": ("check", "The same picture twice"),
    "no_group": ("check", "No group; the file is its own"),
    "bad_size": ("check", "imageWidth or imageHeight unusable"),
    "bad_image_data": ("check", "imageData unusable"),
    "encoding": ("check", "Text is not UTF-8"),
    "empty_split": ("check", "A split is empty"),
}

# Kinds whose reasons are this program's words and numbers alone, never a name or text out of the source's files.
_NAMELESS = frozenset(
    ("bad_dicom", "no_decoder", "which_frame", "no_usable_shape", "too_few_points", "zero_area", "outside",
     "not_finite", "no_width", "rescaled", "clipped", "turned", "sixteen_bit", "windowed", "several_frames",
     "mask_grey", "mask_background", "mostly_labelled", "clip", "detector_spacing", "encoding", "empty_split"),
)  # fmt: skip


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
    def is_nameless(self) -> bool:
        """Whether the reason cannot hold a name, an id or a date of the source."""
        return self.code in _NAMELESS

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
