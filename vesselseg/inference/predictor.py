"""Predictor: images and phrases -> probabilities. The only inference code of the project.

The answer is given instead of decoded: what the language model would say up to [SEG] is fixed by training, so one pass
over question and answer gives the same hidden state at [SEG] as decoding it word by word. Each image is encoded once,
each phrase is a conversation of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vesselseg.data.image_views import logits_to_image
from vesselseg.data.prompts import ANSWER, question_for
from vesselseg.data.rgb import as_rgb
from vesselseg.inference.processor import Processor
from vesselseg.models.sa2va import Sa2VA


@dataclass(frozen=True)
class Prediction:
    """What was found in one image.

    probabilities: (phrases, height, width) float32, 0 to 1, at the image's own size.
    masks: (phrases, height, width) bool, probability > threshold.
    """

    probabilities: np.ndarray
    masks: np.ndarray
    phrases: tuple[str, ...]
    threshold: float

    def at(self, threshold: float) -> Prediction:
        """The same probabilities cut at another threshold."""
        return replace(self, masks=self.probabilities > check_threshold(threshold), threshold=threshold)


class Predictor:
    """Runs a Sa2VA on images.

    threshold: used where a call names none; the one stored with the model. temperature: what mask logits are divided
    by before they become probabilities, fitted on a validation split; the threshold is one of those probabilities.
    """

    def __init__(self, model: Sa2VA, processor: Processor, threshold: float = 0.5, temperature: float = 1.0) -> None:
        check_threshold(threshold)
        if not temperature > 0:
            raise ValueError(f"the temperature is {temperature}; expected a number above 0")
        self.model = model
        self.processor = processor
        self.threshold = threshold
        self.temperature = temperature

    def predict(
        self,
        images: Sequence[Image.Image],
        phrases: Sequence[Sequence[str]],
        threshold: float | None = None,
    ) -> list[Prediction]:
        """One Prediction per image. phrases: per image, what to segment. Any image mode and size is accepted.

        Raises ValueError for phrases that cannot be asked and where images and lists of phrases do not pair up.
        """
        if len(images) != len(phrases):
            raise ValueError(f"{len(images)} images for {len(phrases)} lists of phrases; give one list per image")
        single = next((listed for listed in phrases if isinstance(listed, str)), None)
        if single is not None:
            raise ValueError(f"phrases holds the text {single!r}; expected a list per image, e.g. [[{single!r}]]")
        used = self.threshold if threshold is None else check_threshold(threshold)
        questions = [[question_for(phrase) for phrase in listed] for listed in phrases]
        return [
            Prediction(probabilities, probabilities > used, tuple(listed), used)
            for probabilities, listed in zip(self.probabilities(images, questions), phrases)
        ]

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Per image (questions, height, width) float32. questions: per image, whole questions in the user's words."""
        asked_of = [number for number, asked in enumerate(questions) if asked]
        found = [np.zeros((0, image.height, image.width), np.float32) for image in images]
        if not asked_of:
            return found
        training = self.model.training
        self.model.eval()
        try:
            asked = [questions[number] for number in asked_of]
            logits = self.mask_logits([as_rgb(images[number]) for number in asked_of], asked)
        finally:
            self.model.train(training)
        for number, of_image in zip(asked_of, logits.split([len(listed) for listed in asked])):
            image = images[number]
            full = logits_to_image(of_image, self.processor.views.sam_size, image.height, image.width)
            found[number] = torch.sigmoid(full / self.temperature).cpu().numpy()
        return found

    def mask_logits(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> Tensor:
        """RGB images, each with a question -> (all questions, side / 4, side / 4) logits, image after image.

        With fine masks, / 2.
        """
        model, views = self.model, self.processor.views
        tiles = [views.tiles(image) for image in images]
        squares = torch.stack([views.square(image) for image in images]).to(model.device)
        encoded = model.encode_views(torch.cat(tiles).to(model.device), squares)
        per_image = model.tile_tokens(encoded).split([len(of_image) for of_image in tiles])
        rows = torch.cat([of_image for of_image, asked in zip(per_image, questions) for _ in asked])
        conversations = model.pack(self._conversations(questions, [len(of_image) for of_image in tiles]))
        prompts = model.prompts(model.read(conversations, rows), conversations)
        return model.decode(encoded, squares, prompts, [len(asked) for asked in questions])

    def _conversations(self, questions: Sequence[Sequence[str]], tiles: Sequence[int]) -> list[Tensor]:
        rows = []
        for asked, count in zip(questions, tiles):
            for question in asked:
                ids, _ = self.processor.tokens.encode([(question, ANSWER)], count * self.processor.tokens_per_tile)
                rows.append(ids)
        return rows


def check_threshold(threshold: float) -> float:
    """A threshold between 0 and 1, both excluded; raises ValueError otherwise."""
    if not 0 < threshold < 1:
        raise ValueError(f"the threshold is {threshold}; expected a probability between 0 and 1")
    return float(threshold)
