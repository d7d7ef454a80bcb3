"""Sources of predictions: an exported model, a training checkpoint, or a folder of masks or probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vesselseg.dataset.manifest import Record
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.prediction_folder import PredictionFolder
from vesselseg.imaging.mask_option import BY_EVIDENCE, MaskValues
from vesselseg.inference.options import DEFAULT_LOADING, LoadOptions

if TYPE_CHECKING:
    from vesselseg.inference.predictor import Predictor


class PredictionSource(Protocol):
    """Interface of all sources.

    threshold, threshold_origin: the default threshold and where it comes from. training_images: digests
    (``manifest.image_digests``) of the model's training images; empty: unknown.
    """

    path: Path
    threshold: float
    threshold_origin: str
    training_images: frozenset[str]

    @property
    def kind(self) -> str:
        """ "model", "probabilities" or "masks"."""

    def phrases(self, record: Record) -> tuple[str, ...]:
        """The phrases to score for an image, one item each; an empty phrase stands for all objects."""

    def check(self, sizes: dict[str, tuple[int, int]]) -> None:
        """Raise EvaluationError where a prediction of the images is missing or unusable; sizes: (height, width)."""

    def probabilities(self, records: Sequence[Record], images: Sequence[Image.Image]) -> list[NDArray[np.float32]]:
        """Per image (phrases, height, width) float32 in 0..1, in the order of ``phrases(record)``."""


class FolderSource:
    """A folder of masks or probabilities of any program; the objects of an image are scored as their union."""

    training_images: frozenset[str] = frozenset()

    def __init__(self, path: Path, records: Sequence[Record], mask_values: MaskValues = BY_EVIDENCE) -> None:
        """records: of the whole dataset. mask_values: what values of masks mean, if the user says so.

        Raises EvaluationError where files and images do not match."""
        self.path = Path(path)
        self._predictions = PredictionFolder(self.path, [record.image for record in records], mask_values)
        self.threshold = self._predictions.threshold
        self.threshold_origin = self._predictions.threshold_origin

    @property
    def kind(self) -> str:
        """ "probabilities" or "masks", known after ``check``."""
        return "probabilities" if self._predictions.holds_probabilities else "masks"

    def holds(self, image: str) -> bool:
        """Whether an image has a prediction, readable or not."""
        return self._predictions.holds(image)

    def phrases(self, record: Record) -> tuple[str, ...]:
        """One item per image: all of its objects."""
        return ("",)

    def check(self, sizes: dict[str, tuple[int, int]]) -> None:
        """Read every prediction once; raises EvaluationError that lists all missing and unusable ones."""
        self._predictions.check(sizes)

    def probabilities(self, records: Sequence[Record], images: Sequence[Image.Image]) -> list[NDArray[np.float32]]:
        """Per image (1, height, width) float32."""
        return [
            self._predictions.probabilities(record.image, (image.height, image.width))[None]
            for record, image in zip(records, images)
        ]


class ModelSource:
    """A model: every distinct phrase of an image is predicted and scored."""

    kind = "model"

    def __init__(self, path: Path, predictor: Predictor, records: Sequence[Record], training_images: str = "") -> None:
        """records: of the whole dataset, whose most frequent phrase is used for images without phrases.

        training_images: see ``Sa2VAConfig``.
        """
        self.path = Path(path)
        self.threshold = float(predictor.threshold)
        self.threshold_origin = "stored with the model"
        self.training_images = frozenset(training_images.split())
        self._predictor = predictor
        counted = Counter(phrase for record in records for phrase in record.phrases)
        self._most_frequent_phrase = counted.most_common(1)[0][0] if counted else ""

    def phrases(self, record: Record) -> tuple[str, ...]:
        """The distinct phrases of the image, in order; objects that share a phrase are scored as their union."""
        return tuple(dict.fromkeys(record.phrases)) or (self._most_frequent_phrase,)

    def check(self, sizes: dict[str, tuple[int, int]]) -> None:
        """Raise EvaluationError where the dataset has no phrase; a model can predict any image."""
        if not self._most_frequent_phrase:
            raise EvaluationError("annotations.json contains no phrase to predict")

    def probabilities(self, records: Sequence[Record], images: Sequence[Image.Image]) -> list[NDArray[np.float32]]:
        """Per image (phrases, height, width) float32."""
        predictions = self._predictor.predict(images, [self.phrases(record) for record in records])
        return [prediction.probabilities for prediction in predictions]


def open_predictions(
    path: Path, records: Sequence[Record], loading: LoadOptions = DEFAULT_LOADING, mask_values: MaskValues = BY_EVIDENCE
) -> PredictionSource:
    """The source at path: a ``.pth`` file is a checkpoint, a folder with ``config.json`` a model, any other
    predictions.

    records: of the whole dataset. loading: how to load a model. mask_values: see `FolderSource`.
    Raises EvaluationError for anything else.
    """
    path = Path(path)
    if path.is_dir() and not (path / "config.json").exists():
        return FolderSource(path, records, mask_values)
    if not path.exists():
        raise EvaluationError(
            f"{path} does not exist; expected an exported model's folder, a training checkpoint (.pth) "
            "or a folder of masks or probabilities"
        )
    if path.is_file() and path.suffix not in (".pth", ".pt"):
        raise EvaluationError(f"{path}: expected a folder, or a training checkpoint ending in .pth")
    predictor = loading.predictor(path)
    return ModelSource(path, predictor, records, predictor.model.config.training_images)
