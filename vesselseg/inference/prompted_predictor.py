"""The predictor of a model with fixed phrases: SAM2 alone, with learned prompt vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from vesselseg.dataset.image_views import ImageViews
from vesselseg.dataset.prompts import QUESTIONS, clean_phrase, question_for
from vesselseg.errors import UserError
from vesselseg.inference.predictor import Answer, ModelInputs, Predictor
from vesselseg.models.prompted_sam2 import PromptedSAM2
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
