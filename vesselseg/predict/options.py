"""What is asked of a call of tools/predict.py, and what it says in the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from vesselseg.dataset.prompts import clean_phrase
from vesselseg.errors import UserError
from vesselseg.inference.cine import mode_problems, resolve_keyframes
from vesselseg.inference.flips import FLIPS
from vesselseg.inference.post_processing import NO_POST_PROCESSING, PostProcessing
from vesselseg.predict.dicom_seg import check_installed
from vesselseg.predict.result_files import KINDS


@dataclass(frozen=True)
class PredictOptions:
    """threshold: None takes the one stored with the model. batch: images given to the model at once.

    cine, keyframes: how clips are segmented, see `segment_cine`. flips: probabilities are the mean over mirrored
    copies. post_processing: of the masks, after the threshold.
    """

    phrases: tuple[str, ...]
    threshold: float | None = None
    save: tuple[str, ...] = KINDS
    batch: int = 4
    cine: str = "frames"
    keyframes: int | tuple[int, ...] | None = None
    flips: bool = False
    post_processing: PostProcessing = NO_POST_PROCESSING

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.save if kind not in KINDS]
        if unknown or not self.save:
            raise UserError(f"save: expected some of {', '.join(KINDS)}; found {', '.join(unknown) or 'nothing'}")
        if problems := mode_problems(self.cine, self.flips, self.keyframes):
            raise UserError("\n".join(problems))

    def deciding(self, clip: bool = False) -> dict[str, Any]:
        """What decides the results, as JSON holds it; those of a clip by how it is segmented, too."""
        threshold = "auto" if self.threshold is None else self.threshold
        decided: dict[str, Any] = {"phrases": list(self.phrases), "threshold": threshold, "save": sorted(self.save)}
        decided |= {"tta": FLIPS} if self.flips else {}
        decided |= self.post_processing.enabled_steps()
        if clip:
            decided["cine"] = self.cine
        if clip and self.cine == "memory":
            keyframes = resolve_keyframes(self.keyframes)
            decided["keyframes"] = keyframes if isinstance(keyframes, int) else list(keyframes)
        return decided


@dataclass(frozen=True)
class Outcome:
    """predicted, skipped: numbers of files; failed: (file, reason); others: files of earlier calls' input alone.

    kept: LabelMe files, by their paths below the folder, that people have edited and that therefore stay as they are.
    """

    predicted: int
    skipped: int
    failed: tuple[tuple[str, str], ...]
    others: int = 0
    kept: tuple[str, ...] = ()


def checked(options: PredictOptions) -> PredictOptions:
    """With tidy phrases, each once; raises UserError for one that cannot be asked."""
    phrases = clean_phrases(options.phrases)
    if not phrases:
        raise UserError('no phrase is given; say what to segment, e.g. "blood vessel"')
    if "dicom-seg" in options.save:
        check_installed()
    return replace(options, phrases=phrases)


def clean_phrases(phrases: Iterable[str]) -> tuple[str, ...]:
    """Tidy phrases, each once; raises UserError for one that cannot be asked, named as the tools' option."""
    try:
        return tuple(dict.fromkeys(map(clean_phrase, phrases)))
    except ValueError as error:
        raise UserError(f"--phrase: {error}") from None
