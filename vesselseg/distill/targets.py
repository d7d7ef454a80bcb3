"""Distillation targets of a split: the teacher's prompts and SAM2's features; each image is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vesselseg.dataset.manifest import Record, image_path, read_split
from vesselseg.dataset.prompts import question_for
from vesselseg.errors import UserError
from vesselseg.evaluation.score_split import phrase_truths
from vesselseg.imaging.read_image import read_image
from vesselseg.inference.predictor import Predictor
from vesselseg.losses.masks import area_average
from vesselseg.models.prompted_sam2 import pool_features
from vesselseg.models.sam2_grounding import ImageFeatures

MAX_FEATURE_BYTES = 2 << 30  # main memory per split for the features that masks are decoded from in training
BYTES_PER_VALUE = 2  # features are stored in half precision
TRAINING, VALIDATION = "train", "val"


@dataclass(frozen=True)
class DistillationTargets:
    """What the student learns from in one split. An item is one phrase of one image."""

    cells: Tensor  # (images, 256, h, w) float32, pooled features, see `pool_features`
    prompts: Tensor  # (items, 256) float32, the teacher's prompt vectors
    image_of_item: Tensor  # (items,) int64
    phrase_of_item: Tensor  # (items,) int64
    kept: Tensor  # (images with stored features,) int64, as many as fit into MAX_FEATURE_BYTES
    features: list[ImageFeatures]  # of the kept images
    # Of the kept images, (items of the image, h, w) float32: the vessel fraction of every cell of the mask logits.
    labels: list[Tensor]


def select_records(data: Path, split: str, phrases: Sequence[str]) -> list[Record]:
    """The split's records with the objects of these phrases only; an image without any object gets the first phrase.

    Raises UserError if a phrase occurs in no image of the split, or the split has no image.
    """
    records = read_split(data, split)
    if not records:
        raise UserError(
            f"{data}: split {split} has no image; prepare the data with a share for it, e.g. --split 0.7,0.1,0.2"
        )
    known = sorted({phrase for record in records for phrase in record.phrases})
    missing = [phrase for phrase in phrases if phrase not in known]
    if missing:
        raise UserError(
            f"{data}: no image of split {split} has an object called {', '.join(map(repr, missing))}; "
            f"it has {', '.join(map(repr, known[:10])) or 'none'}: name one of these with --phrase"
        )
    selected = [_with_phrases(record, phrases) for record in records]
    return [record for record, original in zip(selected, records) if record.phrases or not original.phrases]


def _with_phrases(record: Record, phrases: Sequence[str]) -> Record:
    chosen = [index for index, phrase in enumerate(record.phrases) if phrase in phrases]
    regions = tuple(record.regions[index] for index in chosen)
    return replace(record, regions=regions, phrases=tuple(record.phrases[index] for index in chosen), observers={})


def default_phrase(data: Path) -> str:
    """The most frequent phrase of the training split. Raises UserError if it has no object."""
    phrases = [phrase for record in read_split(data, TRAINING) for phrase in record.phrases]
    if not phrases:
        raise UserError(f"{data}: no image of split {TRAINING} has an object, so there is nothing to learn from")
    return max(sorted(set(phrases)), key=phrases.count)


@torch.inference_mode()
def compute_targets(
    teacher: Predictor, data: Path, records: Sequence[Record], phrases: Sequence[str], batch: int, seed: int = 0
) -> DistillationTargets:
    """Run the teacher on records of `select_records`, `batch` images at a time.

    seed: draws the images whose features are kept, if not all fit.
    """
    cells, prompts, labels, image_of_item, phrase_of_item = [], [], [], [], []
    features: dict[int, ImageFeatures] = {}
    drawn = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    remaining = iter(range(len(records)))
    while indices := list(islice(remaining, batch)):
        group = [records[index] for index in indices]
        of_image = [tuple(dict.fromkeys(record.phrases)) or tuple(phrases[:1]) for record in group]
        questions = [[question_for(phrase) for phrase in listed] for listed in of_image]
        inputs = teacher.build_inputs([read_image(image_path(data, record)) for record in group], questions)
        encoded = teacher.encode(inputs)
        cells.append(pool_features(encoded.embedding).float().cpu())  # (batch, 256, h, w)
        prompts.append(teacher.prompts(inputs, encoded).float().cpu())  # (items of the batch, 256)
        kept = set(drawn[: MAX_FEATURE_BYTES // _feature_bytes(encoded)])
        for position, index in enumerate(indices):
            image_of_item += [index] * len(of_image[position])
            phrase_of_item += [phrases.index(phrase) for phrase in of_image[position]]
            if index in kept:
                features[index] = _to_half(encoded, position)
                labels.append(_mask_labels(teacher, data, group[position], of_image[position]))
    return DistillationTargets(
        cells=torch.cat(cells),
        prompts=torch.cat(prompts),
        image_of_item=torch.tensor(image_of_item),
        phrase_of_item=torch.tensor(phrase_of_item),
        kept=torch.tensor(list(features)),
        features=list(features.values()),
        labels=labels,
    )


def _to_half(encoded: ImageFeatures, position: int) -> ImageFeatures:
    """The features of one image of a batch, in half precision and main memory."""
    image = slice(position, position + 1)
    view = None if encoded.view is None else encoded.view[image].half().cpu()
    levels = [level[image].half().cpu() for level in (encoded.embedding, encoded.stride_8, encoded.stride_4)]
    return ImageFeatures(levels[0], levels[1], levels[2], view)


def _feature_bytes(encoded: ImageFeatures) -> int:
    """Bytes of one image's features as stored."""
    return sum(value[0].numel() * BYTES_PER_VALUE for value in vars(encoded).values() if value is not None)


def _mask_labels(teacher: Predictor, data: Path, record: Record, phrases: Sequence[str]) -> Tensor:
    """(phrases, side, side) float32 in the resolution of the teacher's mask logits."""
    with Image.open(image_path(data, record)) as image:
        width, height = image.size
    truths = torch.from_numpy(phrase_truths(record, phrases, height, width)).float()
    side = teacher.grounding.mask_side
    return area_average(truths, side, side)
