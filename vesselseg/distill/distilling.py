"""A big model and a dataset -> the small model's folder: taught, measured, the winner exported and checked."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from vesselseg.dataset.manifest import Record, fingerprint, image_digests, image_path
from vesselseg.distill import graphs
from vesselseg.distill.distillation import Distillation
from vesselseg.distill.folder import check_forms, small_model, write_graphs, write_model
from vesselseg.distill.learning import Candidate, Teaching, candidates
from vesselseg.distill.measuring import Bench, Figures, compared, paired, scatter, winner
from vesselseg.distill.options import RESULTS_FILE, DistillOptions
from vesselseg.distill.report import write_card, write_report
from vesselseg.distill.teaching import (
    CHOOSING,
    TRAINING,
    Lesson,
    collect,
    default_phrase,
    lesson_records,
)
from vesselseg.errors import UserError
from vesselseg.evaluation.evaluator import Track, silent
from vesselseg.evaluation.scores import Scored
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
    track: Track = silent,
) -> Distillation:
    """Write the small model into out, whole or not at all.

    model: where the big one was loaded from, as it is named in the report. Raises UserError for a model that is small
    already, a dataset without validation images or without a phrase, and where out exists.
    """
    if not isinstance(teacher, Sa2VAPredictor):
        raise UserError(f"{model} is a distilled model already; name the model with a language model that it came from")
    phrases = clean_phrases(options.phrases or (default_phrase(data),))
    records = {split: lesson_records(data, split, phrases) for split in (TRAINING, CHOOSING)}
    with whole_folder(out, force, RESULTS_FILE) as folder:
        bench = Bench(data, records[CHOOSING], options.batch, track)
        seen = {*teacher.model.config.training_images.split(), *image_digests(data, records[TRAINING]).values()}
        train, choosing = (_lesson(teacher, data, split, records[split], phrases, options) for split in records)
        result = _Run(teacher, bench, train, choosing, phrases, options, " ".join(sorted(seen))).run(folder, model)
        content = json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n"
        (folder / RESULTS_FILE).write_text(content, encoding="utf-8")
        write_card(result, folder)
        write_report(result, bench, teacher, folder)
    return result


def _lesson(
    teacher: Predictor, data: Path, split: str, records: list[Record], phrases: tuple[str, ...], options: DistillOptions
) -> Lesson:
    _log.info("%s: the language model reads %d images", split, len(records))
    lesson = collect(teacher, data, records, phrases, options.batch, options.seed)
    if len(lesson.kept) < len(records):
        _log.info("%s: masks are learnt from %d of them, drawn with the seed", split, len(lesson.kept))
    return lesson


@dataclass(frozen=True)
class _Run:
    teacher: Sa2VAPredictor
    bench: Bench
    train: Lesson
    choosing: Lesson
    phrases: tuple[str, ...]
    options: DistillOptions
    training_images: str

    def run(self, folder: Path, model: str) -> Distillation:
        """Teach, measure, write the winner's files."""
        teacher = self.bench.figures("language model", "the model that was distilled", self.teacher)
        taught = tuple(candidates(self._teaching()))
        figures = tuple(self._figures(one, teacher) for one in taught)
        chosen = winner(figures)
        small = self._small(taught[chosen], figures[chosen].threshold)
        write_model(small, folder)
        write_graphs(small, folder)
        scored = self._scored(small, teacher)
        return Distillation(
            model=model,
            weights=weights_digest(Path(model)) if Path(model).exists() else None,
            data=self.bench.data,
            data_fingerprint=fingerprint(self.bench.data),
            phrases=self.phrases,
            images=(len(self.train.cells), len(self.choosing.cells)),
            masks_of=(len(self.train.kept), len(self.choosing.kept)),
            teacher=teacher,
            figures=figures,
            candidates=taught,
            chosen=chosen,
            checks=tuple(check_forms(small, folder, self._pictures())),
            int8=self._int8(small, folder, teacher),
            metrics=tuple(paired(*scored)),
            scored=scored,
            varying=scatter(self.train),
            seed=self.options.seed,
        )

    def _teaching(self) -> Teaching:
        grounding, minutes, seed = self.teacher.grounding, self.options.minutes, self.options.seed
        return Teaching(self.train, self.choosing, grounding, len(self.phrases), minutes, seed)

    def _figures(self, candidate: Candidate, teacher: Figures) -> Figures:
        loaded = self._as_the_big_one(self._small(candidate, threshold=0.5))
        return self.bench.figures(candidate.name, candidate.meaning, loaded, teacher)

    def _scored(self, small: PromptedSAM2, teacher: Figures) -> tuple[list[Scored], list[Scored]]:
        """Both models item by item, each at its own threshold."""
        loaded = self._as_the_big_one(copy.deepcopy(small))
        return self.bench.scored(loaded, loaded.threshold), self.bench.scored(self.teacher, teacher.threshold)

    def _as_the_big_one(self, small: PromptedSAM2) -> PromptedPredictor:
        """Moved, in place, to the big model's device and type, as a user loads the exported folder there."""
        return PromptedPredictor(place(small, self.teacher.model.device, self.teacher.model.dtype))

    def _small(self, candidate: Candidate, threshold: float) -> PromptedSAM2:
        """The candidate with the big model's SAM2, as it is exported."""
        config = PromptedSAM2Config(
            phrases=self.phrases,
            grounding_config=self.teacher.model.config.grounding_config,
            head_width=candidate.head.width,
            threshold=threshold,
            mask_temperature=self.teacher.temperature,
            training_images=self.training_images,
        )
        return small_model(config, self.teacher.grounding, candidate.head)

    def _int8(self, small: PromptedSAM2, folder: Path, teacher: Figures) -> Figures:
        """The 8-bit graph at the threshold that it will be used with, which is the float32 model's."""
        predictor = graphs.OnnxPredictor(small, folder / graphs.ONNX_INT8)
        items = self.bench.scored(predictor, small.config.threshold)
        dice = torch.tensor([item.metrics["dice"] for item in items], dtype=torch.float64).numpy()
        found = Figures("ONNX, 8 bits", "weights of products in 8 bits, for CPUs", small.config.threshold, dice)
        return compared(found, replace(teacher, difference=None), self.bench.groups(predictor))

    def _pictures(self) -> list[Image.Image]:
        return [read_image(image_path(self.bench.data, record)) for record in self.bench.records[:CHECK_IMAGES]]


def summary_lines(result: Distillation) -> Sequence[str]:
    """What the console says."""
    lines = [f"{result.teacher.name}: Dice {result.teacher.mean:.4f}"]
    for one in (*result.figures, result.int8):
        difference = one.difference
        within = (
            f", 95 % {difference.low:+.4f} to {difference.high:+.4f}"
            if difference and difference.low is not None
            else ""
        )
        mark = " <- exported" if one is result.small else ""
        away = difference.difference if difference else 0.0
        lines.append(f"{one.name}: Dice {one.mean:.4f}, difference {away:+.4f}{within}{mark}")
    lines += [f"do not use it: {reason}" for reason in result.objections]
    return lines
