"""Distillation: a teacher and a dataset -> the student's folder. Train candidates, score them, export and check one."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vesselseg.dataset.manifest import Record, fingerprint, image_digests, image_path
from vesselseg.distill import graphs
from vesselseg.distill.options import RESULTS_FILE, DistillOptions
from vesselseg.distill.report import write_card, write_report
from vesselseg.distill.result import DistillationResult
from vesselseg.distill.student_folder import build_student, check_forms, write_graphs, write_model
from vesselseg.distill.targets import (
    TRAINING,
    VALIDATION,
    DistillationTargets,
    compute_targets,
    default_phrase,
    select_records,
)
from vesselseg.distill.train_heads import Candidate, HeadTraining, train_candidates
from vesselseg.distill.validation import (
    ModelScore,
    Validator,
    paired_metrics,
    prompt_scatter,
    select_candidate,
    with_difference,
)
from vesselseg.errors import UserError
from vesselseg.evaluation.evaluator import Progress, no_progress
from vesselseg.evaluation.result_types import ItemResult
from vesselseg.imaging.read_image import read_image
from vesselseg.inference.model_files import weights_digest
from vesselseg.inference.predictor import Predictor
from vesselseg.inference.prompted_predictor import PromptedPredictor
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.models.prompted_config import PromptedSAM2Config
from vesselseg.models.prompted_sam2 import PromptedSAM2, place
from vesselseg.output_folder import whole_folder
from vesselseg.predict.options import clean_phrases

_log = logging.getLogger(__name__)

CHECK_IMAGES = 3


def distill(
    teacher: Predictor,
    model: str,
    data: Path,
    out: Path,
    options: DistillOptions,
    force: bool = False,
    progress: Progress = no_progress,
) -> DistillationResult:
    """Write the student to `out`, completely or not at all.

    model: path of the teacher, as named in the report. Raises UserError for a teacher that is a distilled model, a
    dataset without validation images or without a phrase, and if `out` exists.
    """
    if not isinstance(teacher, Sa2VAPredictor):
        raise UserError(f"{model} is a distilled model already; name the model that it was distilled from")
    phrases = clean_phrases(options.phrases or (default_phrase(data),))
    records = {split: select_records(data, split, phrases) for split in (TRAINING, VALIDATION)}
    with whole_folder(out, force, RESULTS_FILE) as folder:
        validator = Validator(data, records[VALIDATION], options.batch, progress)
        # Both models' training images, so that evaluations can warn about images seen in training.
        seen = {*teacher.model.config.training_images.split(), *image_digests(data, records[TRAINING]).values()}
        train, validation = (_targets(teacher, data, split, records[split], phrases, options) for split in records)
        run = _Run(teacher, validator, train, validation, phrases, options, " ".join(sorted(seen)))
        result = run.distill(folder, model)
        content = json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n"
        (folder / RESULTS_FILE).write_text(content, encoding="utf-8")
        write_card(result, folder)
        write_report(result, validator, teacher, folder)
    return result


def _targets(
    teacher: Predictor, data: Path, split: str, records: list[Record], phrases: tuple[str, ...], options: DistillOptions
) -> DistillationTargets:
    _log.info("%s: the language model reads %d images", split, len(records))
    targets = compute_targets(teacher, data, records, phrases, options.batch, options.seed)
    if len(targets.kept) < len(records):
        _log.info("%s: masks of %d of them, drawn with the seed, are used in training", split, len(targets.kept))
    return targets


@dataclass(frozen=True)
class _Run:
    """One distillation."""

    teacher: Sa2VAPredictor
    validator: Validator
    train: DistillationTargets
    validation: DistillationTargets
    phrases: tuple[str, ...]
    options: DistillOptions
    training_images: str  # digests of all images seen in training, separated by blanks

    def distill(self, folder: Path, model: str) -> DistillationResult:
        """Train, score, and write the chosen candidate's files."""
        teacher = self.validator.score("language model", "the model that was distilled", self.teacher)
        candidates = tuple(train_candidates(self._training()))
        scores = tuple(self._score(candidate, teacher) for candidate in candidates)
        chosen = select_candidate(scores)
        student = self._build(candidates[chosen], scores[chosen].threshold)
        write_model(student, folder)
        write_graphs(student, folder)
        items = self._score_items(student, teacher)
        check_images = [
            read_image(image_path(self.validator.data, record)) for record in self.validator.records[:CHECK_IMAGES]
        ]
        return DistillationResult(
            model=model,
            weights=weights_digest(Path(model)) if Path(model).exists() else None,
            data=self.validator.data,
            data_fingerprint=fingerprint(self.validator.data),
            phrases=self.phrases,
            images=(len(self.train.cells), len(self.validation.cells)),
            images_with_masks=(len(self.train.kept), len(self.validation.kept)),
            teacher=teacher,
            scores=scores,
            candidates=candidates,
            chosen=chosen,
            checks=tuple(check_forms(student, folder, check_images)),
            int8=self._score_int8(student, folder, teacher),
            metrics=tuple(paired_metrics(*items)),
            items=items,
            scatter=prompt_scatter(self.train),
            seed=self.options.seed,
        )

    def _training(self) -> HeadTraining:
        grounding, minutes, seed = self.teacher.grounding, self.options.minutes, self.options.seed
        return HeadTraining(self.train, self.validation, grounding, len(self.phrases), minutes, seed)

    def _score(self, candidate: Candidate, teacher: ModelScore) -> ModelScore:
        predictor = self._to_predictor(self._build(candidate, threshold=0.5))
        return self.validator.score(candidate.name, candidate.meaning, predictor, teacher)

    def _score_items(self, student: PromptedSAM2, teacher: ModelScore) -> tuple[list[ItemResult], list[ItemResult]]:
        """All metrics of both models item by item, each at its own threshold."""
        predictor = self._to_predictor(copy.deepcopy(student))
        student_items = self.validator.items(predictor, predictor.threshold)
        return student_items, self.validator.items(self.teacher, teacher.threshold)

    def _to_predictor(self, student: PromptedSAM2) -> PromptedPredictor:
        """Moves the model, in place, to the teacher's device and dtype, as loading the exported folder there does."""
        return PromptedPredictor(place(student, self.teacher.model.device, self.teacher.model.dtype))

    def _build(self, candidate: Candidate, threshold: float) -> PromptedSAM2:
        """The candidate with the teacher's SAM2, as exported."""
        config = PromptedSAM2Config(
            phrases=self.phrases,
            grounding_config=self.teacher.model.config.grounding_config,
            head_width=candidate.head.width,
            threshold=threshold,
            mask_temperature=self.teacher.temperature,
            training_images=self.training_images,
        )
        return build_student(config, self.teacher.grounding, candidate.head)

    def _score_int8(self, student: PromptedSAM2, folder: Path, teacher: ModelScore) -> ModelScore:
        """The 8-bit graph at the threshold it is used with, that of the float32 model."""
        predictor = graphs.OnnxPredictor(student, folder / graphs.ONNX_INT8)
        items = self.validator.items(predictor, student.config.threshold)
        dice = torch.tensor([item.metrics["dice"] for item in items], dtype=torch.float64).numpy()
        score = ModelScore("ONNX, 8 bits", "8-bit weights of matrix products, for CPUs", student.config.threshold, dice)
        return with_difference(score, replace(teacher, difference=None), self.validator.groups(predictor))


def summary_lines(result: DistillationResult) -> Sequence[str]:
    """The summary for the console."""
    lines = [f"{result.teacher.name}: Dice {result.teacher.mean:.4f}"]
    for score in (*result.scores, result.int8):
        difference = score.difference
        interval = ""
        if difference and difference.low is not None:
            interval = f", 95 % {difference.low:+.4f} to {difference.high:+.4f}"
        mark = " <- exported" if score is result.student else ""
        mean_difference = difference.difference if difference else 0.0
        lines.append(f"{score.name}: Dice {score.mean:.4f}, difference {mean_difference:+.4f}{interval}{mark}")
    lines += [f"do not use it: {reason}" for reason in result.rejection_reasons]
    return lines
