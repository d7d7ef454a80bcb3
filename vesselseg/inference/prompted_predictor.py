"""The predictor of a model with fixed phrases: SAM2 alone, with learned prompt vectors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vesselseg.dataset.image_views import ImageViews
from vesselseg.dataset.prompts import QUESTIONS, clean_phrase, question_for
from vesselseg.errors import UserError, WeightsError
from vesselseg.inference.predictor import Answer, ModelInputs, Predictor
from vesselseg.models.checkpoints.load import load_weights
from vesselseg.models.checkpoints.shards import stream_folder
from vesselseg.models.prompted_config import MODEL_TYPE, PromptedSAM2Config
from vesselseg.models.prompted_sam2 import PromptedSAM2, build_prompted, own_names, place
from vesselseg.models.sam2_grounding import ImageFeatures

_MAX_CHARACTERS = 600  # of a user's text: a question is longer than its phrase


class PromptedPredictor(Predictor):
    """Runs a PromptedSAM2 on images. phrases: the phrases that it can segment.

    A text matches a phrase if it is the phrase or one of the project's questions about it. White space is ignored, and
    so is case unless two phrases differ only in case.
    """

    model: PromptedSAM2
    phrases: tuple[str, ...]

    def __init__(self, model: PromptedSAM2) -> None:
        config = model.config
        views = ImageViews(tile_size=1, sam_size=model.grounding.image_size)
        super().__init__(model, views, config.threshold, config.mask_temperature)
        self.phrases = tuple(config.phrases)
        exact = {text: index for index, phrase in enumerate(self.phrases) for text in _phrasings(phrase)}
        self._index_of = {text.casefold(): index for text, index in exact.items()} | exact  # exact case takes priority

    @property
    def prompt_format(self) -> list[str]:
        """Its phrases."""
        return list(self.phrases)

    def resolve_phrase(self, text: str) -> str:
        """See `Predictor`; raises UserError, a ValueError, for a text that matches none of the phrases."""
        return self.phrases[self.phrase_index(text)]

    def build_inputs(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> ModelInputs:
        """See `Predictor`. There are no tiles, and a conversation is a phrase index, () int64.

        Raises UserError, a ValueError, for a question that matches none of the phrases.
        """
        indices = [[torch.tensor(self.phrase_index(question)) for question in of_image] for of_image in questions]
        return ModelInputs((self.square_views(images),), tuple(map(len, questions)), [], indices)

    def prompts(self, inputs: ModelInputs, features: ImageFeatures) -> Tensor:
        """See `Predictor`. (all objects, 256)."""
        return self.select_phrases(inputs, self.model.prompts(features))

    def select_phrases(self, inputs: ModelInputs, values: Tensor) -> Tensor:
        """(images, phrases, ...) for all phrases -> (all objects, ...) for the requested ones, image after image."""
        indices = [[int(index) for index in of_image] for of_image in inputs.conversations]
        return torch.cat([of_image[chosen] for of_image, chosen in zip(values, indices)])

    def chat(self, image: Image.Image, question: str, max_new_tokens: int = 128) -> Answer:
        """Raises UserError: the model has no language model."""
        raise UserError(
            "this model has no language model to chat with; use the model that it was distilled from, "
            f"or segment {', '.join(map(repr, self.phrases))} with this one"
        )

    def phrase_index(self, text: str) -> int:
        """Index of the phrase that a user's text matches; raises UserError, a ValueError, if it matches none."""
        cleaned = clean_phrase(text, _MAX_CHARACTERS)
        index = self._index_of.get(cleaned, self._index_of.get(cleaned.casefold()))
        if index is None:
            known = ", ".join(map(repr, self.phrases))
            raise UserError(
                f"this model segments only {known}, not {text[:100]!r}; request one of these, or use the model with a "
                "language model that it was distilled from"
            )
        return index


def _phrasings(phrase: str) -> list[str]:
    return [clean_phrase(phrase), *(question_for(phrase, choice) for choice in range(len(QUESTIONS)))]


def is_prompted_folder(folder: Path) -> bool:
    """Whether a folder contains a model with fixed phrases."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE


def load_prompted(folder: Path, device: torch.device | str, dtype: torch.dtype) -> PromptedPredictor:
    """The predictor of a folder that vesselseg distill wrote. Raises WeightsError if it is damaged."""
    config = PromptedSAM2Config.from_pretrained(folder)
    try:
        model = build_prompted(config)
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"{folder}/config.json: not a valid SAM2 configuration ({error}); distil the model again"
        ) from None
    load_weights(model, own_names(stream_folder(folder)), str(folder))
    return PromptedPredictor(place(model, device, dtype).eval().requires_grad_(False))
