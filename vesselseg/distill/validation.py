"""What replacing the language model costs on the validation split, and when the student should not be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg.dataset.manifest import Record
from vesselseg.distill.targets import VALIDATION, DistillationTargets
from vesselseg.evaluation.comparison import PairedMetric, paired_metric
from vesselseg.evaluation.evaluator import Progress
from vesselseg.evaluation.prediction_sources import ModelSource
from vesselseg.evaluation.result_types import ItemResult
from vesselseg.evaluation.score_split import ScoringSettings, Variant, score_split
from vesselseg.evaluation.threshold import THRESHOLDS, best_index, count_metrics
from vesselseg.inference.predictor import Predictor

MAX_DICE_LOSS = 0.02  # a student that may lose more than this should not replace the teacher
MIN_TRAINING_IMAGES, MIN_VALIDATION_IMAGES = 50, 30
TIE_MARGIN = 0.002  # a candidate must gain this much Dice over a simpler one to be preferred
MAX_SCATTER = 0.3  # relative scatter of the teacher's vectors above which a constant prompt is doubtful
COMPARED = ("dice", "cldice", "precision", "recall", "hd95", "betti_0_error")


@dataclass(frozen=True)
class ModelScore:
    """A model's Dice on the validation split at its best threshold there."""

    name: str
    meaning: str  # one phrase for reports
    threshold: float
    dice: NDArray[np.float64]  # (items,)
    difference: PairedMetric | None = None  # paired difference from the teacher; None for the teacher

    @property
    def mean(self) -> float:
        """Mean Dice over the items."""
        return float(self.dice.mean())

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form."""
        difference = asdict(self.difference) if self.difference else None
        return {
            "name": self.name,
            "meaning": self.meaning,
            "threshold": self.threshold,
            "dice": self.mean,
            "difference": difference,
        }


@dataclass(frozen=True)
class Validator:
    """Scores models on the validation split, all in the same way. records: see `select_records`."""

    data: Path
    records: Sequence[Record]
    batch: int
    progress: Progress

    def score(self, name: str, meaning: str, predictor: Predictor, teacher: ModelScore | None = None) -> ModelScore:
        """Dice at the threshold that is best for this model."""
        scores = self._scores(predictor, ())
        dice = count_metrics(scores.counts(False), scores.pixels)["dice"]  # (items, thresholds)
        best = best_index(dice.mean(axis=0))
        score = ModelScore(name, meaning, float(THRESHOLDS[best]), dice[:, best])
        return score if teacher is None else with_difference(score, teacher, self.groups(predictor))

    def items(self, predictor: Predictor, threshold: float) -> list[ItemResult]:
        """All metrics of every item at a threshold."""
        return self._scores(predictor, (Variant(False, threshold),)).items[0]

    def groups(self, predictor: Predictor) -> list[str]:
        """The group of every item, in the order of the scores."""
        source = ModelSource(Path(), predictor, self.records)
        return [record.group_key for record in self.records for _ in source.phrases(record)]

    def _scores(self, predictor: Predictor, variants: tuple[Variant, ...]) -> Any:
        source = ModelSource(Path(), predictor, self.records)
        measured = ScoringSettings(variants, masks=False)
        return score_split(self.data, VALIDATION, source, self.records, measured, (False,), self.batch, self.progress)


def with_difference(score: ModelScore, teacher: ModelScore, groups: Sequence[str]) -> ModelScore:
    """The score with its paired difference from the teacher: negative if it is worse."""
    table = np.stack([score.dice, teacher.dice], axis=1)  # (items, 2)
    return replace(score, difference=paired_metric("dice", table, groups))


def paired_metrics(student: Sequence[ItemResult], teacher: Sequence[ItemResult]) -> list[PairedMetric]:
    """Student minus teacher, item by item, for the metrics of COMPARED that both have."""
    groups = [item.group for item in student]
    tables = {
        name: np.array([[a.metrics[name], b.metrics[name]] for a, b in zip(student, teacher)]) for name in COMPARED
    }
    defined = {name: table for name, table in tables.items() if np.isfinite(table).all(axis=1).any()}
    return [paired_metric(name, table, groups) for name, table in defined.items()]


def select_candidate(scores: Sequence[ModelScore]) -> int:
    """Index of the first, and so the simplest, candidate within TIE_MARGIN of the best."""
    best = max(score.mean for score in scores)
    return next(index for index, score in enumerate(scores) if score.mean >= best - TIE_MARGIN)


def prompt_scatter(targets: DistillationTargets) -> float:
    """Root mean square distance of a phrase's prompts from their mean, relative to the mean's length.

    The largest value over the phrases.
    """
    scatters = []
    for phrase in sorted(set(targets.phrase_of_item.tolist())):
        prompts = targets.prompts[targets.phrase_of_item == phrase]  # (items, 256)
        mean = prompts.mean(dim=0)
        scatters.append(float((prompts - mean).square().sum(1).mean().sqrt() / mean.norm().clamp(min=1e-12)))
    return max(scatters)


def rejection_reasons(
    student: ModelScore,
    int8: ModelScore,
    metrics: Sequence[PairedMetric],
    scatter: float,
    images: tuple[int, int],
    is_constant: bool,
) -> Iterator[str]:
    """Why the student should not be used, as sentences.

    scatter: of the teacher's prompts, see `prompt_scatter`. images: in the training and the validation split.
    is_constant: whether the student gives all images the same prompts.
    """
    difference = student.difference
    if difference is None or difference.low is None:
        yield "Only one patient (group) was measured, so there is no bound on the loss."
    elif difference.low < -MAX_DICE_LOSS:
        yield (
            f"The loss of Dice may be {-difference.low:.3f} (lower end of the 95 % interval), more than the tolerated "
            f"{MAX_DICE_LOSS:.2f}."
        )
    if int8.difference is not None and int8.difference.low is not None and int8.difference.low < -MAX_DICE_LOSS:
        yield f"In 8 bits the loss of Dice may be {-int8.difference.low:.3f}: use the float32 files."
    for metric in metrics:
        if metric.name == "betti_0_error" and metric.low is not None and metric.low > 0:
            yield f"Masks are fragmented: {metric.difference:+.1f} wrong components per image more than the teacher's."
    if scatter > MAX_SCATTER and is_constant and (difference is None or difference.difference < 0):
        yield (
            f"The language model's vectors differ from image to image (by {scatter:.0%} of their length), and one "
            "vector for all of them is worse."
        )
    if images[0] < MIN_TRAINING_IMAGES:
        yield f"It was trained on {images[0]} images; with fewer than {MIN_TRAINING_IMAGES} it rarely generalises."
    if images[1] < MIN_VALIDATION_IMAGES:
        yield f"It was measured on {images[1]} images; fewer than {MIN_VALIDATION_IMAGES} say little."
