"""Predictor: images and phrases -> probabilities. The only inference code of the project.

The answer is given instead of decoded: what the language model would say up to [SEG] is fixed by training, so one pass
over question and answer gives the same hidden state at [SEG] as decoding it word by word. Each image is encoded once
and read once, each phrase goes on from there as a conversation of its own.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vesselseg.data.image_views import ImageViews, logits_to_image, normalise_pixels
from vesselseg.data.prompts import ANSWER, question_for
from vesselseg.data.rgb import as_rgb
from vesselseg.inference.free_decoding import decode_freely, question_ids
from vesselseg.inference.processor import Processor
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.sam2_grounding import ImageFeatures, SAM2Grounding

Batch = tuple[Sequence[Image.Image], Sequence[Sequence[str]]]  # images, and per image its questions
_Made = TypeVar("_Made")
_THREADS = min(8, os.cpu_count() or 1)  # that make the views of images


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


@dataclass(frozen=True)
class Answer:
    """What the model said itself, and what it showed: (times that it said [SEG], height, width) float32, 0 to 1."""

    text: str
    probabilities: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """What one call gives the model, in main memory.

    squares: (images, 3, side, side) uint8. objects: per image, how many masks are asked for. tiles: per image
    (tiles, 3, tile, tile) uint8. conversations: per image and object (tokens,) int64.
    """

    squares: Tensor
    objects: tuple[int, ...]
    tiles: list[Tensor]
    conversations: list[list[Tensor]]


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
        self.views: ImageViews = processor.views
        self.grounding: SAM2Grounding = model.grounding

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

    def probabilities(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Per image (questions, height, width) float32. questions: per image, whole questions in the user's words."""
        return next(self.stream([(images, questions)]))

    def stream(self, batches: Iterable[Batch]) -> Iterator[list[np.ndarray]]:
        """`probabilities` of one batch (images, questions) after the other.

        While the model is at work on a batch, the views of the next are made, so one batch more than that is held.
        """
        with ThreadPoolExecutor(1) as ahead:
            waiting: deque[tuple[Batch, Future[Prepared]]] = deque()
            for images, questions in batches:
                waiting.append(((images, questions), ahead.submit(self._prepare_asked, images, questions)))
                if len(waiting) > 1:
                    yield self._finish(*waiting.popleft())
            while waiting:
                yield self._finish(*waiting.popleft())

    @torch.inference_mode()
    def prompt_vectors(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> Tensor:
        """RGB images, each with a question -> what SAM2 is prompted with: (all questions, 256), image after image."""
        prepared = self.prepare(images, questions)
        with self._predicting():
            return self.prompts(prepared, self.encode(prepared))

    def _prepare_asked(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> Prepared:
        asked = [number for number, listed in enumerate(questions) if listed]
        return self.prepare([as_rgb(images[number]) for number in asked], [questions[number] for number in asked])

    @torch.inference_mode()
    def chat(self, image: Image.Image, question: str, longest: int = 128) -> Answer:
        """What the model itself says about an image, word by word, and a mask for each [SEG] in it.

        longest: tokens at most. Raises ValueError for a question that cannot be asked.
        """
        prepared, tokens = self.prepare([as_rgb(image)], [[question]]), self.processor.tokens
        with self._predicting():
            tile_tokens = self._tile_tokens(prepared)
            asked = question_ids(tokens, question, tile_tokens.shape[:2].numel())
            end = tokens.tokenizer.convert_tokens_to_ids(tokens.template.end)
            spoken = decode_freely(self.model, asked, tile_tokens, end, longest)
            text = tokens.tokenizer.decode(list(spoken.ids))
            if not len(spoken.prompts):
                return Answer(text, np.zeros((0, image.height, image.width), np.float32))
            image_of_object = torch.zeros(len(spoken.prompts), dtype=torch.int64, device=self.model.device)
            logits = self.grounding.decode(self.encode(prepared), spoken.prompts, image_of_object)
            return Answer(text, self._at_size(logits, image))

    def prepare(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> Prepared:
        """All that is done on the CPU, for RGB images. Raises ValueError for questions that cannot be asked."""
        squares = self.buffer(len(images))

        def views_of(number: int) -> Tensor:
            squares[number] = self.views.square_pixels(images[number])
            return self.views.tile_pixels(images[number])

        tiles = side_by_side(views_of, len(images))
        conversations = [self._conversations(asked, len(of_image)) for asked, of_image in zip(questions, tiles)]
        return Prepared(squares, tuple(map(len, questions)), tiles, conversations)

    def buffer(self, images: int) -> Tensor:
        """(images, 3, side, side) uint8 for square views: channels last in memory, page-locked for a GPU."""
        side, on_gpu = self.views.sam_size, self.model.device.type == "cuda"
        with torch.inference_mode(False):  # threads, which do not inherit that mode, write into it
            return torch.empty((images, side, side, 3), dtype=torch.uint8, pin_memory=on_gpu).movedim(-1, 1)

    def _conversations(self, questions: Sequence[str], tiles: int) -> list[Tensor]:
        encode, image_tokens = self.processor.tokens.encode, tiles * self.processor.tokens_per_tile
        return [encode([(question, ANSWER)], image_tokens)[0] for question in questions]

    def _finish(self, batch: Batch, preparing: Future[Prepared]) -> list[np.ndarray]:
        images, questions = batch
        prepared, found = preparing.result(), []
        with self._predicting(), torch.inference_mode():
            logits = iter(self.mask_logits(prepared).split(prepared.objects)) if prepared.objects else iter(())
            for image, asked in zip(images, questions):
                if not asked:
                    found.append(np.zeros((0, image.height, image.width), np.float32))
                    continue
                found.append(self._at_size(next(logits), image))
        return found

    def _at_size(self, logits: Tensor, image: Image.Image) -> np.ndarray:
        full = logits_to_image(logits, self.views.sam_size, image.height, image.width)
        probabilities: np.ndarray = torch.sigmoid(full / self.temperature).cpu().numpy()
        return probabilities

    def mask_logits(self, prepared: Prepared) -> Tensor:
        """(all objects, side / 4, side / 4) logits, with fine masks / 2, image after image."""
        features = self.encode(prepared)
        prompts = self.prompts(prepared, features)
        image_of_object = [image for image, count in enumerate(prepared.objects) for _ in range(count)]
        return self.grounding.decode(features, prompts, torch.tensor(image_of_object, device=prompts.device))

    def encode(self, prepared: Prepared) -> ImageFeatures:
        """SAM2's features of the images, each once."""
        return self.grounding.encode(self._normalised(prepared.squares))

    def prompts(self, prepared: Prepared, features: ImageFeatures) -> Tensor:
        """(all objects, 256), image after image. The language model makes them from the tiles alone."""
        conversations = self.model.pack_branches(prepared.conversations)
        hidden = self.model.read(conversations, self._tile_tokens(prepared))
        return self.model.prompts(hidden, conversations)

    def _tile_tokens(self, prepared: Prepared) -> Tensor:
        pixels = self._normalised(torch.cat(prepared.tiles))
        return self.model.tile_tokens(self.model.encode_tiles(pixels))

    def _normalised(self, pixels: Tensor) -> Tensor:
        moved = pixels.to(self.model.device, non_blocking=True).contiguous()
        return normalise_pixels(moved).to(self.model.dtype)

    @contextmanager
    def _predicting(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)


def side_by_side(make: Callable[[int], _Made], count: int) -> list[_Made]:
    """What is made of each number below count. Pillow resizes without holding Python's lock, so threads save time."""
    if count < 2:
        return [make(number) for number in range(count)]
    with ThreadPoolExecutor(min(count, _THREADS)) as pool:
        return list(pool.map(make, range(count)))


def check_threshold(threshold: float) -> float:
    """A threshold between 0 and 1, both excluded; raises ValueError otherwise."""
    if not 0 < threshold < 1:
        raise ValueError(f"the threshold is {threshold}; expected a probability between 0 and 1")
    return float(threshold)
