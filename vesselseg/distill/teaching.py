"""What the big model says about a split: the prompt of every item, and SAM2's features, each image encoded once."""

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

FEATURE_BYTES = 2 << 30  # of main memory, per split, for the features that masks are decoded from while training
HALF = 2  # bytes of a number of theirs
TRAINING, CHOOSING = "train", "val"


@dataclass(frozen=True)
class Lesson:
    """One split in the eyes of the big model. An item is one phrase of one image.

    cells: (images, 256, h, w) float32, see `pool_features`. prompts: (items, 256) float32. image_of_item,
    phrase_of_item: (items,) int64. kept: (images that masks are learnt from,) int64, as many as fit into FEATURE_BYTES;
    features, labels: of these; a label is (its image's items, h, w) float32, the vessel fraction of every cell of the
    logits.
    """

    cells: Tensor
    prompts: Tensor
    image_of_item: Tensor
    phrase_of_item: Tensor
    kept: Tensor
    features: list[ImageFeatures]
    labels: list[Tensor]


def lesson_records(data: Path, split: str, phrases: Sequence[str]) -> list[Record]:
    """The split's records with the objects of these phrases alone; an image without any object is asked for the first.

    Raises UserError where a phrase is in no image of the split, or the split has no image.
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
    kept = [_of_phrases(record, phrases) for record in records]
    return [record for record, whole in zip(kept, records) if record.phrases or not whole.phrases]


def _of_phrases(record: Record, phrases: Sequence[str]) -> Record:
    chosen = [number for number, phrase in enumerate(record.phrases) if phrase in phrases]
    regions, named = tuple(record.regions[n] for n in chosen), tuple(record.phrases[n] for n in chosen)
    return replace(record, regions=regions, phrases=named, observers={})


def default_phrase(data: Path) -> str:
    """The phrase that most objects of the training split have. Raises UserError where there is none."""
    phrases = [phrase for record in read_split(data, TRAINING) for phrase in record.phrases]
    if not phrases:
        raise UserError(f"{data}: no image of split {TRAINING} has an object, so there is nothing to learn from")
    return max(sorted(set(phrases)), key=phrases.count)


@torch.inference_mode()
def collect(
    teacher: Predictor, data: Path, records: Sequence[Record], phrases: Sequence[str], batch: int, seed: int = 0
) -> Lesson:
    """Run the big model over records of `lesson_records`, `batch` images at once. seed: draws whose features are kept,
    where those of all do not fit.
    """
    cells, prompts, labels, of_image, of_phrase = [], [], [], [], []
    features: dict[int, ImageFeatures] = {}
    drawn = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    remaining = iter(range(len(records)))
    while numbers := list(islice(remaining, batch)):
        group = [records[number] for number in numbers]
        asked = [tuple(dict.fromkeys(record.phrases)) or tuple(phrases[:1]) for record in group]
        inputs = teacher.build_inputs(
            _pictures(data, group), [[question_for(one) for one in listed] for listed in asked]
        )
        encoded = teacher.encode(inputs)
        cells.append(pool_features(encoded.embedding).float().cpu())
        prompts.append(teacher.prompts(inputs, encoded).float().cpu())
        kept = set(drawn[: FEATURE_BYTES // _bytes_of_one(encoded)])
        for place, number in enumerate(numbers):
            of_image += [number] * len(asked[place])
            of_phrase += [phrases.index(phrase) for phrase in asked[place]]
            if number in kept:
                features[number] = _stored(encoded, place)
                labels.append(_labels(teacher, data, group[place], asked[place]))
    places, names = torch.tensor(of_image), torch.tensor(of_phrase)
    own = torch.tensor(list(features))
    return Lesson(torch.cat(cells), torch.cat(prompts), places, names, own, list(features.values()), labels)


def _pictures(data: Path, records: Sequence[Record]) -> list[Image.Image]:
    return [read_image(image_path(data, record)) for record in records]


def _stored(encoded: ImageFeatures, place: int) -> ImageFeatures:
    """One image's features in half precision and main memory."""
    slot = slice(place, place + 1)
    view = None if encoded.view is None else encoded.view[slot].half().cpu()
    levels = [level[slot].half().cpu() for level in (encoded.embedding, encoded.stride_8, encoded.stride_4)]
    return ImageFeatures(levels[0], levels[1], levels[2], view)


def _bytes_of_one(encoded: ImageFeatures) -> int:
    """Of an image's features, as they are stored."""
    return sum(value[0].numel() * HALF for value in vars(encoded).values() if value is not None)


def _labels(teacher: Predictor, data: Path, record: Record, phrases: Sequence[str]) -> Tensor:
    with Image.open(image_path(data, record)) as image:
        width, height = image.size
    truths = torch.from_numpy(phrase_truths(record, phrases, height, width)).float()
    fine = 2 if teacher.grounding.fine_masks is not None else 4
    side = teacher.grounding.image_size // fine
    return area_average(truths, side, side)
