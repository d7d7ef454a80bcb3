"""The predictor of a model with fixed phrases: SAM2 alone, prompted by vectors that it holds itself."""

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

_LONGEST = 600  # characters of a user's words: a question is longer than its phrase


class PromptedPredictor(Predictor):
    """Runs a PromptedSAM2 on images. phrases: all that it can be asked for.

    A user's words mean one of them where they are the phrase or one of the project's questions about it, whatever the
    blanks and, unless phrases differ in nothing else, the case of their letters.
    """

    model: PromptedSAM2
    phrases: tuple[str, ...]

    def __init__(self, model: PromptedSAM2) -> None:
        config = model.config
        views = ImageViews(tile_size=1, sam_size=model.grounding.image_size)
        super().__init__(model, views, config.threshold, config.mask_temperature)
        self.phrases = tuple(config.phrases)
        said = {text: number for number, phrase in enumerate(self.phrases) for text in _ways_to_say(phrase)}
        self._number_of = {text.casefold(): number for text, number in said.items()} | said  # a phrase's own case wins

    @property
    def wording(self) -> list[str]:
        """Its phrases."""
        return list(self.phrases)

    def phrase_for(self, text: str) -> str:
        """See `Predictor`: one of its phrases; raises UserError, a ValueError, for words that mean none of them."""
        return self.phrases[self.phrase_number(text)]

    def prepare(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> ModelInputs:
        """See `Predictor`; no tiles, and a conversation is the number of its phrase. Raises UserError, a ValueError,
        for a question about anything but its phrases.
        """
        numbers = [[torch.tensor(self.phrase_number(question)) for question in asked] for asked in questions]
        return ModelInputs((self.squares(images),), tuple(map(len, questions)), [], numbers)

    def prompts(self, prepared: ModelInputs, features: ImageFeatures) -> Tensor:
        """See `Predictor`."""
        return self.asked_for(prepared, self.model.prompts(features))

    def asked_for(self, prepared: ModelInputs, of_phrases: Tensor) -> Tensor:
        """(images, phrases, ...) of all phrases -> (all objects, ...) of those asked for, image after image."""
        numbers = [[int(number) for number in of_image] for of_image in prepared.conversations]
        return torch.cat([of_image[chosen] for of_image, chosen in zip(of_phrases, numbers)])

    def chat(self, image: Image.Image, question: str, longest: int = 128) -> Answer:
        """Raises UserError: there is no language model."""
        raise UserError(
            "this model has no language model to chat with; take the one that it was distilled from, "
            f"or ask it to segment {', '.join(map(repr, self.phrases))}"
        )

    def phrase_number(self, text: str) -> int:
        """Which of its phrases a user's words mean; raises UserError, a ValueError, where they mean none."""
        said = clean_phrase(text, _LONGEST)
        number = self._number_of.get(said, self._number_of.get(said.casefold()))
        if number is None:
            known = ", ".join(map(repr, self.phrases))
            raise UserError(
                f"this model segments only {known} and was asked {text[:100]!r}; ask for one of these, or take the "
                "model with a language model that it was distilled from"
            )
        return number


def _ways_to_say(phrase: str) -> list[str]:
    return [clean_phrase(phrase), *(question_for(phrase, choice) for choice in range(len(QUESTIONS)))]


def is_prompted_folder(folder: Path) -> bool:
    """Whether a folder holds a model with fixed phrases."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE


def load_prompted(folder: Path, device: torch.device | str, dtype: torch.dtype) -> PromptedPredictor:
    """The predictor of a folder that tools/distill_prompt.py wrote. Raises WeightsError where it is damaged."""
    config = PromptedSAM2Config.from_pretrained(folder)
    try:
        model = build_prompted(config)
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{folder}/config.json: no sizes of a SAM2 ({error}); distil the model again") from None
    load_weights(model, own_names(stream_folder(folder)), str(folder))
    return PromptedPredictor(place(model, device, dtype).eval().requires_grad_(False))
