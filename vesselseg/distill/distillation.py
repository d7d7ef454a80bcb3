"""What distilling found out, for report, card and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vesselseg.distill.folder import FormCheck
from vesselseg.distill.learning import Candidate
from vesselseg.distill.measuring import Figures, objections
from vesselseg.distill.teaching import CHOOSING, TRAINING
from vesselseg.evaluation.comparison import Metric
from vesselseg.evaluation.results import versions
from vesselseg.evaluation.scores import Scored


@dataclass(frozen=True)
class Distillation:
    """What came out. figures: of the candidates, in their order; small: of the winner in float32 as it is exported;
    forms: of the exported files that were scored. metrics: small minus big. scored: (small, big) item by item.
    images: of the training and the validation split; masks_of: of them, those whose masks the tuned ones learnt from.
    """

    model: str
    weights: str | None
    data: Path
    data_fingerprint: str
    phrases: tuple[str, ...]
    images: tuple[int, int]
    masks_of: tuple[int, int]
    teacher: Figures
    figures: tuple[Figures, ...]
    candidates: tuple[Candidate, ...]
    chosen: int
    int8: Figures
    checks: tuple[FormCheck, ...]
    metrics: tuple[Metric, ...]
    scored: tuple[list[Scored], list[Scored]]
    varying: float
    seed: int

    @property
    def objections(self) -> tuple[str, ...]:
        """Why it should not be used, in sentences."""
        constant = self.candidates[self.chosen].constant
        return tuple(objections(self.small, self.int8, self.metrics, self.varying, self.images, constant))

    @property
    def small(self) -> Figures:
        """The winner's figures."""
        return self.figures[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        courses = [
            {"name": one.name, "seconds": round(one.seconds, 1), "ended_by": one.ended_by, "losses": list(one.course)}
            for one in self.candidates
        ]
        return {
            "model": {"path": self.model, "weights": self.weights},
            "data": {"folder": str(self.data), "fingerprint": self.data_fingerprint},
            "phrases": list(self.phrases),
            "images": {TRAINING: self.images[0], CHOOSING: self.images[1]},
            "images_whose_masks_were_learnt": {TRAINING: self.masks_of[0], CHOOSING: self.masks_of[1]},
            "should_not_be_used": list(self.objections),
            "teacher": self.teacher.to_dict(),
            "candidates": [one.to_dict() for one in self.figures],
            "chosen": self.small.name,
            "int8": self.int8.to_dict(),
            "forms": [asdict(one) for one in self.checks],
            "metrics": [asdict(one) for one in self.metrics],
            "vectors_scatter": self.varying,
            "training": courses,
            "seed": self.seed,
            "versions": versions(),
        }
