"""The model class of a folder with fixed phrases: `AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`.

The folder contains copies of this file and of its imports. It needs torch, transformers, sam2, safetensors and pillow,
but no tokenizer and no language model.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from vesselseg.dataset.prompts import ANSWER, IMAGE_PLACEHOLDER
from vesselseg.inference.predictor import check_threshold
from vesselseg.inference.prompted_predictor import PromptedPredictor
from vesselseg.models.checkpoints.hub import pretrained_folder
from vesselseg.models.checkpoints.resolved_names import check_config_file
from vesselseg.models.checkpoints.shards import stream_folder
from vesselseg.models.prompted_config import PromptedSAM2Config
from vesselseg.models.prompted_sam2 import POSITIONS, build_prompted, own_names, set_positions_matrix
from vesselseg.models.sam2_grounding import move_buffers


class VesselSegSAM2Model(PreTrainedModel):
    """SAM2 with learned prompts for fixed phrases."""

    config_class = PromptedSAM2Config  # type: ignore[assignment]
    config: PromptedSAM2Config
    base_model_prefix = ""
    main_input_name = "squares"

    def __init__(self, config: PromptedSAM2Config) -> None:
        super().__init__(config)
        self.prompted = build_prompted(config)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Not needed: every weight comes from the folder."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> VesselSegSAM2Model:
        """Load a local folder or a hub repository; further arguments as in transformers."""
        folder = pretrained_folder(pretrained_model_name_or_path, kwargs)
        check_config_file(folder)
        config = kwargs.pop("config", None) or PromptedSAM2Config.from_pretrained(folder)
        state = {f"prompted.{name}": tensor for name, tensor in own_names(stream_folder(folder))}
        model = super().from_pretrained(None, *args, config=config, state_dict=state, **kwargs)
        move_buffers(model.prompted.grounding)
        set_positions_matrix(model.prompted, state[f"prompted.{POSITIONS}"])
        model.name_or_path = str(folder)
        return model

    def forward(self, squares: torch.Tensor) -> torch.Tensor:
        """squares: (images, 3, side, side), normalised. Returns mask logits (images, phrases, h, h)."""
        logits: torch.Tensor = self.prompted(squares)
        return logits

    def predict_forward(
        self, image: Image.Image, text: str | None = None, tokenizer: Any = None, threshold: float | None = None
    ) -> dict[str, Any]:
        """Segment one of the model's phrases.

        text: the phrase or a question about it, with or without a leading `<image>`; by default the first phrase.
        tokenizer: ignored; accepted for compatibility with `VesselSegModel`. threshold: by default the one stored with
        the model. Returns `prediction`, the answer that a language model would give; `prediction_masks`, a list with
        one bool array (1, height, width); `prediction_probs`, a list with one float32 array of the same shape, 0 to 1.
        """
        question = self.config.phrases[0] if text is None else text.replace(IMAGE_PLACEHOLDER, "")
        threshold = self.config.threshold if threshold is None else check_threshold(threshold)
        probabilities = self.predictor.probabilities([image], [[question]])[0]
        return {
            "prediction": ANSWER,
            "prediction_masks": [probabilities > threshold],
            "prediction_probs": [probabilities],
        }

    @cached_property
    def predictor(self) -> PromptedPredictor:
        """The predictor of this model."""
        return PromptedPredictor(self.prompted)
