"""Predictor: images and phrases -> probabilities. The only inference code of the project.

What all models have in common stands here: views, batches, masks out of SAM2's decoder, probabilities at the image's
own size. How a question becomes a prompt for SAM2 is each model's own: `Sa2VAPredictor`, `PromptedPredictor`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vesselseg.dataset.image_views import ImageViews, logits_to_image, normalise_pixels
from vesselseg.dataset.prompts import clean_phrase, question_for
from vesselseg.imaging.rgb import as_rgb
from vesselseg.inference.flips import mean_over_flips, mirrored
from vesselseg.inference.threads import one_ahead, side_by_side
from vesselseg.models.sam2_grounding import ImageFeatures, SAM2Grounding

Batch = tuple[Sequence[Image.Image], Sequence[Sequence[str]]]  # images, and per image its questions


class MaskModel(Protocol):
    """A torch module with SAM2 in it."""

    config: Any
    grounding: SAM2Grounding
    training: bool

    @property
    def device(self) -> torch.device:
        """Where its views go."""

    @property
    def dtype(self) -> torch.dtype:
        """And as what."""

    def train(self, mode: bool = True) -> Any:
        """As torch's."""

    def state_dict(self) -> dict[str, Tensor]:
        """As torch's."""


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

    @classmethod
    def cut(cls, probabilities: np.ndarray, phrases: Sequence[str], threshold: float) -> Prediction:
        """Probabilities and what of them is above the threshold; raises ValueError for a threshold outside 0 to 1."""
        used = check_threshold(threshold)
        return cls(probabilities, probabilities > used, tuple(phrases), used)

    def at(self, threshold: float) -> Prediction:
        """The same probabilities cut at another threshold."""
        return Prediction.cut(self.probabilities, self.phrases, threshold)


@dataclass(frozen=True)
class Answer:
    """What the model said itself, and what it showed: (times that it said [SEG], height, width) float32, 0 to 1."""

    text: str
    probabilities: np.ndarray


@dataclass(frozen=True)
class ModelInputs:
    """What one call gives the model, in main memory.

    squares: (images, 3, side, side) uint8 in one or more blocks. objects: per image, how many masks are asked for.
    tiles: per image (tiles, 3, tile, tile) uint8. conversations: per image and object (tokens,) int64.
    """

    squares: tuple[Tensor, ...]
    objects: tuple[int, ...]
    tiles: list[Tensor]
    conversations: list[list[Tensor]]

    @staticmethod
    def together(parts: Sequence[ModelInputs]) -> ModelInputs:
        """One call of several; nothing is copied."""
        return ModelInputs(
            tuple(block for part in parts for block in part.squares),
            tuple(count for part in parts for count in part.objects),
            [tiles for part in parts for tiles in part.tiles],
            [conversations for part in parts for conversations in part.conversations],
        )


@dataclass(frozen=True)
class Request:
    """Images and phrases, ready for the model. sizes: per image (width, height); phrases: per image.

    prepared: of the images with phrases; the images themselves are not kept. mirrored: likewise of each kind of their
    mirror images, where the mean over flips is asked for.
    """

    sizes: tuple[tuple[int, int], ...]
    phrases: tuple[tuple[str, ...], ...]
    prepared: ModelInputs
    mirrored: tuple[ModelInputs, ...] = ()


class Predictor(ABC):
    """Runs a model on images.

    threshold: used where a call names none; the one stored with the model. temperature: what mask logits are divided
    by before they become probabilities, fitted on a validation split; the threshold is one of those probabilities.
    phrases: all that it can be asked for; None where that is anything.
    """

    phrases: tuple[str, ...] | None = None

    def __init__(self, model: MaskModel, views: ImageViews, threshold: float, temperature: float) -> None:
        self.model = model
        self.views = views
        self.grounding = model.grounding
        self.threshold = check_threshold(threshold)
        self.temperature = check_temperature(temperature)

    @property
    @abstractmethod
    def wording(self) -> Any:
        """How a phrase is put to the model, as JSON holds it: with the weights and the views it decides the masks."""

    @abstractmethod
    def prepare(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> ModelInputs:
        """All that is done on the CPU, for RGB images, in any thread. Raises ValueError for questions that cannot be
        asked.
        """

    @abstractmethod
    def prompts(self, prepared: ModelInputs, features: ImageFeatures) -> Tensor:
        """What SAM2 is prompted with: (all objects, 256), image after image. features: of the same images."""

    @abstractmethod
    def chat(self, image: Image.Image, question: str, longest: int = 128) -> Answer:
        """What the model itself says about an image, in at most so many tokens, and a mask for each [SEG] in it.

        Raises ValueError for a question that cannot be asked, and where there is nobody to chat with.
        """

    def phrase_for(self, text: str) -> str:
        """The phrase that a user's words mean to this model, tidy; raises ValueError where it cannot be asked."""
        return clean_phrase(text)

    def question(self, text: str) -> str:
        """How the model is asked for what a user's words mean; raises ValueError as `phrase_for` does."""
        return question_for(self.phrase_for(text))

    def predict(
        self,
        images: Sequence[Image.Image],
        phrases: Sequence[Sequence[str]],
        threshold: float | None = None,
        flips: bool = False,
    ) -> list[Prediction]:
        """One Prediction per image. phrases: per image, what to segment.

        Any image mode and size is accepted. Pixels are taken as they lie: an EXIF orientation is not applied, so that
        masks fit the image that was given; `read_pictures` and `PIL.ImageOps.exif_transpose` turn one upright before.
        flips: probabilities are the mean over the image and its mirrored copies, in four times the time.
        Raises ValueError for phrases that cannot be asked and where images and lists of phrases do not pair up.
        """
        return self.run([self.preprocess(images, phrases, flips)], threshold)

    def preprocess(
        self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]], flips: bool = False
    ) -> Request:
        """The first half of `predict`, all that needs no model: for any thread, while another is in `run`."""
        _check_pairs(images, phrases, "phrases")
        questions = [[self.question(phrase) for phrase in listed] for listed in phrases]
        return replace(self._preprocess(images, questions, flips), phrases=tuple(map(tuple, phrases)))

    def run(self, asked: Sequence[Request], threshold: float | None = None) -> list[Prediction]:
        """The second half of `predict`, for one thread at a time: all images of what was asked, as one batch.

        Where they do not fit into memory, the same can be asked again in smaller parts.
        """
        used = self.threshold if threshold is None else check_threshold(threshold)
        phrases = [listed for part in asked for listed in part.phrases]
        return [Prediction.cut(found, listed, used) for found, listed in zip(self._run(asked), phrases)]

    def probabilities(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Per image (questions, height, width) float32. questions: per image, whole questions in the user's words.

        Raises ValueError as `predict` does.
        """
        return self._run([self._preprocess(images, questions, flips=False)])

    def stream(self, batches: Iterable[Batch], flips: bool = False) -> Iterator[list[np.ndarray]]:
        """`probabilities` of one batch (images, questions) after the other.

        While the model is at work on a batch, the next is drawn from `batches` and its views are made, in a thread.
        After an error nothing more comes; to go on after one, call `preprocess` and `run`.
        """
        for asked in one_ahead(lambda batch: self._preprocess(*batch, flips), batches):
            yield self._run([asked])

    def mask_logits(self, prepared: ModelInputs) -> Tensor:
        """(all objects, side / 4, side / 4) logits, with fine masks / 2, image after image."""
        features = self.encode(prepared)
        prompts = self.prompts(prepared, features)
        image_of_object = [image for image, count in enumerate(prepared.objects) for _ in range(count)]
        return self.grounding.decode(features, prompts, torch.tensor(image_of_object, device=prompts.device))

    def encode(self, prepared: ModelInputs) -> ImageFeatures:
        """SAM2's features of the images, each once."""
        return self.grounding.encode(self._normalised(prepared.squares))

    def at_size(self, logits: Tensor, size: tuple[int, int]) -> np.ndarray:
        """Mask logits of one image -> probabilities (objects, height, width) float32. size: its width and height."""
        width, height = size
        full = logits_to_image(logits, self.views.sam_size, height, width)
        probabilities: np.ndarray = torch.sigmoid(full / self.temperature).cpu().numpy()
        return probabilities

    @contextmanager
    def predicting(self) -> Iterator[None]:
        """The model without dropout; afterwards it trains on as before."""
        training = self.model.training
        self.model.train(False)
        try:
            yield
        finally:
            self.model.train(training)

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

    def _preprocess(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], flips: bool) -> Request:
        _check_pairs(images, questions, "questions")
        numbers = [number for number, listed in enumerate(questions) if listed]
        shown, asked = [as_rgb(images[number]) for number in numbers], [questions[number] for number in numbers]
        return Request(
            tuple(image.size for image in images),
            tuple(map(tuple, questions)),
            self.prepare(shown, asked),
            tuple(self.prepare(copies, asked) for copies in mirrored(shown)) if flips else (),
        )

    def _run(self, asked: Sequence[Request]) -> list[np.ndarray]:
        flips = {bool(part.mirrored) for part in asked}
        if len(flips) > 1:
            raise ValueError("some of what is asked wants the mean over flips and some does not; answer them apart")
        plain = self._found(asked, [part.prepared for part in asked])
        if flips != {True}:
            return plain
        of_mirrored = (self._found(asked, copies) for copies in zip(*(part.mirrored for part in asked)))
        return mean_over_flips(plain, of_mirrored)

    def _found(self, asked: Sequence[Request], views: Sequence[ModelInputs]) -> list[np.ndarray]:
        """Probabilities per image of what was asked, from these views of them."""
        prepared, found = ModelInputs.together(views), []
        with self.predicting(), torch.inference_mode():
            logits = iter(self.mask_logits(prepared).split(prepared.objects)) if prepared.objects else iter(())
            for size, listed in ((size, listed) for part in asked for size, listed in zip(part.sizes, part.phrases)):
                if not listed:
                    found.append(np.zeros((0, size[1], size[0]), np.float32))
                    continue
                found.append(self.at_size(next(logits), size))
        return found

    def _normalised(self, blocks: Sequence[Tensor]) -> Tensor:
        moved = [block.to(self.model.device, non_blocking=True) for block in blocks]
        pixels = torch.cat(moved) if len(moved) > 1 else moved[0]
        return normalise_pixels(pixels.contiguous()).to(self.model.dtype)


def _check_pairs(images: Sequence[Image.Image], asked: Sequence[Sequence[str]], what: str) -> None:
    """what: "phrases" or "questions". Raise ValueError unless there is a list of them per image."""
    if len(images) != len(asked):
        raise ValueError(f"{len(images)} images for {len(asked)} lists of {what}; give one list per image")
    single = next((listed for listed in asked if isinstance(listed, str)), None)
    if single is not None:
        raise ValueError(f"{what} holds the text {single!r}; expected a list per image, e.g. [[{single!r}]]")


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
