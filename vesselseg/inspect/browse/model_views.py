"""The model's view of an image in an epoch, taken from the dataset that training reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vesselseg.dataset.batch import IGNORE_LABEL
from vesselseg.dataset.image_views import tile_grid, to_pixels
from vesselseg.dataset.manifest import SPLITS
from vesselseg.dataset.vessel_dataset import Conversation, VesselDataset, View
from vesselseg.errors import ManifestError, UserError
from vesselseg.inspect.browse.catalogue import Entry

TRAINING = "training"
EVALUATION = "evaluation"
UNUSED = "unused"


@dataclass(frozen=True)
class ModelView:
    """An image as the model receives it.

    facts: sizes and conversations, for the page. square: (side, side, 3) uint8. tiles: each (tile, tile, 3) uint8,
    thumbnail last. masks: (objects, height, width) uint8, 0 or 1, in the order of the questions.
    """

    facts: dict[str, Any]
    square: np.ndarray
    tiles: list[np.ndarray]
    masks: np.ndarray


class ModelViews:
    """Images as the model receives them: augmented in the training split, unchanged in the others, as in evaluation.

    training: the dataset of the training split, built from the config. note: message for the page, or "".
    """

    def __init__(self, training: VesselDataset, config: str, note: str = "") -> None:
        self.training = training
        self.config = config
        self.note = note
        self._evaluation = dict(_evaluated(training))

    def as_json(self) -> dict[str, Any]:
        """The settings that determine the views."""
        views, augment = self.training.views, self.training.augment
        return {
            "config": self.config,
            "note": self.note,
            "split": self.training.split,
            "augment": None if augment is None else dict(vars(augment)),
            "variants": self.training.variants,
            "seed": self.training.seed,
            "tile_size": views.tile_size,
            "max_tiles": views.max_tiles,
            "sam_size": views.sam_size,
            "tokens_per_tile": self.training.tokens_per_tile,
            "tokenizer": self.training.has_tokenizer,
        }

    def render(self, entry: Entry, epoch: int) -> ModelView:
        """The view in an epoch, counted from 0.

        Raises ManifestError for an unreadable image or one in no split, UserError for a conversation that is too long.
        """
        trains = entry.split == self.training.split and 0 <= entry.index_in_split < len(self.training)
        dataset = self.training if trains else self._evaluation.get(entry.split)
        if dataset is None:
            raise ManifestError(f"{entry.record.image} is in no split: training and evaluation do not use it")
        number = epoch if dataset.variants is None else epoch % dataset.variants
        view = dataset.view(entry.index_in_split, number if trains else 0)
        conversation = dataset.conversation(entry.index_in_split, epoch if trains else 0)
        # Training has one conversation about all objects, evaluation one per phrase.
        rounds = [conversation.rounds] if trains else [(one,) for one in dict.fromkeys(conversation.rounds)]
        facts = {
            "role": TRAINING if trains else EVALUATION if entry.split != self.training.split else UNUSED,
            "epoch": epoch,
            "view": number if trains else 0,
            **_shapes(dataset, view),
            "conversations": [_describe(dataset, one, len(view.tiles), entry.record.image) for one in rounds],
            "objects": _objects(conversation, view),
        }
        tiles = [to_pixels(tile) for tile in view.tiles]
        masks = (view.masks[list(conversation.order)] >= 0.5).byte().numpy()
        return ModelView(facts, to_pixels(view.sam_image), tiles, masks)


def _evaluated(training: VesselDataset) -> Iterator[tuple[str, VesselDataset]]:
    """(split, dataset) of all nonempty splits, without augmentation and with the first question, as in evaluation."""
    tokens = training.tokens if training.has_tokenizer else None
    for split in SPLITS:
        try:
            yield (
                split,
                VesselDataset(
                    training.root,
                    split,
                    views=training.views,
                    tokens=tokens,
                    tokens_per_tile=training.tokens_per_tile,
                    vary_questions=False,
                ),
            )
        except ManifestError:  # an empty split has nothing to show
            continue


def _shapes(dataset: VesselDataset, view: View) -> dict[str, Any]:
    height, width = view.masks.shape[-2:]
    views = dataset.views
    columns, rows = tile_grid(width, height, views.min_tiles, views.max_tiles, views.tile_size)
    return {
        "width": width,
        "height": height,
        "square": int(view.sam_image.shape[-1]),
        "tile": views.tile_size,
        "tiles": len(view.tiles),
        "columns": columns,
        "rows": rows,
        "thumbnail": len(view.tiles) > columns * rows,
        "image_tokens": len(view.tiles) * dataset.tokens_per_tile,
    }


def _objects(conversation: Conversation, view: View) -> list[dict[str, Any]]:
    """Per question: its phrase, the index of its object in the image, and the pixels of its mask."""
    return [
        {"phrase": phrase, "object": number, "pixels": int((view.masks[number] >= 0.5).sum())}
        for phrase, number in zip(conversation.phrases, conversation.order)
    ]


def _describe(dataset: VesselDataset, rounds: tuple[tuple[str, str], ...], tiles: int, where: str) -> dict[str, Any]:
    """One conversation, with its numbers of tokens: all, and those with a loss; None without a tokenizer."""
    said: dict[str, Any] = {"rounds": [{"question": question, "answer": answer} for question, answer in rounds]}
    if not dataset.has_tokenizer:
        return {**said, "tokens": None}
    try:
        ids, labels = dataset.tokens.encode(rounds, tiles * dataset.tokens_per_tile, where=where)
    except UserError as error:
        return {**said, "tokens": None, "problem": str(error)}
    learnt = int((labels != IGNORE_LABEL).sum())
    return {**said, "tokens": {"all": len(ids), "learnt": learnt, "limit": dataset.tokens.max_length}}
