"""The small model's card and report: what it loses, when not to use it, masks of both models side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vesselseg.dataset.manifest import image_path
from vesselseg.distill import graphs
from vesselseg.distill.distillation import Distillation
from vesselseg.distill.measuring import SIMPLER_WITHIN, TOLERATED, Bench, Figures
from vesselseg.distill.teaching import FEATURE_BYTES
from vesselseg.evaluation.metrics import METRIC_TABLE
from vesselseg.evaluation.score_split import phrase_truths
from vesselseg.evaluation.scores import Scored
from vesselseg.imaging.read_image import read_image
from vesselseg.inference.load import load_predictor
from vesselseg.inference.predictor import Predictor
from vesselseg.machine import GIB
from vesselseg.reports.html import jpeg_data_uri, render
from vesselseg.reports.panels import choose_cases, difference, overlay

REPORT_FILE = "report.html"
_LARGEST = 512  # side of a panel's pictures in the page
CARD = """---
library_name: transformers
pipeline_tag: image-segmentation
tags: [sam2, vesselseg, medical, angiography]
---

# {phrases}: SAM2 without a language model

Distilled with vesselseg {version} from `{model}`: SAM2, prompted by {meaning}. It segments {phrases} and nothing else.

{verdict}

| | threshold | validation Dice | difference from the big model | 95 % interval |
|---|---|---|---|---|
{rows}

| | |
|---|---|
| data fingerprint | `{fingerprint}`, {train} training and {choosing} validation images |
| labels | {labels} |
| threshold | {threshold:.2f}, chosen on the validation split |
| SAM2 view | {side} x {side} pixels |

Prompts, threshold and the choice among the candidates all come from these validation images, so the figures flatter:
`python tools/eval.py` on the test split says what to expect. `report.html` shows masks of both models.

## Use

```python
from PIL import Image
from transformers import AutoModel

model = AutoModel.from_pretrained("path/to/this/folder", trust_remote_code=True).eval()
result = model.predict_forward(image=Image.open("angiogram.png"))
result["prediction_masks"][0]  # (1, height, width) bool
```

It needs torch, transformers 4.57, sam2, safetensors and pillow. Without torch: `python predict_onnx.py model_int8.onnx
PICTURE MASK.png` needs numpy, pillow and onnxruntime.

| file | what | probabilities differ by up to | mask pixels that differ |
|---|---|---|---|
{forms}

## Limits

The model knows what the training data of the big model and the images above showed. Other devices, views or contrast
agents may fail without a sign: a mask comes out in any case. It is not a medical device; do not decide on patients
with it.
"""
FORMS = {
    "model.safetensors": "torch, float32",
    graphs.PROGRAM: "`torch.export` program, float32",
    graphs.ONNX: "ONNX, float32",
    graphs.ONNX_INT8: "ONNX, weights in 8 bits",
}


def write_card(result: Distillation, folder: Path) -> None:
    """README.md."""
    rows = [(result.teacher, "-", "-"), *((one, *_difference(one)) for one in (result.small, result.int8))]
    text = CARD.format(
        phrases=", ".join(result.phrases),
        version=result.to_dict()["versions"]["vesselseg"],
        model=Path(result.model).name,
        meaning=result.small.meaning,
        verdict=_verdict(result),
        rows="\n".join(
            f"| {one.name} | {one.threshold:.2f} | {one.mean:.4f} | {away} | {within} |" for one, away, within in rows
        ),
        fingerprint=result.data_fingerprint,
        train=result.images[0],
        choosing=result.images[1],
        labels=_labels(result),
        threshold=result.small.threshold,
        side=_side(folder),
        forms="\n".join(
            f"| {one.file}, {one.bytes / 1e6:.0f} MB | {FORMS[one.file]} | {one.probability:.1e} | "
            f"{100 * one.mask_pixels:.4f} % |"
            for one in result.checks
        ),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _verdict(result: Distillation) -> str:
    if not result.objections:
        return f"It may stand in for the big model: no more than {TOLERATED:.2f} Dice is lost on the validation images."
    return "\n".join(["**It should not be used as it is:**", "", *(f"- {reason}" for reason in result.objections)])


def _labels(result: Distillation) -> str:
    """How many images' labels the tuned prompts saw."""
    train, choosing = (f"{some} of {all_of}" for some, all_of in zip(result.masks_of, result.images))
    seen = f"the tuned prompts learnt from those of {train} training images and stopped by {choosing} validation images"
    if result.masks_of == result.images:
        return seen
    room = f"{FEATURE_BYTES / GIB:.0f} GiB of features per split"
    return f"{seen}, drawn with seed {result.seed}: {room} are kept while training"


def _side(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["grounding_config"]["image_size"])


def _difference(one: Figures) -> tuple[str, str]:
    found = one.difference
    if found is None:
        return "-", "-"
    within = "-" if found.low is None else f"{found.low:+.4f} to {found.high:+.4f}"
    return f"{found.difference:+.4f}", within


def write_report(result: Distillation, bench: Bench, teacher: Predictor, folder: Path) -> Path:
    """report.html, one page without other files."""
    page = render(
        "distillation.html.j2",
        result=result,
        difference=_difference,
        metrics=[(METRIC_TABLE[one.name], one) for one in result.metrics],
        labels=_labels(result),
        panels=_panels(result, bench, teacher, folder),
        forms=FORMS,
        tolerated=TOLERATED,
        within=SIMPLER_WITHIN,
        versions=", ".join(f"{name} {version}" for name, version in result.to_dict()["versions"].items()),
    )
    (folder / REPORT_FILE).write_text(page, encoding="utf-8")
    return folder / REPORT_FILE


def _panels(result: Distillation, bench: Bench, teacher: Predictor, folder: Path) -> list[dict[str, Any]]:
    """Worst, median and best images of the small model, and the one that loses most."""
    small, big = result.scored
    lost = {(one.image, one.phrase): other.metrics["dice"] - one.metrics["dice"] for one, other in zip(small, big)}
    chosen = {rank: items[:1] for rank, items in choose_cases(small).items()}
    most = max(small, key=lambda item: lost[item.image, item.phrase])
    chosen["loses most"] = [most] if lost[most.image, most.phrase] > 0 else []
    loaded = load_predictor(folder, device=str(teacher.model.device))
    return [
        {
            "rank": rank,
            "scored": item,
            "lost": lost[item.image, item.phrase],
            **_pictures(result, bench, item, teacher, loaded),
        }
        for rank, items in chosen.items()
        for item in items
    ]


def _pictures(result: Distillation, bench: Bench, item: Scored, big: Predictor, small: Predictor) -> dict[str, Any]:
    record = next(record for record in bench.records if record.image == item.image)
    picture = read_image(image_path(bench.data, record))
    truth = phrase_truths(record, [item.phrase], picture.height, picture.width)[0]
    pixels = np.asarray(picture)
    masks = {
        name: predictor.predict([picture], [[item.phrase]], figures.threshold)[0].masks[0]
        for name, predictor, figures in (("big", big, result.teacher), ("small", small, result.small))
    }
    pictures: dict[str, Any] = {"image": pixels, "truth": overlay(pixels, truth)}
    pictures |= {name: difference(pixels, mask, truth) for name, mask in masks.items()}
    return {name: _shown(found) for name, found in pictures.items()}


def _shown(pixels: np.ndarray) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LARGEST, _LARGEST))
    return jpeg_data_uri(np.asarray(picture))
