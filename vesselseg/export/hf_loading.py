"""`device_map` and `quantization_config` of transformers, as an exported model can follow them.

SAM2, the tables and the vision tower stay together on one device and at full precision: they are small, and some of
their weights are read outside of the calls at which accelerate moves inputs. Decoder layers go anywhere, and into 4 or
8 bits, as with `load_predictor`.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from vesselseg.models.internvl import build_language_model, build_vision_tower
from vesselseg.models.sa2va_config import Sa2VAConfig
from vesselseg.models.split_layers import split_layers

AT_FULL_PRECISION = ("vision_model", "projector", "seg_projector", "grounding", "language_model.lm_head")
WHOLE = ("vision_model", "projector", "new_tokens", "seg_projector", "grounding")
BESIDE_LAYERS = ("embed_tokens", "norm", "rotary_emb")
PLANNED = ("auto", "balanced", "balanced_low_0", "sequential")
_LAYER = re.compile(r"^sa2va\.language_model\.model\.layers\.\d+")


def settle_device_map(device_map: Any, config: Sa2VAConfig, dtype: torch.dtype, quantisation: Any = None) -> Any:
    """A `device_map` that this model can follow.

    device_map: as from_pretrained takes it. `auto` and its kin share the decoder layers out over all visible GPUs by
    bytes; without a GPU everything is on the CPU. dtype: of the weights. Raises ValueError where a map takes parts
    apart that must stay together.
    """
    if device_map in PLANNED:
        gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
        return shared_out(gpus, config, dtype, quantisation) if len(gpus) > 1 else {"": gpus[0] if gpus else "cpu"}
    if isinstance(device_map, dict):
        elsewhere = {name: place for name, place in device_map.items() if not _LAYER.match(name)}
        if (
            len({torch.device(place) for place in elsewhere.values() if place != "disk"}) > 1
            or "disk" in device_map.values()
        ):
            raise ValueError(
                f"device_map puts {elsewhere}: only decoder layers (sa2va.language_model.model.layers.N) may lie "
                'elsewhere than the rest, and nothing on the disk; take device_map="auto"'
            )
    return device_map


def shared_out(devices: list[torch.device], config: Sa2VAConfig, dtype: torch.dtype, quantisation: Any) -> Any:
    """Module names of `VesselSegModel` -> devices: the first holds everything but the others' decoder layers."""
    with torch.device("meta"):
        vision, language = build_vision_tower(config, "sdpa"), build_language_model(config, "sdpa")
    split = split_layers(vision, language, devices, dtype, _kind(quantisation))
    beside = [*WHOLE, "language_model.lm_head", *(f"language_model.model.{name}" for name in BESIDE_LAYERS)]
    layers = {f"sa2va.language_model.model.layers.{number}": place for number, place in enumerate(split.layers)}
    return {**{f"sa2va.{name}": split.main for name in beside}, **layers}


def settle_quantisation(quantisation: Any) -> Any:
    """A bitsandbytes configuration that leaves all but the decoder layers as they are, unless it says what to leave."""
    if hasattr(quantisation, "llm_int8_skip_modules") and quantisation.llm_int8_skip_modules is None:
        quantisation.llm_int8_skip_modules = [f"sa2va.{name}" for name in AT_FULL_PRECISION]
    return quantisation


def _kind(quantisation: Any) -> str | None:
    if getattr(quantisation, "load_in_4bit", False):
        return "nf4"
    return "int8" if getattr(quantisation, "load_in_8bit", False) else None
