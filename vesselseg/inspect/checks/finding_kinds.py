"""All kinds of findings: severity, rule, consequence, and what --fix does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SERIOUS, CHECK, INFORMATION = "serious", "check", "information"
SEVERITIES = (SERIOUS, CHECK, INFORMATION)

NEAR_DISTANCE = 16  # differing bits of 64 of the perceptual hash, at most
NEAR_CORRELATION = 0.6  # of the textures of near-duplicates, at least
OUTLIER = 3.5  # absolute modified z-score, as recommended by Iglewicz and Hoaglin (1993)
LOW_DICE = 0.5  # between observers
_NEAR = (
    f"at most {NEAR_DISTANCE} of 64 bits of the perceptual hash differ, and the correlation of the fine textures "
    f"(32x32, without border, normalised locally) is {NEAR_CORRELATION} or more, directly or mirrored; images of "
    "different patients stay below 0.4, frames of one cine are around 0.85"
)
_ROBUST = f"modified z-score (Iglewicz and Hoaglin: 0.6745 x distance from the median / MAD) beyond {OUTLIER}"
_NOTHING = "nothing; inspect it in the labelling tool"


@dataclass(frozen=True)
class FindingKind:
    """One kind of finding, as described in check.html."""

    severity: str  # one of SEVERITIES
    title: str
    rule: str  # criterion of the check
    why: str  # consequence for results
    fix: str  # what --fix does


# In the order of the report: the most serious first.
KINDS: dict[str, FindingKind] = {
    "missing_image": FindingKind(
        SERIOUS, "Image missing", "annotations.json lists it, but images/ does not contain it",
        "training and evaluation fail", "leaves the image out",
    ),
    "unreadable_image": FindingKind(
        SERIOUS, "Image unreadable", "it cannot be decoded completely",
        "training and evaluation fail", "leaves the image out",
    ),
    "bad_region": FindingKind(
        SERIOUS, "Invalid mask", "a region is not a polygon or run-length code of the image's size",
        "training and evaluation fail", "leaves the image out",
    ),
    "unknown_in_split": FindingKind(
        SERIOUS, "Image in a split without record", "splits.json lists it, annotations.json does not",
        "training and evaluation fail", "removes it from the split",
    ),
    "image_in_two_splits": FindingKind(
        SERIOUS, "The same image in two splits", "splits.json lists it more than once",
        "the model is tested on training images: scores are too high",
        "keeps it in the split of most of its group",
    ),
    "group_in_two_splits": FindingKind(
        SERIOUS, "The same group in two splits", "images with one group are in more than one split",
        "images of one patient or clip are similar: scores are too high",
        "moves the whole group to the split of most of its images",
    ),
    "duplicate_across_splits": FindingKind(
        SERIOUS, "Duplicate images in two splits", "all pixels are equal",
        "the model is tested on training images: scores are too high",
        "keeps one of them; if the masks differ, keeps all in one split",
    ),
    "near_duplicate_across_splits": FindingKind(
        SERIOUS, "Near-duplicates in two splits", _NEAR,
        "frames of one cine, or copies, are in both splits: scores are too high",
        "merges their groups and moves the result to the split of most of its images",
    ),
    "duplicate_masks_differ": FindingKind(
        CHECK, "Duplicate images with different masks", "all pixels are equal, the masks are not",
        "the labels contradict each other", "keeps all of them as one group; inspect them",
    ),
    "duplicate": FindingKind(
        CHECK, "Duplicate images", "all pixels and the masks are equal, within one split",
        "it counts twice in training and in mean scores", "keeps one of them",
    ),
    "near_duplicate_across_groups": FindingKind(
        CHECK, "Near-duplicates in several groups", _NEAR,
        "dependent groups count as independent: confidence intervals are too narrow, and another split may leak",
        "merges their groups",
    ),
    "label_variant": FindingKind(
        CHECK, "Spelling variants of a label", "phrases differ in case, spaces, hyphens or plural only",
        "the model learns them as different objects, from fewer examples each",
        "uses the most frequent spelling everywhere",
    ),
    "label_typo": FindingKind(
        CHECK, "Misspelt label", "phrases differ by one letter (or two swapped ones) in one word of 4 or more letters",
        "the model learns them as different objects, and the rare one hardly at all",
        "uses the most frequent spelling if it is at least 5 times as frequent",
    ),
    "low_agreement": FindingKind(
        CHECK, "Observers disagree", f"Dice of their masks below {LOW_DICE}, or far below the others' ({_ROBUST})",
        "the accuracy of the reference limits what a score can show", _NOTHING,
    ),
    "little_vessel": FindingKind(
        CHECK, "Unusually little vessel", f"logarithm of the fraction of labelled pixels: {_ROBUST}, below",
        "labels may be missing, which teaches the model to miss vessels", _NOTHING,
    ),
    "much_vessel": FindingKind(
        CHECK, "Unusually much vessel", f"logarithm of the fraction of labelled pixels: {_ROBUST}, above",
        "an outline may be filled by mistake, or shapes may have the wrong scale", _NOTHING,
    ),
    "empty_object": FindingKind(
        CHECK, "Empty object", "an object has no region inside the image, while other objects of the image have",
        "the model is trained to find nothing for its phrase", "leaves the object out",
    ),
    "specks": FindingKind(
        CHECK, "Specks in a mask", "components smaller than 1/20000 of the image (or 4 pixels), with another at least "
        "20 times as large", "labelling slips; they hardly affect overlap but distort distances (HD, ASSD)", _NOTHING,
    ),
    "blank_image": FindingKind(
        CHECK, "Blank image", "the standard deviation of its grey values is below 2",
        "nothing can be learnt from it", _NOTHING,
    ),
    "new_format": FindingKind(
        CHECK, "Format that is not in the training split", "no training image has the same size, bit depth and colour",
        "scores refer to images unlike those in training", "nothing; prepare with another split",
    ),
    "odd_format": FindingKind(
        CHECK, "Group with an unusual format",
        "at least 90 % of all images share a format (size, bit depth, colour) that the group lacks",
        "another device or export; small deviating groups are learnt badly", "nothing",
    ),
    "unusual_group": FindingKind(
        CHECK, "Group of unusual brightness or contrast", f"mean of the group's images among all groups: {_ROBUST}",
        "another device, another window or inverted images; the model may fail on them", "nothing",
    ),
    "split_drift": FindingKind(
        CHECK, "Splits that differ", "Kolmogorov-Smirnov test between the groups of two splits, p < 0.001",
        "test images differ from training images; by chance alone, one comparison in a thousand is listed",
        "nothing; prepare with another --seed",
    ),
    "near_duplicate_in_group": FindingKind(
        INFORMATION, "Near-duplicates within a group", _NEAR,
        "expected for frames of a cine; they count as one patient", "nothing",
    ),
    "empty_image": FindingKind(
        INFORMATION, "Image without any vessel", "its masks are empty", "correct if none is visible", "nothing",
    ),
    "not_in_a_split": FindingKind(
        INFORMATION, "Image in no split", "splits.json does not list it", "it is not used", "nothing",
    ),
    "unused_file": FindingKind(
        INFORMATION, "Unused file", "it is in images/, but no record refers to it", "it is not used",
        "does not copy it",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class CheckFinding:
    """One finding. code: key of KINDS. images: affected images. reason: what was found, as a message.

    weight: sorts findings of one kind, the most serious has the largest.
    """

    code: str
    images: tuple[str, ...]
    reason: str
    weight: float = 0.0

    @property
    def kind(self) -> FindingKind:
        """Severity, rule and advice."""
        return KINDS[self.code]

    @property
    def sort_key(self) -> tuple[int, float, tuple[str, ...]]:
        """Order by kind, the most serious first."""
        return list(KINDS).index(self.code), -self.weight, self.images

    def as_json(self) -> dict[str, Any]:
        """For check.json."""
        return {
            "code": self.code,
            "severity": self.kind.severity,
            "title": self.kind.title,
            "images": list(self.images),
            "reason": self.reason,
            "why": self.kind.why,
            "fix": self.kind.fix,
        }
