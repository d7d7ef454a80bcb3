"""Base folders of the published shapes without weights, and plans for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.models.checkpoints.full_shapes import FAMILIES, config_of
from vesselseg.config.load import load_config
from vesselseg.models.tiny_base import tiny_tokenizer
from vesselseg.training.memory_plan.plan import MemoryPlan, Target, plan_memory, usable_bytes

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def write_shapes(folder: Path, size: str) -> Path:
    """config.json of a published folder, and the tiny tokenizer."""
    config = config_of(FAMILIES[size])
    content = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "llm_config": config.llm_config,
        "vision_config": config.vision_config,
        "force_image_size": 448,
        "dynamic_image_size": True,
        "max_dynamic_patch": 12,
        "use_thumbnail": True,
        "downsample_ratio": 0.5,
        "template": "internvl2_5",
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(content))
    tiny_tokenizer().save_pretrained(folder)
    return folder


def leaf(name: str, base: Path, **options: Any) -> Any:
    """A config of configs/ with that base; options have __ for dots."""
    values = {key.replace("__", "."): value for key, value in options.items()}
    return load_config(CONFIGS / f"{name}.py", {"model.sa2va.base": str(base), **values})


def planned(name: str, base: Path, gpus: int, gib: float = 24.0, **options: Any) -> MemoryPlan:
    """The plan of such a config."""
    return plan_memory(leaf(name, base, **options), Target(gpus, usable_bytes(gib, gpus)))
