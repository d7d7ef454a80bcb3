"""The result of a distillation, for report, card and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vesselseg.distill.student_folder import FormCheck
from vesselseg.distill.targets import TRAINING, VALIDATION
from vesselseg.distill.train_heads import Candidate
from vesselseg.distill.validation import ModelScore, rejection_reasons
from vesselseg.evaluation.comparison import PairedMetric
from vesselseg.evaluation.result_types import ItemResult
from vesselseg.evaluation.results_file import versions


@dataclass(frozen=True)
class DistillationResult:
    """The result of a distillation."""

    model: str  # the teacher, as it was named
    weights: str | None  # digest of the teacher's weights
    data: Path
    data_fingerprint: str
    phrases: tuple[str, ...]
    images: tuple[int, int]  # in the training and the validation split
    images_with_masks: tuple[int, int]  # of these, images whose masks the tuned candidates were trained on
    teacher: ModelScore
    scores: tuple[ModelScore, ...]  # of the candidates, in their order
    candidates: tuple[Candidate, ...]
    chosen: int  # index of the exported candidate
    int8: ModelScore  # of the 8-bit graph
    checks: tuple[FormCheck, ...]  # of the exported files
    metrics: tuple[PairedMetric, ...]  # student minus teacher
    items: tuple[list[ItemResult], list[ItemResult]]  # (student, teacher), all metrics item by item
    scatter: float  # of the teacher's prompts, see `prompt_scatter`
    seed: int

    @property
    def rejection_reasons(self) -> tuple[str, ...]:
        """Why the student should not be used, as sentences; empty if it may be used."""
        is_constant = self.candidates[self.chosen].is_constant
        return tuple(rejection_reasons(self.student, self.int8, self.metrics, self.scatter, self.images, is_constant))

    @property
    def student(self) -> ModelScore:
        """The score of the exported candidate."""
        return self.scores[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form."""
        training = [
            {"name": one.name, "seconds": round(one.seconds, 1), "ended_by": one.ended_by, "losses": list(one.losses)}
            for one in self.candidates
        ]
        return {
            "model": {"path": self.model, "weights": self.weights},
            "data": {"folder": str(self.data), "fingerprint": self.data_fingerprint},
            "phrases": list(self.phrases),
            "images": {TRAINING: self.images[0], VALIDATION: self.images[1]},
            "images_whose_masks_were_learnt": {
                TRAINING: self.images_with_masks[0],
                VALIDATION: self.images_with_masks[1],
            },
            "should_not_be_used": list(self.rejection_reasons),
            "teacher": self.teacher.to_dict(),
            "candidates": [score.to_dict() for score in self.scores],
            "chosen": self.student.name,
            "int8": self.int8.to_dict(),
            "forms": [asdict(check) for check in self.checks],
            "metrics": [asdict(metric) for metric in self.metrics],
            "vectors_scatter": self.scatter,
            "training": training,
            "seed": self.seed,
            "versions": versions(),
        }
