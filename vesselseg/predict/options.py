"""Options of predicting files, light to import, and the outcome."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

from vesselseg.dataset.prompts import DEFAULT_PHRASE, clean_phrase
from vesselseg.errors import UserError
from vesselseg.inference.options import mode_problems, resolve_keyframes
from vesselseg.inference.post_processing import NO_POST_PROCESSING, PostProcessing

KINDS = ("masks", "probs", "overlay", "labelme", "coco", "dicom-seg")


@dataclass(frozen=True)
class PredictOptions:
    """How files are predicted and what is written; see `segment_cine` for cine and keyframes."""

    phrases: tuple[str, ...] = (DEFAULT_PHRASE,)
    """what to segment; repeat for several"""
    threshold: float | None = None
    """a probability between 0 and 1, or stored: the one stored with the model (default)"""
    save: tuple[str, ...] = ("masks", "overlay")
    """some of masks,probs,overlay,labelme,coco,dicom-seg"""
    batch: int = 4
    """images given to the model at once"""
    cine: Literal["frames", "memory"] = "frames"
    """frames of a clip: each on its own, or by SAM2's memory of keyframes"""
    keyframes: int | tuple[int, ...] | None = None
    """with --cine memory: interval of the keyframes, or their numbers, e.g. 0,12,40 (default: 8)"""
    tta: Literal["flips"] | None = None
    """average the predictions over the mirrored images, at 4 x the time"""
    post_processing: PostProcessing = NO_POST_PROCESSING
    """of the masks, after the threshold"""

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.save if kind not in KINDS]
        if unknown or not self.save:
            raise UserError(f"save: expected some of {', '.join(KINDS)}; found {', '.join(unknown) or 'nothing'}")
        if problems := mode_problems(self.cine, self.flips, self.keyframes):
            raise UserError("\n".join(problems))

    @property
    def flips(self) -> bool:
        """Whether predictions are averaged over flipped copies."""
        return self.tta is not None

    def result_options(self, clip: bool = False) -> dict[str, Any]:
        """The options that determine the results, as JSON; with `clip` also those for clips."""
        threshold = "auto" if self.threshold is None else self.threshold
        options: dict[str, Any] = {"phrases": list(self.phrases), "threshold": threshold, "save": sorted(self.save)}
        options |= {"tta": self.tta} if self.tta else {}
        options |= self.post_processing.enabled_steps()
        if clip:
            options["cine"] = self.cine
        if clip and self.cine == "memory":
            keyframes = resolve_keyframes(self.keyframes)
            options["keyframes"] = keyframes if isinstance(keyframes, int) else list(keyframes)
        return options


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run, over all processes."""

    predicted: int  # files
    skipped: int  # files that an earlier run had finished
    failed: tuple[tuple[str, str], ...]  # (file, reason)
    others: int = 0  # files with results from earlier runs that are not part of this input
    kept: tuple[str, ...] = ()  # LabelMe files, relative to the folder, that were edited and are therefore unchanged


def validate_options(options: PredictOptions) -> PredictOptions:
    """The options with cleaned, unique phrases; raises UserError for an invalid phrase or a missing package."""
    phrases = clean_phrases(options.phrases)
    if not phrases:
        raise UserError('no phrase is given; name what to segment, e.g. --phrase "blood vessel"')
    if "dicom-seg" in options.save and find_spec("highdicom") is None:
        raise UserError('--save dicom-seg needs highdicom: pip install "vesselseg[dicom]"')
    return replace(options, phrases=phrases)


def clean_phrases(phrases: Iterable[str]) -> tuple[str, ...]:
    """Cleaned, unique phrases; raises UserError, which names the option --phrase, for an invalid one."""
    try:
        return tuple(dict.fromkeys(map(clean_phrase, phrases)))
    except ValueError as error:
        raise UserError(f"--phrase: {error}") from None
