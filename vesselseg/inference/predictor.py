"""Predictor: images and phrases -> probabilities. The only inference code of the project.

This module holds what all models share: image views, batches, mask decoding with SAM2, probabilities at the image's own
size. The subclasses `Sa2VAPredictor` and `PromptedPredictor` turn a question into a prompt vector for SAM2.
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
from vesselseg.imaging.rgb import to_rgb
from vesselseg.inference.flips import flipped_copies, mean_over_flips
from vesselseg.inference.threads import map_in_threads, prefetch
from vesselseg.models.sam2_grounding import ImageFeatures, SAM2Grounding

QuestionBatch = tuple[Sequence[Image.Image], Sequence[Sequence[str]]]  # images, and the questions about each image


class MaskModel(Protocol):
    """A torch module that contains SAM2."""

    config: Any
    grounding: SAM2Grounding
    training: bool

    @property
    def device(self) -> torch.device:
        """The device that the image views are moved to."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the image views are converted to."""

    def train(self, mode: bool = True) -> Any:
        """See `torch.nn.Module.train`."""

    def state_dict(self) -> dict[str, Tensor]:
        """See `torch.nn.Module.state_dict`."""


@dataclass(frozen=True)
class Prediction:
    """The result for one image.

    probabilities: (phrases, height, width) float32, 0 to 1, at the image's own size.
    masks: (phrases, height, width) bool, probability > threshold.
    """

    probabilities: np.ndarray
    masks: np.ndarray
    phrases: tuple[str, ...]
    threshold: float

    @classmethod
    def from_probabilities(cls, probabilities: np.ndarray, phrases: Sequence[str], threshold: float) -> Prediction:
        """Threshold the probabilities (phrases, height, width); raises ValueError for a threshold outside 0 to 1."""
        threshold = check_threshold(threshold)
        return cls(probabilities, probabilities > threshold, tuple(phrases), threshold)

    def with_threshold(self, threshold: float) -> Prediction:
        """The same probabilities, masked at another threshold."""
        return Prediction.from_probabilities(self.probabilities, self.phrases, threshold)


@dataclass(frozen=True)
class Answer:
    """A decoded answer: its text, and one probability map per [SEG] token in it."""

    text: str
    probabilities: np.ndarray  # ([SEG] tokens, height, width) float32, 0 to 1


@dataclass(frozen=True)
class ModelInputs:
    """Tensors of one model call, in main memory."""

    squares: tuple[Tensor, ...]  # SAM2's view: (images, 3, side, side) uint8 in one or more blocks
    objects: tuple[int, ...]  # per image, the number of requested masks
    tiles: list[Tensor]  # the language model's view: per image (tiles, 3, tile, tile) uint8; empty without one
    conversations: list[list[Tensor]]  # per image and object (tokens,) int64

    @staticmethod
    def concat(parts: Sequence[ModelInputs]) -> ModelInputs:
        """Several calls as one; tensors are not copied."""
        return ModelInputs(
            tuple(block for part in parts for block in part.squares),
            tuple(count for part in parts for count in part.objects),
            [tiles for part in parts for tiles in part.tiles],
            [conversations for part in parts for conversations in part.conversations],
        )


@dataclass(frozen=True)
class Request:
    """Preprocessed images and phrases. The images themselves are not kept."""

    sizes: tuple[tuple[int, int], ...]  # per image (width, height)
    phrases: tuple[tuple[str, ...], ...]  # per image
    inputs: ModelInputs  # of the images that have phrases
    flipped: tuple[ModelInputs, ...] = ()  # of their flipped copies, one per flip; empty without test-time augmentation


class Predictor(ABC):
    """Runs a model on images.

    threshold: the probability stored with the model, used by calls that pass none. temperature: mask logits are divided
    by it before the sigmoid (temperature scaling, Guo et al. 2017); fitted on a validation split. phrases: the phrases
    that the model can segment; None if it accepts any.
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
    def prompt_format(self) -> Any:
        """JSON-compatible description of how a phrase becomes model input; part of the model's fingerprint."""

    @abstractmethod
    def build_inputs(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> ModelInputs:
        """Tensors of RGB images and questions; runs on the CPU, in any thread.

        questions: per image. Raises ValueError for a question that the model does not accept.
        """

    @abstractmethod
    def prompts(self, inputs: ModelInputs, features: ImageFeatures) -> Tensor:
        """SAM2's prompt vectors (all objects, 256), image after image. features: of the same images."""

    @abstractmethod
    def chat(self, image: Image.Image, question: str, max_new_tokens: int = 128) -> Answer:
        """The decoded answer to a question about an image, with a probability map per [SEG] token.

        Raises ValueError for a question that the model does not accept, and for a model without a language model.
        """

    def resolve_phrase(self, text: str) -> str:
        """The model's phrase for a user's text; raises ValueError for a text that the model does not accept."""
        return clean_phrase(text)

    def format_question(self, text: str) -> str:
        """The question that requests a user's phrase from the model; raises ValueError as `resolve_phrase` does."""
        return question_for(self.resolve_phrase(text))

    def predict(
        self,
        images: Sequence[Image.Image],
        phrases: Sequence[Sequence[str]],
        threshold: float | None = None,
        flips: bool = False,
    ) -> list[Prediction]:
        """One Prediction per image. phrases: per image, what to segment.

        Any image mode and size is accepted. EXIF orientation is ignored, so masks match the pixels passed in; use
        `open_frames` or `PIL.ImageOps.exif_transpose` to turn an image upright first. flips: average over the image
        and its flipped copies, in four times the time. Raises ValueError for phrases that the model does not accept and
        unless there is one list of phrases per image.
        """
        return self.run([self.preprocess(images, phrases, flips)], threshold)

    def preprocess(
        self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]], flips: bool = False
    ) -> Request:
        """The CPU half of `predict`; may run in any thread while another thread is in `run`."""
        _check_pairs(images, phrases, "phrases")
        questions = [[self.format_question(phrase) for phrase in listed] for listed in phrases]
        return replace(self._preprocess(images, questions, flips), phrases=tuple(map(tuple, phrases)))

    def run(self, requests: Sequence[Request], threshold: float | None = None) -> list[Prediction]:
        """The model half of `predict`, for one thread at a time: all images of the requests as one batch.

        After an out-of-memory error the same requests can be run again in smaller groups.
        """
        threshold = self.threshold if threshold is None else check_threshold(threshold)
        phrases = [of_image for request in requests for of_image in request.phrases]
        return [
            Prediction.from_probabilities(probabilities, of_image, threshold)
            for probabilities, of_image in zip(self._run(requests), phrases)
        ]

    def probabilities(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Per image (questions, height, width) float32. questions: per image, complete questions in the user's words.

        Raises ValueError as `predict` does.
        """
        return self._run([self._preprocess(images, questions, flips=False)])

    def stream(self, batches: Iterable[QuestionBatch], flips: bool = False) -> Iterator[list[np.ndarray]]:
        """`probabilities`, batch by batch.

        A thread draws and preprocesses the next batch while the model runs on the current one. An error ends the
        stream; call `preprocess` and `run` instead to continue after one.
        """
        for request in prefetch(lambda batch: self._preprocess(*batch, flips), batches):
            yield self._run([request])

    def mask_logits(self, inputs: ModelInputs) -> Tensor:
        """(all objects, mask side, mask side) logits, image after image; see `SAM2Grounding.mask_side`."""
        features = self.encode(inputs)
        prompts = self.prompts(inputs, features)
        image_of_object = [image for image, count in enumerate(inputs.objects) for _ in range(count)]
        return self.grounding.decode(features, prompts, torch.tensor(image_of_object, device=prompts.device))

    def encode(self, inputs: ModelInputs) -> ImageFeatures:
        """SAM2's image features; each image is encoded once."""
        return self.grounding.encode(self._normalised(inputs.squares))

    def to_probabilities(self, logits: Tensor, size: tuple[int, int]) -> np.ndarray:
        """One image's mask logits (objects, h, w) -> probabilities (objects, height, width) float32.

        size: (width, height) of the image.
        """
        width, height = size
        full = logits_to_image(logits, self.grounding.square_side, height, width)  # (objects, height, width)
        probabilities: np.ndarray = torch.sigmoid(full / self.temperature).cpu().numpy()
        return probabilities

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Evaluation mode (no dropout) inside the block; the previous mode is restored afterwards."""
        training = self.model.training
        self.model.train(False)
        try:
            yield
        finally:
            self.model.train(training)

    def square_views(self, images: Sequence[Image.Image]) -> Tensor:
        """SAM2's views of RGB images, laid out as `allocate_squares` does; runs in any thread."""
        squares = self.allocate_squares(len(images))

        def fill(index: int) -> None:
            squares[index] = self.views.square_pixels(images[index])

        map_in_threads(fill, len(images))
        return squares

    def allocate_squares(self, images: int) -> Tensor:
        """(images, 3, side, side) uint8, uninitialised: channels last in memory, pinned for a GPU."""
        side, on_gpu = self.views.sam_size, self.model.device.type == "cuda"
        # Worker threads do not inherit inference mode and could not write into a tensor that was created in it.
        with torch.inference_mode(False):
            return torch.empty((images, side, side, 3), dtype=torch.uint8, pin_memory=on_gpu).movedim(-1, 1)

    def _preprocess(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], flips: bool) -> Request:
        _check_pairs(images, questions, "questions")
        # Images without questions cost nothing: they are not shown to the model.
        kept = [index for index, of_image in enumerate(questions) if of_image]
        rgb, kept_questions = [to_rgb(images[index]) for index in kept], [questions[index] for index in kept]
        return Request(
            tuple(image.size for image in images),
            tuple(map(tuple, questions)),
            self.build_inputs(rgb, kept_questions),
            tuple(self.build_inputs(copies, kept_questions) for copies in flipped_copies(rgb)) if flips else (),
        )

    def _run(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """Probabilities (phrases, height, width) of every image."""
        flips = {bool(request.flipped) for request in requests}
        if len(flips) > 1:
            raise ValueError("some requests average over flips and some do not; run them in separate calls")
        plain = self._infer(requests, [request.inputs for request in requests])
        if flips != {True}:
            return plain
        flipped = (self._infer(requests, copies) for copies in zip(*(request.flipped for request in requests)))
        return mean_over_flips(plain, flipped)

    def _infer(self, requests: Sequence[Request], inputs: Sequence[ModelInputs]) -> list[np.ndarray]:
        """Probabilities of every image. inputs: per request, those of its images or of one kind of flipped copies."""
        batch, probabilities = ModelInputs.concat(inputs), []
        with self.eval_mode(), torch.inference_mode():
            # Per image with phrases: (objects, h, w).
            logits = iter(self.mask_logits(batch).split(batch.objects)) if batch.objects else iter(())
            for request in requests:
                for (width, height), phrases in zip(request.sizes, request.phrases):
                    if phrases:
                        probabilities.append(self.to_probabilities(next(logits), (width, height)))
                    else:
                        probabilities.append(np.zeros((0, height, width), np.float32))
        return probabilities

    def _normalised(self, blocks: Sequence[Tensor]) -> Tensor:
        """uint8 blocks (images, 3, h, w) -> one normalised tensor on the model's device, in its dtype."""
        moved = [block.to(self.model.device, non_blocking=True) for block in blocks]
        pixels = torch.cat(moved) if len(moved) > 1 else moved[0]
        return normalise_pixels(pixels.contiguous()).to(self.model.dtype)


def _check_pairs(images: Sequence[Image.Image], texts: Sequence[Sequence[str]], what: str) -> None:
    """Raises ValueError unless there is one list of texts per image. what: "phrases" or "questions"."""
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images for {len(texts)} lists of {what}; give one list per image")
    single = next((of_image for of_image in texts if isinstance(of_image, str)), None)
    if single is not None:
        raise ValueError(f"{what} holds the text {single!r}; expected a list per image, e.g. [[{single!r}]]")


def check_threshold(threshold: float) -> float:
    """The threshold as a float; raises ValueError unless it is between 0 and 1, both excluded."""
    if not 0 < threshold < 1:
        raise ValueError(f"the threshold is {threshold}; expected a probability between 0 and 1")
    return float(threshold)


def check_temperature(temperature: float) -> float:
    """The temperature; raises ValueError unless it is above 0."""
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; expected a number above 0")
    return temperature
