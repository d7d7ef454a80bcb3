"""The predictor of a Sa2VA: the language model reads an image and makes a prompt for SAM2 of each phrase.

The answer is given instead of decoded: what the language model would say up to [SEG] is fixed by training, so one pass
over question and answer gives the same hidden state at [SEG] as decoding it word by word. Each image is encoded once
and read once, each phrase goes on from there as a conversation of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vesselseg.dataset.prompts import ANSWER
from vesselseg.imaging.rgb import as_rgb
from vesselseg.inference.free_decoding import decode_freely, question_ids
from vesselseg.inference.predictor import Answer, ModelInputs, Predictor
from vesselseg.inference.processor import Processor
from vesselseg.inference.threads import side_by_side
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.sam2_grounding import ImageFeatures


class Sa2VAPredictor(Predictor):
    """Runs a Sa2VA on images; any phrase can be asked for."""

    model: Sa2VA

    def __init__(self, model: Sa2VA, processor: Processor, threshold: float = 0.5, temperature: float = 1.0) -> None:
        """threshold, temperature: see `Predictor`."""
        super().__init__(model, processor.views, threshold, temperature)
        self.processor = processor
        self._tokenising = threading.Lock()

    @property
    def wording(self) -> Any:
        """The template of its conversations."""
        return asdict(self.processor.tokens.template)

    @torch.inference_mode()
    def chat(self, image: Image.Image, question: str, longest: int = 128) -> Answer:
        """See `Predictor`; decoded word by word."""
        prepared, tokens = self.prepare([as_rgb(image)], [[question]]), self.processor.tokens
        with self.predicting():
            tile_tokens = self._tile_tokens(prepared)
            asked = question_ids(tokens, question, tile_tokens.shape[:2].numel())
            end = tokens.tokenizer.convert_tokens_to_ids(tokens.template.end)
            spoken = decode_freely(self.model, asked, tile_tokens, end, longest)
            text = tokens.tokenizer.decode(list(spoken.ids))
            if not len(spoken.prompts):
                return Answer(text, np.zeros((0, image.height, image.width), np.float32))
            image_of_object = torch.zeros(len(spoken.prompts), dtype=torch.int64, device=self.model.device)
            logits = self.grounding.decode(self.encode(prepared), spoken.prompts, image_of_object)
            return Answer(text, self.at_size(logits, image.size))

    def prepare(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> ModelInputs:
        """See `Predictor`; tiles for the language model, and a conversation per question."""
        squares = self.buffer(len(images))

        def views_of(number: int) -> Tensor:
            squares[number] = self.views.square_pixels(images[number])
            return self.views.tile_pixels(images[number])

        tiles = side_by_side(views_of, len(images))
        conversations = [self._conversations(asked, len(of_image)) for asked, of_image in zip(questions, tiles)]
        return ModelInputs((squares,), tuple(map(len, questions)), tiles, conversations)

    def prompts(self, prepared: ModelInputs, features: ImageFeatures) -> Tensor:
        """See `Predictor`; the language model makes them from the tiles alone."""
        conversations = self.model.pack_branches(prepared.conversations)
        hidden = self.model.read(conversations, self._tile_tokens(prepared))
        return self.model.prompts(hidden, conversations)

    def _tile_tokens(self, prepared: ModelInputs) -> Tensor:
        pixels = self._normalised(prepared.tiles)
        return self.model.tile_tokens(self.model.encode_tiles(pixels))

    def _conversations(self, questions: Sequence[str], tiles: int) -> list[Tensor]:
        encode, image_tokens = self.processor.tokens.encode, tiles * self.processor.tokens_per_tile
        with self._tokenising:  # a tokenizer that is set up anew in one thread breaks the call of another
            return [encode([(question, ANSWER)], image_tokens)[0] for question in questions]
