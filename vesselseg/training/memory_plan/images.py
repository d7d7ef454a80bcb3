"""Tiles, tokens, objects and size of the training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vesselseg.dataset.manifest import Record, dataset_home, image_path, read_split
from vesselseg.dataset.prompts import ANSWER, DEFAULT_PHRASE, QUESTIONS, question_for
from vesselseg.inference.processor import Processor

ASSUMED_IMAGES = 1000  # if there is no dataset yet
ASSUMED_SIDE = 512  # pixels
SIZES_READ = 64  # the first image files, whose size is read


@dataclass(frozen=True)
class Images:
    """The training images of a run."""

    count: int
    assumed: bool  # there is no dataset; all values are assumptions
    tiles: int  # of one image, thumbnail included
    tokens: float  # of one conversation, mean
    longest: int  # tokens of the longest conversation
    answer_tokens: float  # labelled tokens of one conversation, mean
    objects: float  # masks of one image, mean
    most_objects: int  # masks of one image, maximum
    height: int  # of the largest image, pixels
    width: int

    def tokens_of(self, images: int) -> int:
        """Tokens of a micro-batch of N images, one of them with the longest conversation."""
        return round(self.longest + (images - 1) * self.tokens)

    def objects_of(self, images: int) -> int:
        """Masks of a micro-batch of N images, one of them with the most masks."""
        return round(self.most_objects + (images - 1) * self.objects)


def training_images(values: Mapping[str, Any], processor: Processor, count: int | None = None) -> Images:
    """The images of a config's training split; if the folder does not exist, images of 512x512 with one object.

    count: number of images to plan for, instead of the split's.
    """
    root, settings = Path(values["data_root"]), values["train_dataset"]
    if not (dataset_home(root) / "annotations.json").is_file():
        return _images(processor, [(DEFAULT_PHRASE,)], (ASSUMED_SIDE, ASSUMED_SIDE), count or ASSUMED_IMAGES, True)
    records = read_split(root, settings.get("split", "train"))[: settings.get("limit")]
    sizes = [_size(image_path(root, record)) for record in records[:SIZES_READ]]
    largest = max(sizes, key=lambda size: processor.views.tile_count(*size), default=(ASSUMED_SIDE, ASSUMED_SIDE))
    return _images(processor, _phrases(records), largest, count or len(records), False)


def _images(
    processor: Processor, phrases: Sequence[tuple[str, ...]], size: tuple[int, int], count: int, assumed: bool
) -> Images:
    tiles = processor.views.tile_count(*size)
    picture = tiles * processor.tokens_per_tile
    lengths = {named: _lengths(processor, named) for named in set(phrases)}
    means = [sum(lengths[named]) / len(lengths[named]) for named in phrases]
    answer = len(processor.tokenizer(ANSWER + processor.tokens.template.end, add_special_tokens=False)["input_ids"])
    objects = [len(named) for named in phrases]
    return Images(
        count=count,
        assumed=assumed,
        tiles=tiles,
        tokens=picture + sum(means) / len(means),
        longest=picture + max(max(found) for found in lengths.values()),
        answer_tokens=answer * sum(objects) / len(objects),
        objects=sum(objects) / len(objects),
        most_objects=max(objects),
        width=size[0],
        height=size[1],
    )


def _phrases(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Phrases of every image; an image without objects gets the default phrase."""
    return [record.phrases or (DEFAULT_PHRASE,) for record in records] or [(DEFAULT_PHRASE,)]


def _lengths(processor: Processor, phrases: tuple[str, ...]) -> list[int]:
    """Text tokens of the conversation for each of the questions."""
    found = []
    for choice in range(len(QUESTIONS)):
        rounds = [(question_for(phrase, choice), ANSWER) for phrase in phrases]
        ids: torch.Tensor = processor.tokens.encode(rounds, 0)[0]
        found.append(len(ids))
    return found


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except OSError:  # training reports the file; a plan does not need it
        return ASSUMED_SIDE, ASSUMED_SIDE
