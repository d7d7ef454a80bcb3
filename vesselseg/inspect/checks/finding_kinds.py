"""Every kind of finding: how bad, by which rule, why it matters, what --fix does about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SERIOUS, CHECK, INFORMATION = "serious", "check", "information"
SEVERITIES = (SERIOUS, CHECK, INFORMATION)

NEAR_DISTANCE = 16  # of 64 bits of the perceptual hash
NEAR_CORRELATION = 0.6
OUTLIER = 3.5
LOW_DICE = 0.5
_NEAR = (
    f"at most {NEAR_DISTANCE} of 64 bits of the perceptual hash differ, and the fine texture (32x32, border cut off, "
    f"brightness and contrast levelled) correlates by {NEAR_CORRELATION} or more, as it is or mirrored; pictures of "
    "different patients stay below 0.4, frames of one cine lie around 0.85"
)
_ROBUST = f"modified z-score (Iglewicz and Hoaglin: 0.6745 x distance from the median / MAD) beyond {OUTLIER}"
_NOTHING = "nothing; look at it in the labelling tool"


@dataclass(frozen=True)
class Kind:
    """severity: serious, check or information. rule: when it is found. why: what it does to results. fix: by --fix."""

    severity: str
    title: str
    rule: str
    why: str
    fix: str


# In the order of the report: the worst first.
KINDS: dict[str, Kind] = {
    "missing_image": Kind(
        SERIOUS, "Image missing", "annotations.json names it, images/ does not hold it",
        "training and evaluation stop at it", "leaves the image out",
    ),
    "unreadable_image": Kind(
        SERIOUS, "Image unreadable", "it cannot be decoded to its end",
        "training and evaluation stop at it", "leaves the image out",
    ),
    "bad_region": Kind(
        SERIOUS, "Mask that cannot be drawn", "a region is no polygon or run-length code of the image's size",
        "training and evaluation stop at it", "leaves the image out",
    ),
    "unknown_in_split": Kind(
        SERIOUS, "Split names an image without record", "splits.json names it, annotations.json does not",
        "training and evaluation stop at it", "takes it out of the split",
    ),
    "image_in_two_splits": Kind(
        SERIOUS, "The same image in two splits", "splits.json lists it more than once",
        "the model is tested on what it was trained on: the figures come out too high",
        "keeps it on the side where most of its group is",
    ),
    "group_in_two_splits": Kind(
        SERIOUS, "The same group in two splits", "images with one group are in more than one split",
        "images of one patient or clip resemble each other: the figures come out too high",
        "moves the whole group to the side where most of it is",
    ),
    "duplicate_across_splits": Kind(
        SERIOUS, "The same picture in two splits", "all pixels are equal",
        "the model is tested on what it was trained on: the figures come out too high",
        "keeps one of them; where the masks differ, keeps all, on one side",
    ),
    "near_duplicate_across_splits": Kind(
        SERIOUS, "Nearly the same picture in two splits", _NEAR,
        "frames of one cine, or copies, lie on both sides: the figures come out too high",
        "makes them one group and moves it to the side where most of it is",
    ),
    "duplicate_masks_differ": Kind(
        CHECK, "The same picture with different masks", "all pixels are equal, the masks are not",
        "the model is told two truths, and at most one is right", "keeps all of them, as one group; decide by eye",
    ),
    "duplicate": Kind(
        CHECK, "The same picture twice", "all pixels and the masks are equal, within one split",
        "it counts twice, in training as in the mean", "keeps one of them",
    ),
    "near_duplicate_across_groups": Kind(
        CHECK, "Nearly the same picture in several groups", _NEAR,
        "groups that belong together count as independent: intervals come out too narrow, and another split leaks",
        "makes them one group",
    ),
    "label_variant": Kind(
        CHECK, "One label in several spellings", "phrases differ in case, spaces, hyphens or plural only",
        "the model learns them as different things, and neither is whole", "takes the commonest spelling everywhere",
    ),
    "label_typo": Kind(
        CHECK, "Label that looks misspelt", "phrases differ by one letter (or two swapped) in one word of 4 or more",
        "the model learns them as different things, and the rare one hardly at all",
        "takes the commonest spelling where it is at least 5 times as frequent",
    ),
    "low_agreement": Kind(
        CHECK, "Observers disagree", f"Dice of their masks below {LOW_DICE}, or far below the others' ({_ROBUST})",
        "no model can be better than its truth is sure", _NOTHING,
    ),
    "little_vessel": Kind(
        CHECK, "Suspiciously little vessel", f"share of labelled pixels, as logarithm: {_ROBUST}, below",
        "labels may be missing, which teaches the model to leave vessels out", _NOTHING,
    ),
    "much_vessel": Kind(
        CHECK, "Suspiciously much vessel", f"share of labelled pixels, as logarithm: {_ROBUST}, above",
        "an outline may be filled by mistake, or shapes may be scaled wrongly", _NOTHING,
    ),
    "empty_object": Kind(
        CHECK, "Object without a pixel", "an object has no region, or none inside the image, beside others that have",
        "the model is asked for it and told that it is not there", "leaves the object out",
    ),
    "specks": Kind(
        CHECK, "Specks in a mask", "pieces smaller than 1/20000 of the image (at least 4 pixels), beside one at least "
        "20 times as large", "slips of the hand; they cost little, but distances (HD, ASSD) suffer", _NOTHING,
    ),
    "blank_image": Kind(
        CHECK, "Picture with nothing to see", "its grey values have a standard deviation below 2",
        "nothing can be learnt from it", _NOTHING,
    ),
    "new_format": Kind(
        CHECK, "Size, depth or colour that training never sees", "no image of train has the same",
        "the figures are of pictures unlike those trained on", "nothing; prepare with another split",
    ),
    "odd_format": Kind(
        CHECK, "Group of another size, depth or colour", "at least 90 % of the images share one that the group lacks",
        "another device or export; small groups of another kind are learnt badly", "nothing",
    ),
    "unusual_group": Kind(
        CHECK, "Group of unusual brightness or contrast", f"mean of the group's images among all groups: {_ROBUST}",
        "another device, window or inverted picture; the model may fail on it", "nothing",
    ),
    "split_drift": Kind(
        CHECK, "Splits that differ", "Kolmogorov-Smirnov test between the groups of two splits, p < 0.001",
        "tested are other pictures than trained on; chance alone does this in one of a thousand comparisons",
        "nothing; prepare with another --seed",
    ),
    "near_duplicate_in_group": Kind(
        INFORMATION, "Nearly the same pictures within a group", _NEAR,
        "expected of frames of a cine; they count as one patient", "nothing",
    ),
    "empty_image": Kind(
        INFORMATION, "Image without any vessel", "its masks are empty", "legal, if there is none to be seen", "nothing",
    ),
    "not_in_a_split": Kind(
        INFORMATION, "Image in no split", "splits.json does not name it", "it is not used", "nothing",
    ),
    "unused_file": Kind(
        INFORMATION, "File that no record names", "it lies in images/", "it is not used", "does not copy it",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class CheckFinding:
    """One finding: its kind, the images it is about, and what was found in words.

    weight: sorts findings of one kind, the worst has the largest.
    """

    code: str
    images: tuple[str, ...]
    reason: str
    weight: float = 0.0

    @property
    def kind(self) -> Kind:
        """Severity, rule and advice."""
        return KINDS[self.code]

    @property
    def sort_key(self) -> tuple[int, float, tuple[str, ...]]:
        """Kind by kind, the worst first."""
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
