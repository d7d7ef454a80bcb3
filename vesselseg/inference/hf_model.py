"""The model class of an exported folder: `AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`.

An exported folder holds copies of this file and of those it imports, so it needs torch, transformers, sam2, safetensors
and pillow, and nothing of the training framework. The weights are stored under Sa2VA's published names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vesselseg.data.prompts import ANSWER, IMAGE_PLACEHOLDER
from vesselseg.inference.predictor import Predictor, check_threshold
from vesselseg.inference.processor import processor_for
from vesselseg.models.assemble import assemble
from vesselseg.models.checkpoints.published_layout import EMBEDDING, HEAD, to_ours
from vesselseg.models.checkpoints.shards import stream_folder
from vesselseg.models.internvl import build_language_model, build_vision_tower
from vesselseg.models.sa2va_config import NEW_TOKENS, Sa2VAConfig


class VesselSegModel(PreTrainedModel):
    """Sa2VA with everything merged, ready to predict."""

    config_class = Sa2VAConfig  # type: ignore[assignment]
    config: Sa2VAConfig
    base_model_prefix = ""
    main_input_name = "image"
    _supports_sdpa = True
    _no_split_modules = [  # noqa: RUF012 - as transformers declares it
        "Qwen2DecoderLayer",
        "LlamaDecoderLayer",
        "InternVLVisionLayer",
        "SAM2Grounding",
    ]

    def __init__(self, config: Sa2VAConfig) -> None:
        super().__init__(config)
        vision, language = build_vision_tower(config, "sdpa"), build_language_model(config, "sdpa")
        self.sa2va = assemble(config, vision, language, int(config.image_token_id))
        self._predictors: dict[int, Predictor] = {}

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: every weight comes from the folder."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> VesselSegModel:
        """Load a local folder, or a hub repository through its cache; further arguments as transformers takes them."""
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            names = ("revision", "cache_dir", "token", "local_files_only")
            download = {name: kwargs[name] for name in names if name in kwargs}
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), **download))
        config = kwargs.pop("config", None) or Sa2VAConfig.from_pretrained(folder)
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype", None) or "auto")
        if kwargs["dtype"] == "auto":
            kwargs["dtype"] = config.dtype or torch.float32
        model = super().from_pretrained(None, *args, config=config, state_dict=read_weights(folder, config), **kwargs)
        model.name_or_path = str(folder)
        return model

    def predict_forward(
        self,
        image: Image.Image,
        text: str = f"{IMAGE_PLACEHOLDER}\nPlease segment the blood vessel.",
        tokenizer: PreTrainedTokenizerBase | None = None,
        threshold: float | None = None,
    ) -> dict[str, Any]:
        """Segment what the text asks for.

        text: a question, `<image>` before it or not. threshold: None takes the one stored with the model.
        Returns `prediction`, the answer's text; `prediction_masks`, a list with one bool array (1, height, width);
        `prediction_probs`, likewise float32 between 0 and 1.
        """
        if tokenizer is None:
            raise ValueError("predict_forward needs tokenizer=AutoTokenizer.from_pretrained(FOLDER)")
        question = text.replace(IMAGE_PLACEHOLDER, "").strip()
        if not question:
            raise ValueError('text holds no question; e.g. "<image>\\nPlease segment the blood vessel."')
        cut = self.config.threshold if threshold is None else check_threshold(threshold)
        probabilities: np.ndarray = self.predictor(tokenizer).probabilities([image], [[question]])[0]
        return {
            "prediction": ANSWER + self.predictor(tokenizer).processor.tokens.template.end,
            "prediction_masks": [probabilities > cut],
            "prediction_probs": [probabilities],
        }

    def predictor(self, tokenizer: PreTrainedTokenizerBase) -> Predictor:
        """The predictor around this model; made once per tokenizer."""
        if id(tokenizer) not in self._predictors:
            processor = processor_for(self.config, tokenizer)
            predictor = Predictor(self.sa2va, processor, self.config.threshold, self.config.mask_temperature)
            self._predictors = {id(tokenizer): predictor}
        return self._predictors[id(tokenizer)]


def read_weights(folder: Path, config: Sa2VAConfig) -> dict[str, Tensor]:
    """The folder's tensors under this class's names; the new tokens' rows are views into the tables."""
    start, state = int(config.new_token_start or 0), {}
    for name, tensor in stream_folder(folder):
        for ours, piece in to_ours(name, tensor, config):
            state[f"sa2va.{ours}"] = piece
            if ours in (EMBEDDING, HEAD):
                rows = "embedding" if ours == EMBEDDING else "head"
                state[f"sa2va.new_tokens.{rows}"] = piece[start : start + len(NEW_TOKENS)].clone()
    return state
