"""A tiny model of the real classes, built and saved as the tests need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vesselseg.models.build import build_model
from vesselseg.models.lora import checkpoint_state, trainable_state
from vesselseg.models.sa2va import Sa2VA

TRUNK = {
    "embed_dim": 16,
    "num_heads": 1,
    "stages": [1, 1, 2, 1],
    "global_att_blocks": [3],
    "window_pos_embed_bkg_spatial_size": [7, 7],
}
SAM2 = {"variant": "tiny", "image_size": 128, "trunk": TRUNK}
LORA = {"r": 4, "alpha": 8, "dropout": 0.0}


def model_arguments(base: Path, **changes: Any) -> dict[str, Any]:
    """Arguments of build_model."""
    return {"base": str(base), "sam2": SAM2, "lora": LORA, "trainable": {}, **changes}


def shaken_model(base: Path, seed: int = 0, **changes: Any) -> Sa2VA:
    """A model whose trainable parameters all have noise added, LoRA's zero matrices too, so that none is a no-op."""
    torch.manual_seed(seed)
    model = build_model(**model_arguments(base, **changes))
    with torch.no_grad():
        for parameter in trainable_state(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def save_checkpoint(model: Sa2VA, path: Path, arguments: dict[str, Any], **extra: Any) -> Path:
    """A checkpoint as training writes it."""
    state = {name: value.clone() for name, value in checkpoint_state(model).items()}
    content = {"state_dict": state, "model_config": arguments, "threshold": 0.4, "versions": {}, "meta": {}, **extra}
    torch.save(content, path)
    return path


def picture(seed: int, width: int = 150, height: int = 120) -> Image.Image:
    """A grey image with structure."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (height // 10, width // 10), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert("RGB")
