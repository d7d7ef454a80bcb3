"""Predictor: images and phrases -> probabilities. The only inference code of the project.

The answer is given instead of decoded: what the language model would say up to [SEG] is fixed by training, so one pass
over question and answer gives the same hidden state at [SEG] as decoding it word by word. Each image is encoded once
and read once, each phrase goes on from there as a conversation of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar, cast

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
_Item = TypeVar("_Item")
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

    squares: (images, 3, side, side) uint8 in one or more blocks. objects: per image, how many masks are asked for.
    tiles: per image (tiles, 3, tile, tile) uint8. conversations: per image and object (tokens,) int64.
    """

    squares: tuple[Tensor, ...]
    objects: tuple[int, ...]
    tiles: list[Tensor]
    conversations: list[list[Tensor]]

    @staticmethod
    def together(parts: Sequence[Prepared]) -> Prepared:
        """One call of several; nothing is copied."""
        return Prepared(
            tuple(block for part in parts for block in part.squares),
            tuple(count for part in parts for count in part.objects),
            [tiles for part in parts for tiles in part.tiles],
            [conversations for part in parts for conversations in part.conversations],
        )


@dataclass(frozen=True)
class Asked:
    """Images and phrases, ready for the model. sizes: per image (width, height); phrases: per image.

    prepared: of the images with phrases; the images themselves are not kept.
    """

    sizes: tuple[tuple[int, int], ...]
    phrases: tuple[tuple[str, ...], ...]
    prepared: Prepared


class Predictor:
    """Runs a Sa2VA on images.

    threshold: used where a call names none; the one stored with the model. temperature: what mask logits are divided
    by before they become probabilities, fitted on a validation split; the threshold is one of those probabilities.
    """

    def __init__(self, model: Sa2VA, processor: Processor, threshold: float = 0.5, temperature: float = 1.0) -> None:
        self.model = model
        self.processor = processor
        self.threshold = check_threshold(threshold)
        self.temperature = check_temperature(temperature)
        self.views: ImageViews = processor.views
        self.grounding: SAM2Grounding = model.grounding
        self._tokenising = threading.Lock()

    def predict(
        self,
        images: Sequence[Image.Image],
        phrases: Sequence[Sequence[str]],
        threshold: float | None = None,
    ) -> list[Prediction]:
        """One Prediction per image. phrases: per image, what to segment. Any image mode and size is accepted.

        Raises ValueError for phrases that cannot be asked and where images and lists of phrases do not pair up.
        """
        return self.answer([self.ask(images, phrases)], threshold)

    def ask(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> Asked:
        """The first half of `predict`, all that needs no model: for any thread, while another is in `answer`."""
        if len(images) != len(phrases):
            raise ValueError(f"{len(images)} images for {len(phrases)} lists of phrases; give one list per image")
        single = next((listed for listed in phrases if isinstance(listed, str)), None)
        if single is not None:
            raise ValueError(f"phrases holds the text {single!r}; expected a list per image, e.g. [[{single!r}]]")
        questions = [[question_for(phrase) for phrase in listed] for listed in phrases]
        return replace(self._ask(images, questions), phrases=tuple(map(tuple, phrases)))

    def answer(self, asked: Sequence[Asked], threshold: float | None = None) -> list[Prediction]:
        """The second half of `predict`, for one thread at a time: all images of what was asked, as one batch.

        Where they do not fit into memory, the same can be asked again in smaller parts.
        """
        used = self.threshold if threshold is None else check_threshold(threshold)
        phrases = [listed for part in asked for listed in part.phrases]
        return [
            Prediction(probabilities, probabilities > used, listed, used)
            for probabilities, listed in zip(self._answer(asked), phrases)
        ]

    def probabilities(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Per image (questions, height, width) float32. questions: per image, whole questions in the user's words."""
        return self._answer([self._ask(images, questions)])

    def stream(self, batches: Iterable[Batch]) -> Iterator[list[np.ndarray]]:
        """`probabilities` of one batch (images, questions) after the other.

        While the model is at work on a batch, the next is drawn from `batches` and its views are made, in a thread.
        After an error nothing more comes; who would go on takes `ask` and `answer`.
        """
        for asked in one_ahead(lambda batch: self._ask(*batch), batches):
            yield self._answer([asked])

    @torch.inference_mode()
    def prompt_vectors(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> Tensor:
        """RGB images, each with a question -> what SAM2 is prompted with: (all questions, 256), image after image."""
        prepared = self.prepare(images, questions)
        with self._predicting():
            return self.prompts(prepared, self.encode(prepared))

    def _ask(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> Asked:
        asked = [number for number, listed in enumerate(questions) if listed]
        prepared = self.prepare([as_rgb(images[number]) for number in asked], [questions[number] for number in asked])
        return Asked(tuple(image.size for image in images), tuple(map(tuple, questions)), prepared)

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
            return Answer(text, self._at_size(logits, image.size))

    def prepare(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> Prepared:
        """All that is done on the CPU, for RGB images, in any thread. Raises ValueError for questions that cannot be
        asked.
        """
        squares = self.buffer(len(images))

        def views_of(number: int) -> Tensor:
            squares[number] = self.views.square_pixels(images[number])
            return self.views.tile_pixels(images[number])

        tiles = side_by_side(views_of, len(images))
        conversations = [self._conversations(asked, len(of_image)) for asked, of_image in zip(questions, tiles)]
        return Prepared((squares,), tuple(map(len, questions)), tiles, conversations)

    def squares(self, images: Sequence[Image.Image]) -> Tensor:
        """The square views of RGB images alone, as `buffer` holds them; in any thread."""
        squares = self.buffer(len(images))

        def fill(number: int) -> None:
            squares[number] = self.views.square_pixels(images[number])

        side_by_side(fill, len(images))
        return squares

    def buffer(self, images: int) -> Tensor:
        """(images, 3, side, side) uint8 for square views: channels last in memory, page-locked for a GPU."""
        side, on_gpu = self.views.sam_size, self.model.device.type == "cuda"
        with torch.inference_mode(False):  # threads, which do not inherit that mode, write into it
            return torch.empty((images, side, side, 3), dtype=torch.uint8, pin_memory=on_gpu).movedim(-1, 1)

    def _conversations(self, questions: Sequence[str], tiles: int) -> list[Tensor]:
        encode, image_tokens = self.processor.tokens.encode, tiles * self.processor.tokens_per_tile
        with self._tokenising:  # a tokenizer that is set up anew in one thread breaks the call of another
            return [encode([(question, ANSWER)], image_tokens)[0] for question in questions]

    def _answer(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        prepared, found = Prepared.together([part.prepared for part in asked]), []
        with self._predicting(), torch.inference_mode():
            logits = iter(self.mask_logits(prepared).split(prepared.objects)) if prepared.objects else iter(())
            for size, listed in ((size, listed) for part in asked for size, listed in zip(part.sizes, part.phrases)):
                if not listed:
                    found.append(np.zeros((0, size[1], size[0]), np.float32))
                    continue
                found.append(self._at_size(next(logits), size))
        return found

    def _at_size(self, logits: Tensor, size: tuple[int, int]) -> np.ndarray:
        width, height = size
        full = logits_to_image(logits, self.views.sam_size, height, width)
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
        pixels = self._normalised(prepared.tiles)
        return self.model.tile_tokens(self.model.encode_tiles(pixels))

    def _normalised(self, blocks: Sequence[Tensor]) -> Tensor:
        moved = [block.to(self.model.device, non_blocking=True) for block in blocks]
        pixels = torch.cat(moved) if len(moved) > 1 else moved[0]
        return normalise_pixels(pixels.contiguous()).to(self.model.dtype)

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


def one_ahead(make: Callable[[_Item], _Made], items: Iterable[_Item]) -> Iterator[_Made]:
    """What is made of each item, in order. While the caller is busy with one, a thread draws and makes the next."""
    made, end = map(make, items), object()
    with ThreadPoolExecutor(1) as thread:
        coming: Future[_Made | object] = thread.submit(next, made, end)
        while (one := coming.result()) is not end:
            coming = thread.submit(next, made, end)
            yield cast(_Made, one)


def check_threshold(threshold: float) -> float:
    """A threshold between 0 and 1, both excluded; raises ValueError otherwise."""
    if not 0 < threshold < 1:
        raise ValueError(f"the threshold is {threshold}; expected a probability between 0 and 1")
    return float(threshold)


def check_temperature(temperature: float) -> float:
    """A temperature above 0; raises ValueError otherwise."""
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; expected a number above 0")
    return temperature
