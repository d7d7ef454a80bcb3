"""Key names and config of the `-hf` InternVL folders (transformers' own layout) -> ours."""

from __future__ import annotations

import re
from typing import Any

from transformers import InternVLConfig

from vesselseg.models.sa2va_config import LANGUAGE_FIELDS, Sa2VAConfig

_PREFIXES = (
    (re.compile(r"^(model\.)?vision_tower\."), "vision_model."),
    (re.compile(r"^(model\.)?multi_modal_projector\.layer_norm\."), "projector.norm."),
    (re.compile(r"^(model\.)?multi_modal_projector\."), "projector."),
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^language_model\.lm_head\."), "language_model.lm_head."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
)

VISION_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "attention_bias",
    "use_qk_norm",
    "hidden_act",
    "norm_type",
    "layer_norm_eps",
    "image_size",
    "patch_size",
)


def hf_name_to_ours(name: str) -> str:
    """`vision_tower.*`, `multi_modal_projector.*`, `language_model.*` -> ours, with or without the `model.` prefix."""
    for pattern, ours in _PREFIXES:
        if pattern.match(name):
            return pattern.sub(ours, name)
    return name


def config_from_hf(content: dict[str, Any]) -> Sa2VAConfig:
    """config.json of an `-hf` folder -> Sa2VAConfig; transformers leaves out what equals its own defaults."""
    known = {name: content[name] for name in ("downsample_ratio",) if name in content}
    for part, names in (("text_config", ("model_type", *LANGUAGE_FIELDS)), ("vision_config", VISION_FIELDS)):
        known[part] = {name: value for name, value in content[part].items() if name in names}
    complete = InternVLConfig(**known).to_dict()
    vision = complete["vision_config"]
    side = vision["image_size"][0] if isinstance(vision["image_size"], list) else vision["image_size"]
    patch = vision["patch_size"][0] if isinstance(vision["patch_size"], list) else vision["patch_size"]
    return Sa2VAConfig(
        llm_config=complete["text_config"],
        vision_config={
            "hidden_size": vision["hidden_size"],
            "num_hidden_layers": vision["num_hidden_layers"],
            "num_attention_heads": vision["num_attention_heads"],
            "intermediate_size": vision["intermediate_size"],
            "qkv_bias": vision.get("attention_bias", False),
            "qk_normalization": vision.get("use_qk_norm", False),
            "hidden_act": vision.get("hidden_act", "gelu"),
            "norm_type": vision.get("norm_type", "layer_norm"),
            "layer_norm_eps": vision.get("layer_norm_eps", 1e-6),
            "image_size": side,
            "patch_size": patch,
        },
        force_image_size=side,
        downsample_ratio=complete["downsample_ratio"],
    )
