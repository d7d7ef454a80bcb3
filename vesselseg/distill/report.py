"""The student's model card and report: its loss, when not to use it, masks of both models side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vesselseg.dataset.manifest import image_path
from vesselseg.distill import graphs
from vesselseg.distill.result import DistillationResult
from vesselseg.distill.targets import MAX_FEATURE_BYTES
from vesselseg.distill.validation import MAX_DICE_LOSS, TIE_MARGIN, ModelScore, Validator
from vesselseg.evaluation.metrics import METRIC_TABLE
from vesselseg.evaluation.result_types import ItemResult
from vesselseg.evaluation.score_split import phrase_truths
from vesselseg.imaging.read_image import read_image
from vesselseg.inference.load import load_predictor
from vesselseg.inference.predictor import Predictor
from vesselseg.machine import GIB
from vesselseg.reports.html import jpeg_data_uri, render
from vesselseg.reports.panels import difference, overlay, select_cases

REPORT_FILE = "report.html"
_MAX_SIDE = 512  # pixels of a panel in the page
CARD = """---
library_name: transformers
pipeline_tag: image-segmentation
tags: [sam2, vesselseg, medical, angiography]
---

# {phrases}: SAM2 without a language model

Distilled with vesselseg {version} from `{model}`: SAM2, prompted by {meaning}. It segments only {phrases}.

{verdict}

| | threshold | validation Dice | difference from the original model | 95 % interval |
|---|---|---|---|---|
{rows}

| | |
|---|---|
| data fingerprint | `{fingerprint}`, {train} training and {choosing} validation images |
| labels | {labels} |
| threshold | {threshold:.2f}, chosen on the validation split |
| SAM2 view | {side} x {side} pixels |

Prompts, threshold and the choice among the candidates all depend on these validation images, so the figures are
optimistic: measure the expected performance with `vesselseg eval` on the test split. `report.html` shows masks of
both models.

## Use

```python
from PIL import Image
from transformers import AutoModel

model = AutoModel.from_pretrained("path/to/this/folder", trust_remote_code=True).eval()
result = model.predict_forward(image=Image.open("angiogram.png"))
result["prediction_masks"][0]  # (1, height, width) bool
```

It needs torch, transformers 4.57, sam2, safetensors and pillow. Without torch: `python predict_onnx.py model_int8.onnx
IMAGE MASK.png` needs numpy, pillow and onnxruntime.

| file | format | largest difference of probabilities | differing mask pixels |
|---|---|---|---|
{forms}

## Limits

The model covers only what the training data of the original model and the images above show. With other devices, views
or contrast agents it may fail without warning, since it always returns a mask. It is not a medical device; do not
decide on patients with it.
"""
FORMS = {
    "model.safetensors": "torch, float32",
    graphs.PROGRAM: "`torch.export` program, float32",
    graphs.ONNX: "ONNX, float32",
    graphs.ONNX_INT8: "ONNX, 8-bit weights",
}


def write_card(result: DistillationResult, folder: Path) -> None:
    """Write README.md."""
    rows = [(result.teacher, "-", "-")]
    rows += [(score, *_difference(score)) for score in (result.student, result.int8)]
    grounding = json.loads((folder / "config.json").read_text(encoding="utf-8"))["grounding_config"]
    text = CARD.format(
        phrases=", ".join(result.phrases),
        version=result.to_dict()["versions"]["vesselseg"],
        model=Path(result.model).name,
        meaning=result.student.meaning,
        verdict=_verdict(result),
        rows="\n".join(
            f"| {score.name} | {score.threshold:.2f} | {score.mean:.4f} | {difference} | {interval} |"
            for score, difference, interval in rows
        ),
        fingerprint=result.data_fingerprint,
        train=result.images[0],
        choosing=result.images[1],
        labels=_labels(result),
        threshold=result.student.threshold,
        side=int(grounding["image_size"]),
        forms="\n".join(
            f"| {check.file}, {check.bytes / 1e6:.0f} MB | {FORMS[check.file]} | {check.probability:.1e} | "
            f"{100 * check.mask_pixels:.4f} % |"
            for check in result.checks
        ),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _verdict(result: DistillationResult) -> str:
    if not result.rejection_reasons:
        return f"It may replace the original model: it loses at most {MAX_DICE_LOSS:.2f} Dice on the validation images."
    return "\n".join(["**It should not be used:**", "", *(f"- {reason}" for reason in result.rejection_reasons)])


def _labels(result: DistillationResult) -> str:
    """The number of images whose labels the tuned prompts were trained on."""
    train, validation = (f"{some} of {total}" for some, total in zip(result.images_with_masks, result.images))
    text = (
        f"the tuned prompts used those of {train} training images, and of {validation} validation images for stopping"
    )
    if result.images_with_masks == result.images:
        return text
    limit = f"{MAX_FEATURE_BYTES / GIB:.0f} GiB of features per split"
    return f"{text}, drawn with seed {result.seed}: {limit} are kept in training"


def _difference(score: ModelScore) -> tuple[str, str]:
    """(difference from the teacher, its interval)."""
    difference = score.difference
    if difference is None:
        return "-", "-"
    interval = "-" if difference.low is None else f"{difference.low:+.4f} to {difference.high:+.4f}"
    return f"{difference.difference:+.4f}", interval


def write_report(result: DistillationResult, validator: Validator, teacher: Predictor, folder: Path) -> Path:
    """Write report.html, a page without other files."""
    page = render(
        "distillation.html.j2",
        result=result,
        difference=_difference,
        metrics=[(METRIC_TABLE[metric.name], metric) for metric in result.metrics],
        labels=_labels(result),
        panels=_panels(result, validator, teacher, folder),
        forms=FORMS,
        tolerated=MAX_DICE_LOSS,
        margin=TIE_MARGIN,
        versions=", ".join(f"{name} {version}" for name, version in result.to_dict()["versions"].items()),
    )
    (folder / REPORT_FILE).write_text(page, encoding="utf-8")
    return folder / REPORT_FILE


def _panels(result: DistillationResult, validator: Validator, teacher: Predictor, folder: Path) -> list[dict[str, Any]]:
    """The student's worst, median and best images, and the one with the largest loss of Dice."""
    student_items, teacher_items = result.items
    lost = {
        (item.image, item.phrase): original.metrics["dice"] - item.metrics["dice"]
        for item, original in zip(student_items, teacher_items)
    }
    chosen = {rank: items[:1] for rank, items in select_cases(student_items).items()}
    worst = max(student_items, key=lambda item: lost[item.image, item.phrase])
    chosen["largest loss"] = [worst] if lost[worst.image, worst.phrase] > 0 else []
    student = load_predictor(folder, device=str(teacher.model.device))
    return [
        {
            "rank": rank,
            "scored": item,
            "lost": lost[item.image, item.phrase],
            **_images(result, validator, item, teacher, student),
        }
        for rank, items in chosen.items()
        for item in items
    ]


def _images(
    result: DistillationResult, validator: Validator, item: ItemResult, teacher: Predictor, student: Predictor
) -> dict[str, Any]:
    """Name -> image of a panel, as a data URI."""
    record = next(record for record in validator.records if record.image == item.image)
    image = read_image(image_path(validator.data, record))
    truth = phrase_truths(record, [item.phrase], image.height, image.width)[0]
    pixels = np.asarray(image)
    masks = {
        name: predictor.predict([image], [[item.phrase]], score.threshold)[0].masks[0]
        for name, predictor, score in (("teacher", teacher, result.teacher), ("student", student, result.student))
    }
    images: dict[str, Any] = {"image": pixels, "truth": overlay(pixels, truth)}
    images |= {name: difference(pixels, mask, truth) for name, mask in masks.items()}
    return {name: _thumbnail(panel) for name, panel in images.items()}


def _thumbnail(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return jpeg_data_uri(np.asarray(image))
