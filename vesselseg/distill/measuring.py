"""What replacing the language model costs on the validation split, and when it costs too much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg.dataset.manifest import Record
from vesselseg.distill.teaching import CHOOSING, Lesson
from vesselseg.evaluation.comparison import Metric, measure
from vesselseg.evaluation.evaluator import Track
from vesselseg.evaluation.score_split import Measure, Variant, score_split
from vesselseg.evaluation.scores import Scored
from vesselseg.evaluation.sources import ModelSource
from vesselseg.evaluation.threshold import THRESHOLDS, best_index, count_metrics
from vesselseg.inference.predictor import Predictor

TOLERATED = 0.02  # of Dice: a model that may lose more than this should not be used in the big one's place
FEW_TRAINING, FEW_CHOOSING = 50, 30  # images
SIMPLER_WITHIN = 0.002  # of Dice: so much better must a candidate be than a simpler one to be taken
COMPARED = ("dice", "cldice", "precision", "recall", "hd95", "betti_0_error")
VARYING = 0.3  # length of the vectors' scatter, relative to their mean's


@dataclass(frozen=True)
class Figures:
    """One model on the validation split at its best threshold there. dice: (items,). difference: from the big model's,
    paired; None for the big model.
    """

    name: str
    meaning: str
    threshold: float
    dice: NDArray[np.float64]
    difference: Metric | None = None

    @property
    def mean(self) -> float:
        """Mean Dice over the items."""
        return float(self.dice.mean())

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        difference = asdict(self.difference) if self.difference else None
        return {
            "name": self.name,
            "meaning": self.meaning,
            "threshold": self.threshold,
            "dice": self.mean,
            "difference": difference,
        }


@dataclass(frozen=True)
class Bench:
    """Where all models are measured alike. records: see `lesson_records`."""

    data: Path
    records: Sequence[Record]
    batch: int
    track: Track

    def figures(self, name: str, meaning: str, predictor: Predictor, teacher: Figures | None = None) -> Figures:
        """Dice at the threshold that is best for this model."""
        scores = self._scores(predictor, ())
        dice = count_metrics(scores.counts(False), scores.pixels)["dice"]
        best = best_index(dice.mean(axis=0))
        found = Figures(name, meaning, float(THRESHOLDS[best]), dice[:, best])
        return found if teacher is None else compared(found, teacher, self.groups(predictor))

    def scored(self, predictor: Predictor, threshold: float) -> list[Scored]:
        """Every metric of every item at a threshold."""
        return self._scores(predictor, (Variant(False, threshold),)).items[0]

    def groups(self, predictor: Predictor) -> list[str]:
        """The group of every item, in the order of the scores."""
        source = self.source(predictor)
        return [record.group_key for record in self.records for _ in source.phrases(record)]

    def source(self, predictor: Predictor) -> ModelSource:
        """The model as evaluations ask it."""
        return ModelSource(Path(), predictor, self.records)

    def _scores(self, predictor: Predictor, variants: tuple[Variant, ...]) -> Any:
        source = self.source(predictor)
        asked = Measure(variants, masks=False)
        return score_split(self.data, CHOOSING, source, self.records, asked, (False,), self.batch, self.track)


def compared(found: Figures, teacher: Figures, groups: Sequence[str]) -> Figures:
    """The same with its paired difference from the big model: negative where it is worse."""
    table = np.stack([found.dice, teacher.dice], axis=1)
    return replace(found, difference=measure("dice", table, groups))


def paired(small: Sequence[Scored], big: Sequence[Scored]) -> list[Metric]:
    """Small minus big in the metrics of COMPARED that both have, item by item."""
    groups = [item.group for item in small]
    tables = {name: np.array([[a.metrics[name], b.metrics[name]] for a, b in zip(small, big)]) for name in COMPARED}
    defined = {name: table for name, table in tables.items() if np.isfinite(table).all(axis=1).any()}
    return [measure(name, table, groups) for name, table in defined.items()]


def winner(figures: Sequence[Figures]) -> int:
    """The first, which is the simplest, of those nearly as good as the best."""
    best = max(one.mean for one in figures)
    return next(number for number, one in enumerate(figures) if one.mean >= best - SIMPLER_WITHIN)


def scatter(lesson: Lesson) -> float:
    """How far the vectors of a phrase lie from their mean (root of the mean square), relative to the mean's length; the
    largest over the phrases.
    """
    found = []
    for phrase in sorted(set(lesson.phrase_of_item.tolist())):
        vectors = lesson.prompts[lesson.phrase_of_item == phrase]
        mean = vectors.mean(dim=0)
        found.append(float((vectors - mean).square().sum(1).mean().sqrt() / mean.norm().clamp(min=1e-12)))
    return max(found)


def objections(
    small: Figures, int8: Figures, metrics: Sequence[Metric], varying: float, images: tuple[int, int], constant: bool
) -> Iterator[str]:
    """Why the small model should not be used, in sentences.

    varying: of the language model's vectors, see `scatter`; constant: whether the small model's are the same for every
    image. images: of the training and the validation split.
    """
    difference = small.difference
    if difference is None or difference.low is None:
        yield "One patient (group) alone was measured, so nothing bounds the loss: it may be anything."
    elif difference.low < -TOLERATED:
        yield (
            f"The loss of Dice may be {-difference.low:.3f} (lower end of the 95 % interval), more than the "
            f"{TOLERATED:.2f} that is tolerated."
        )
    found = int8.difference
    if found is not None and found.low is not None and found.low < -TOLERATED:
        yield f"In 8 bits the loss of Dice may be {-found.low:.3f}: take the float32 files."
    for metric in metrics:
        worse = metric.name == "betti_0_error" and metric.low is not None and metric.low > 0
        if worse:
            yield f"Masks fall apart: {metric.difference:+.1f} wrong pieces per image more than the big model's."
    if varying > VARYING and constant and (difference is None or difference.difference < 0):
        yield (
            f"The language model's vectors differ from image to image (by {varying:.0%} of their length), and one "
            "vector for all of them does worse."
        )
    if images[0] < FEW_TRAINING:
        yield f"It learnt from {images[0]} images; below {FEW_TRAINING} a new picture is likely to be unlike all."
    if images[1] < FEW_CHOOSING:
        yield f"It was measured on {images[1]} images; below {FEW_CHOOSING} such a measurement says little."
