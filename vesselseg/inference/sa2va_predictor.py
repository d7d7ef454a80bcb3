"""The predictor of a Sa2VA: the language model reads an image and produces a prompt vector for SAM2 per phrase.

The answer is teacher-forced instead of decoded: training fixes the text up to [SEG], so one pass over question and
answer gives the same hidden state at [SEG] as decoding token by token. Each image is encoded once and read once; each
phrase branches off from there as a separate conversation.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vesselseg.dataset.prompts import ANSWER
from vesselseg.imaging.rgb import to_rgb
from vesselseg.inference.greedy_decoding import greedy_decode, question_ids
from vesselseg.inference.predictor import Answer, ModelInputs, Predictor
from vesselseg.inference.processor import Processor
from vesselseg.inference.threads import map_in_threads
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.sam2_grounding import ImageFeatures


class Sa2VAPredictor(Predictor):
    """Runs a Sa2VA on images; it accepts any phrase."""

    model: Sa2VA

    def __init__(self, model: Sa2VA, processor: Processor, threshold: float = 0.5, temperature: float = 1.0) -> None:
        """threshold, temperature: see `Predictor`."""
        super().__init__(model, processor.views, threshold, temperature)
        self.processor = processor
        self._tokenizer_lock = threading.Lock()

    @property
    def prompt_format(self) -> Any:
        """The chat template."""
        return asdict(self.processor.tokens.template)

    @torch.inference_mode()
    def chat(self, image: Image.Image, question: str, max_new_tokens: int = 128) -> Answer:
        """See `Predictor`; decoded greedily, token by token."""
        inputs, tokens = self.build_inputs([to_rgb(image)], [[question]]), self.processor.tokens
        with self.eval_mode():
            tile_tokens = self._tile_tokens(inputs)  # (tiles, tokens per tile, hidden)
            ids = question_ids(tokens, question, tile_tokens.shape[:2].numel())
            end = cast(int, tokens.tokenizer.convert_tokens_to_ids(tokens.template.end))
            answer = greedy_decode(self.model, ids, tile_tokens, end, max_new_tokens)
            text = str(tokens.tokenizer.decode(list(answer.ids)))
            if not len(answer.prompts):
                return Answer(text, np.zeros((0, image.height, image.width), np.float32))
            image_of_object = torch.zeros(len(answer.prompts), dtype=torch.int64, device=self.model.device)
            logits = self.grounding.decode(self.encode(inputs), answer.prompts, image_of_object)  # (objects, h, w)
            return Answer(text, self.to_probabilities(logits, image.size))

    def build_inputs(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> ModelInputs:
        """See `Predictor`; with tiles for the language model and one conversation per question."""
        squares = self.allocate_squares(len(images))  # (images, 3, side, side)

        def fill_square(index: int) -> Tensor:
            """Write SAM2's view; return the tiles (tiles, 3, tile, tile)."""
            squares[index] = self.views.square_pixels(images[index])
            return self.views.tile_pixels(images[index])

        tiles = map_in_threads(fill_square, len(images))
        conversations = [self._conversations(listed, len(of_image)) for listed, of_image in zip(questions, tiles)]
        return ModelInputs((squares,), tuple(map(len, questions)), tiles, conversations)

    def prompts(self, inputs: ModelInputs, features: ImageFeatures) -> Tensor:
        """See `Predictor`; the language model computes them from the tiles alone."""
        conversations = self.model.pack_branches(inputs.conversations)
        hidden = self.model.read(conversations, self._tile_tokens(inputs))
        return self.model.prompts(hidden, conversations)  # (all objects, 256)

    def _tile_tokens(self, inputs: ModelInputs) -> Tensor:
        """(all tiles, tokens per tile, hidden)."""
        pixels = self._normalised(inputs.tiles)  # (all tiles, 3, tile, tile)
        return self.model.tile_tokens(self.model.encode_tiles(pixels))

    def _conversations(self, questions: Sequence[str], tiles: int) -> list[Tensor]:
        encode, image_tokens = self.processor.tokens.encode, tiles * self.processor.tokens_per_tile
        with self._tokenizer_lock:  # a tokenizer that one thread reconfigures breaks the call of another
            return [encode([(question, ANSWER)], image_tokens)[0] for question in questions]
