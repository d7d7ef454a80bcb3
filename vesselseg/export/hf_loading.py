"""`device_map` and `quantization_config` of transformers, adapted to what an exported model supports.

SAM2, the embedding tables and the vision tower stay on one device in full precision: they are small, and some of their
weights are read outside of the module calls at which accelerate moves inputs. Decoder layers can be on any device and
in 4 or 8 bits, as with `load_predictor`.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from vesselseg.models.internvl import build_language_model, build_vision_tower
from vesselseg.models.sa2va_config import Sa2VAConfig
from vesselseg.models.split_layers import split_layers

FULL_PRECISION_MODULES = ("vision_model", "projector", "seg_projector", "grounding", "language_model.lm_head")
UNSPLIT_MODULES = ("vision_model", "projector", "new_tokens", "seg_projector", "grounding")
# Modules of the language model's decoder other than its layers.
OUTSIDE_LAYERS = ("embed_tokens", "norm", "rotary_emb")
AUTOMATIC_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_LAYER = re.compile(r"^sa2va\.language_model\.model\.layers\.\d+")


def resolve_device_map(device_map: Any, config: Sa2VAConfig, dtype: torch.dtype, quantisation: Any = None) -> Any:
    """A `device_map` that this model supports.

    device_map: as in from_pretrained. `auto` and the other automatic maps distribute the decoder layers over all
    visible GPUs by bytes; without a GPU everything is on the CPU. dtype: of the weights. Raises ValueError for a map
    that separates parts that must stay together.
    """
    if device_map in AUTOMATIC_MAPS:
        gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
        if len(gpus) > 1:
            return distribute_layers(gpus, config, dtype, quantisation)
        return {"": gpus[0] if gpus else "cpu"}
    if isinstance(device_map, dict):
        others = {name: device for name, device in device_map.items() if not _LAYER.match(name)}
        devices = {torch.device(device) for device in others.values() if device != "disk"}
        if len(devices) > 1 or "disk" in device_map.values():
            raise ValueError(
                f"device_map has {others}: only decoder layers (sa2va.language_model.model.layers.N) may be on other "
                'devices than the rest, and nothing on disk; use device_map="auto"'
            )
    return device_map


def distribute_layers(devices: list[torch.device], config: Sa2VAConfig, dtype: torch.dtype, quantisation: Any) -> Any:
    """Module name of `VesselSegModel` -> device: everything but some decoder layers is on the first one."""
    with torch.device("meta"):
        vision, language = build_vision_tower(config, "sdpa"), build_language_model(config, "sdpa")
    split = split_layers(vision, language, devices, dtype, _kind(quantisation))
    modules = [*UNSPLIT_MODULES, "language_model.lm_head", *(f"language_model.model.{name}" for name in OUTSIDE_LAYERS)]
    layers = {f"sa2va.language_model.model.layers.{index}": device for index, device in enumerate(split.layers)}
    return {**{f"sa2va.{name}": split.main for name in modules}, **layers}


def resolve_quantisation(quantisation: Any) -> Any:
    """A bitsandbytes configuration that quantises decoder layers only, unless it names the modules to skip."""
    if hasattr(quantisation, "llm_int8_skip_modules") and quantisation.llm_int8_skip_modules is None:
        quantisation.llm_int8_skip_modules = [f"sa2va.{name}" for name in FULL_PRECISION_MODULES]
    return quantisation


def _kind(quantisation: Any) -> str | None:
    if getattr(quantisation, "load_in_4bit", False):
        return "nf4"
    return "int8" if getattr(quantisation, "load_in_8bit", False) else None
