"""Findings of preparation: everything left out, changed or doubtful, with file, shape index and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# code -> (effect, title in the report), in the order of the report: losses first.
FINDING_KINDS: dict[str, tuple[str, str]] = {
    "not_labelme": ("file left out", "JSON that is not a readable LabelMe file"),
    "bad_labels": ("file left out", "Label file unreadable"),
    "no_image": ("file left out", "Image missing"),
    "ambiguous_image": ("file left out", "Label that matches several images"),
    "ambiguous_mask": ("file left out", "Several masks for one image"),
    "listed_twice": ("file left out", "Image listed more than once; the first entry is used"),
    "replaced": ("file left out", "Picture that a later source has with labels of its own"),
    "unreadable_image": ("file left out", "Image unreadable"),
    "bad_dicom": ("file left out", "DICOM file without a usable image"),
    "no_decoder": ("file left out", "DICOM compression without an installed decoder"),
    "which_frame": ("file left out", "Label without a valid frame number of its DICOM clip"),
    "no_usable_shape": ("file left out", "No usable shape in the file"),
    "too_few_points": ("shape left out", "Too few distinct points"),
    "zero_area": ("shape left out", "No area"),
    "outside": ("shape left out", "Outside the image"),
    "not_finite": ("shape left out", "NaN, infinite or implausible coordinates"),
    "bad_field": ("shape left out", "Field missing or of the wrong type"),
    "bad_mask": ("shape left out", "Bitmap unreadable or of the wrong size"),
    "unknown_type": ("shape left out", "Unknown shape type"),
    "no_width": ("shape left out", "Line or point without --line-width"),
    "no_vessel": ("check", "NO VESSEL in the whole source"),
    "all_vessel": ("check", "EVERYTHING is vessel in the whole source"),
    "rescaled": ("changed", "Coordinates rescaled to the image's size"),
    "clipped": ("changed", "Shape cut off at the image's border"),
    "turned": ("changed", "EXIF orientation"),
    "sixteen_bit": ("changed", "Image scaled to 8 bits"),
    "windowed": ("changed", "DICOM values windowed as the header specifies"),
    "several_frames": ("changed", "First of several frames used"),
    "mask_grey": ("changed", "Mask with grey levels, thresholded at half the maximum"),
    "mask_probability": ("changed", "Mask of probabilities, cut at 0.5"),
    "mask_stray": ("changed", "Mask with a few stray values, read as background or vessel"),
    "mask_ignore": ("changed", "Mask with an ignore value; its pixels count neither as vessel nor as background"),
    "size_swapped": ("changed", "Width and height of the label file exchanged"),
    "name_match": ("changed", "Label matched by another spelling of its name"),
    "id_type": ("changed", "Ids of images and annotations of different types"),
    "image_fallback": ("changed", "Another image used than the one named"),
    "other_stem": ("check", "imagePath differs from the image next to the JSON file"),
    "other_phrase": ("check", "Label that is not one of the phrases of the request"),
    "mask_logits": ("check", "Mask of logits, cut at 0"),
    "mask_mixed": ("check", "Masks with different values for vessel"),
    "mask_classes": ("check", "Mask with several large values, read as classes"),
    "mask_objects": ("check", "Mask with object numbers; every object is vessel"),
    "only_ignored": ("check", "Mask with nothing but ignored pixels"),
    "mask_background": ("check", "Mask without the value 0"),
    "mostly_labelled": ("check", "Most of the image labelled"),
    "other_mask": ("check", "Mask treated as the field of view"),
    "link": ("check", "Link to a folder that was not followed"),
    "clip": ("check", "Frames of a DICOM clip"),
    "dicom_header": ("check", "DICOM header that differs from the pixel data"),
    "display_skipped": ("check", "Unusable element of a DICOM header skipped"),
    "mask_subtraction": ("check", "Mask subtraction of a DICOM clip (DSA)"),
    "detector_spacing": ("check", "Pixel spacing at the detector"),
    "magnified_spacing": ("changed", "Pixel spacing from the distances of the X-ray source"),
    "duplicate_image": ("check", "Duplicate image"),
    "no_group": ("check", "No group; the file is its own group"),
    "bad_size": ("check", "imageWidth or imageHeight unusable"),
    "bad_image_data": ("check", "imageData unusable"),
    "encoding": ("check", "Text is not UTF-8"),
    "empty_split": ("check", "A split is empty"),
}

# Kinds whose reasons consist of fixed words and numbers and never quote the source.
_ANONYMOUS = frozenset(
    ("bad_dicom", "no_decoder", "which_frame", "no_usable_shape", "too_few_points", "zero_area", "outside",
     "not_finite", "no_width", "rescaled", "clipped", "turned", "sixteen_bit", "windowed", "several_frames",
     "size_swapped", "mask_grey", "mask_probability", "mask_stray", "mask_ignore", "mask_logits",
     "mask_mixed", "mask_classes", "mask_objects", "only_ignored", "no_vessel", "all_vessel",
     "mask_background", "mostly_labelled", "clip", "dicom_header", "display_skipped", "mask_subtraction",
     "detector_spacing", "magnified_spacing", "encoding", "empty_split"),
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One finding. file: path below the source. index: of the shape in the file, None for the whole file."""

    file: str
    index: int | None
    code: str
    reason: str

    @property
    def effect(self) -> str:
        """The consequence: "file left out", "shape left out", "changed" or "check"."""
        return FINDING_KINDS[self.code][0]

    @property
    def title(self) -> str:
        """The kind of finding, as in the report."""
        return FINDING_KINDS[self.code][1]

    @property
    def is_anonymous(self) -> bool:
        """Whether the reason cannot contain a name, an id or a date of the source."""
        return self.code in _ANONYMOUS

    @property
    def sort_key(self) -> tuple[int, str, int]:
        """Order by kind, losses first, then by file and shape."""
        return list(FINDING_KINDS).index(self.code), self.file, -1 if self.index is None else self.index

    def as_text(self) -> str:
        """One line: file, shape, reason."""
        where = self.file if self.index is None else f"{self.file}, shape {self.index}"
        return f"{where}: {self.reason}"


def count_by_code(findings: Iterable[Finding]) -> dict[str, int]:
    """Number of findings of each kind, losses first."""
    counts = Counter(finding.code for finding in findings)
    return {code: counts[code] for code in FINDING_KINDS if counts[code]}
