"""PromptedSAM2Config: phrases and sizes of a model with fixed phrases. transformers imports this file by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

MODEL_TYPE = "vesselseg_sam2"


class PromptedSAM2Config(PretrainedConfig):
    """Configuration of `PromptedSAM2`.

    phrases: the phrases that the model can segment, one mask each. head_width: width of `PromptHead`.

    grounding_config, threshold, mask_temperature, training_images: as in `Sa2VAConfig`.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        phrases: Sequence[str] = ("blood vessel",),
        grounding_config: dict[str, Any] | None = None,
        head_width: int = 0,
        threshold: float = 0.5,
        mask_temperature: float = 1.0,
        training_images: str = "",
        **kwargs: Any,
    ) -> None:
        self.phrases = list(phrases)
        self.grounding_config = dict(grounding_config or {"variant": "tiny", "image_size": 1024})
        self.head_width = head_width
        self.threshold = threshold
        self.mask_temperature = mask_temperature
        self.training_images = training_images
        super().__init__(**kwargs)
