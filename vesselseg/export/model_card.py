"""README.md of an exported folder; `card_results` adds the results of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vesselseg.models.sa2va import Sa2VA

BEGIN, END = "<!-- results: written by tools/model_card.py -->", "<!-- end of results -->"
CARD = """---
library_name: transformers
pipeline_tag: image-segmentation
tags: [sa2va, vesselseg, medical, angiography]
---

# Blood vessel segmentation with Sa2VA

Fine-tuned with vesselseg {version}. InternVL reads the image and the request, SAM2 segments.

| | |
|---|---|
| base | `{base}` |
| data fingerprint | `{fingerprint}` |
| trained for | {trained} |
| validation Dice | {dice} |
| threshold | {threshold:.2f}, {chosen} |
| SAM2 view | {sam_size} x {sam_size} pixels |

## Intended use

Research on blood vessels in angiograms similar to the training data, and pre-labelling with manual correction. Check
every mask against its image before using it.

{begin}
Not evaluated yet: run `vesselseg eval`, then `vesselseg report card`.
{end}

## Use

```python
from PIL import Image
from transformers import AutoModel, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
result = model.predict_forward(
    image=Image.open("angiogram.png"), text="<image>\\nPlease segment the blood vessel.", tokenizer=tokenizer
)
result["prediction_masks"][0]  # (1, height, width) bool
result["prediction_probs"][0]  # (1, height, width) float32
```

It needs torch, transformers 4.57 or 5, sam2, safetensors and pillow, but not vesselseg. The weights have the names of
the published Sa2VA folders.

## Limits

The model covers only what its training data show. With other devices, views, contrast agents or vessels it may fail
without warning, since it always returns a mask. Thin vessels are missed first, and vessels may be fragmented. The
threshold balances missed vessels against false positives and suits images like those it was chosen on. It is not a
medical device; do not decide on patients with it. Evaluate it on your own images (`vesselseg eval`) of patients
outside the training data.
"""


def write_model_card(folder: Path, model: Sa2VA, checkpoint: dict[str, Any]) -> None:
    """Write the card with the checkpoint's values; missing ones are given as unknown."""
    meta = checkpoint.get("meta", {})
    dice = meta.get("best_dice")
    iterations, epochs = meta.get("iter"), meta.get("epoch")
    text = CARD.format(
        begin=BEGIN,
        end=END,
        version=checkpoint.get("versions", {}).get("vesselseg", "unknown"),
        base=Path(checkpoint["model_config"]["base"]).name,
        fingerprint=checkpoint.get("data_fingerprint", "unknown"),
        trained=f"{iterations} iterations" + (f" ({epochs:.2f} epochs)" if epochs is not None else ""),
        dice=f"{dice:.4f}" if dice is not None else "unknown",
        threshold=model.config.threshold,
        chosen="a default, not chosen on a split" if checkpoint.get("published") else "chosen on the validation split",
        sam_size=model.grounding.image_size,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
