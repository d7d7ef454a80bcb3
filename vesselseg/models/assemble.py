"""Assemble a Sa2VA from its parts."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from vesselseg.models.internvl import TileProjector
from vesselseg.models.new_tokens import NewTokens
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.sa2va_config import Sa2VAConfig
from vesselseg.models.sam2_grounding import SAM2Grounding
from vesselseg.models.seg_projector import SegProjector


def assemble(config: Sa2VAConfig, vision: InternVLVisionModel, language: PreTrainedModel, image_token_id: int) -> Sa2VA:
    """A Sa2VA of the given vision tower and language model; the smaller parts are built here with random weights."""
    hidden = int(config.llm_config["hidden_size"])
    return Sa2VA(
        config,
        vision_model=vision,
        projector=TileProjector(int(config.vision_config["hidden_size"]), hidden, config.downsample_ratio),
        language_model=language,
        new_tokens=NewTokens(int(config.new_token_start or 0), hidden),
        seg_projector=SegProjector(hidden),
        grounding=SAM2Grounding(config.grounding_config),
        image_token_id=image_token_id,
    )
