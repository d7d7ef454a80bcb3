"""VesselDataset: dataset folder -> Example."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from vesselseg.dataset.augment import Augment
from vesselseg.dataset.batch import UNKNOWN, EncodedViews, Example
from vesselseg.dataset.feature_store import FeatureStore, digest
from vesselseg.dataset.image_views import ImageViews
from vesselseg.dataset.manifest import Record, fingerprint, image_path, read_split
from vesselseg.dataset.prompts import ANSWER, DEFAULT_PHRASE, question_for
from vesselseg.dataset.record_masks import ignored_pixels, record_coverage, record_masks
from vesselseg.dataset.tokens import ConversationTokens
from vesselseg.errors import ManifestError, UserError
from vesselseg.imaging.read_image import read_image, unreadable
from vesselseg.imaging.regions import DEFAULT_FILL

_TEXT = 1  # separates the random stream of questions from that of augmentation


@dataclass
class View:
    """One augmented version of an image: tiles and sam_image as in Example, masks in the record's order.

    encoded: features in place of both images, which are empty then.
    """

    tiles: Tensor
    sam_image: Tensor
    masks: Tensor
    encoded: EncodedViews | None = None


@dataclass(frozen=True)
class Conversation:
    """The conversation about an image: one round per object.

    order: per round, the index of its object in the record. phrases: per round. rounds: (question, answer) pairs.
    """

    order: tuple[int, ...]
    phrases: tuple[str, ...]
    rounds: tuple[tuple[str, str], ...]


class VesselDataset(Dataset):
    """One Example per record of a split.

    Every random number comes from a generator seeded with (seed, epoch, index), so that a resumed run repeats the same
    ones. A broken sample raises an error that names it and is never replaced: `vesselseg prepare` repairs input.

    data_root: dataset folder or fold. split: train, val or test. views: sizes of both views.
    tokens: encodes conversations; None without a tokenizer, then there are views and conversations but no Examples.
    tokens_per_tile: image placeholders per tile. augment: an Augment, its arguments, or None for no augmentation.
    vary_questions: draw order and wording of the questions; otherwise record order and the first question.
    seed: of all random numbers. limit: use only the first records of the split; None for all of them.
    variants: augmented views per image; epoch e uses number e % variants. None: a new view in every epoch.
    Raises ManifestError if the split holds no image or the dataset folder is invalid.
    """

    def __init__(
        self,
        data_root: str | Path,
        split: str,
        *,
        views: ImageViews,
        tokens: ConversationTokens | None,
        tokens_per_tile: int,
        augment: Augment | dict[str, Any] | None = None,
        vary_questions: bool = True,
        seed: int = 0,
        limit: int | None = None,
        variants: int | None = None,
    ) -> None:
        self.root = Path(data_root)
        self.split = split
        self.records = read_split(self.root, split)[:limit]
        if not self.records:
            raise ManifestError(f"{self.root}: split {split!r} holds no image; prepare the data with another --split")
        self.fingerprint = fingerprint(self.root)
        self.default_phrase = _most_frequent_phrase(self.records)
        self.views = views
        self._tokens = tokens
        self.tokens_per_tile = tokens_per_tile
        self.augment = Augment(**augment) if isinstance(augment, dict) else augment
        self.vary_questions = vary_questions
        self.seed = seed
        self.variants = variants
        self._stored: tuple[FeatureStore, Mapping[tuple[int, int], str]] | None = None

    def use_features(self, store: FeatureStore, names: Mapping[tuple[int, int], str]) -> None:
        """Read views from a store from now on. names: (index, number of the view) -> file, as from `view_name`."""
        self._stored = store, names

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that encodes conversations."""
        return self.tokens.tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether conversations can be encoded."""
        return self._tokens is not None

    @property
    def tokens(self) -> ConversationTokens:
        """The encoder of conversations; raises UserError if the dataset was opened without a tokenizer."""
        if self._tokens is None:
            raise UserError(f"{self.root}: this dataset was opened without a tokenizer and has no Examples")
        return self._tokens

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: int | tuple[int, int]) -> Example:
        """item: index, or (epoch, index) as the sampler yields it."""
        epoch, index = item if isinstance(item, tuple) else (0, item)
        index = range(len(self.records))[index]
        number = epoch if self.variants is None else epoch % self.variants
        view = self._stored_view(index, number) or self.view(index, number)
        return self._ask(index, view, self.conversation(index, epoch))

    def view(self, index: int, number: int) -> View:
        """View `number` of an image, computed from its file."""
        record = self.records[index]
        image = self.image(record)
        soft = record.fill == "coverage"
        masks = np.zeros((1, image.height, image.width), np.uint8)  # one empty mask for an image without objects
        if record.phrases:
            draw = record_coverage if soft else record_masks
            masks = draw(record, image.height, image.width)  # (objects, height, width)
        ignored = ignored_pixels(record, image.height, image.width)
        if ignored is not None:  # augmented as one more object
            masks = np.concatenate([masks, ignored[None] * np.uint8(255 if soft else 1)])
        if self.augment is not None:
            generator = np.random.default_rng((self.seed, number, index))
            pixels, masks = self.augment(np.asarray(image), masks, generator, soft)
            image = Image.fromarray(pixels)
        return View(self.views.tiles(image), self.views.square(image), _labels(masks, soft, ignored is not None))

    def view_name(self, index: int, number: int) -> str:
        """A digest of everything except the dataset's settings that the view depends on; reads the image's file."""
        record = self.records[index]
        try:
            content = hashlib.sha256(image_path(self.root, record).read_bytes()).hexdigest()
        except OSError as error:
            raise unreadable(image_path(self.root, record), error) from None
        drawn = None if self.augment is None else [number, index]
        filled = [] if record.fill == DEFAULT_FILL else [record.fill]
        ignored = ["ignore", record.ignore] if record.ignore else []
        return digest([content, record.regions, drawn, *filled, *ignored])

    def _stored_view(self, index: int, number: int) -> View | None:
        if self._stored is None:
            return None
        store, names = self._stored
        encoded, masks = store.read(names[index, number])
        return View(torch.empty(0), torch.empty(0), masks, encoded)

    def conversation(self, index: int, epoch: int) -> Conversation:
        """The conversation about an image in an epoch; without objects, it is about the most frequent phrase."""
        record, generator = self.records[index], np.random.default_rng((self.seed, epoch, index, _TEXT))
        phrases = record.phrases or (self.default_phrase,)
        order = generator.permutation(len(phrases)) if self.vary_questions else np.arange(len(phrases))
        phrases = tuple(phrases[number] for number in order)
        choices = generator.integers(0, 2**31, len(phrases)) if self.vary_questions else np.zeros(len(phrases), int)
        rounds = tuple((_question(record, phrase, int(choice)), ANSWER) for phrase, choice in zip(phrases, choices))
        return Conversation(tuple(int(number) for number in order), phrases, rounds)

    def _ask(self, index: int, view: View, conversation: Conversation) -> Example:
        """Combine a view with the tokens of its conversation."""
        record = self.records[index]
        tiles = len(view.tiles if view.encoded is None else view.encoded.patches)
        input_ids, labels = self.tokens.encode(conversation.rounds, tiles * self.tokens_per_tile, where=record.image)
        return Example(
            image_id=record.image,
            tiles=view.tiles,
            sam_image=view.sam_image,
            input_ids=input_ids,
            labels=labels,
            masks=view.masks[list(conversation.order)],  # (objects, height, width), one per [SEG]
            phrases=conversation.phrases,
            encoded=view.encoded,
        )

    def image(self, record: Record) -> Image.Image:
        """The record's image as 8-bit RGB; raises ManifestError that names the file if it cannot be read."""
        return read_image(image_path(self.root, record))


def _labels(masks: np.ndarray, soft: bool, ignoring: bool) -> Tensor:
    """Masks as in Example; ignoring: the last of the masks (objects, height, width) is of the ignored pixels."""
    labels = torch.from_numpy(masks)
    if not ignoring:
        return labels.half() / 255 if soft else labels
    unknown, known = labels[-1] > (127 if soft else 0), labels[:-1]
    return (known.float() / 255 if soft else known.to(torch.int8)).masked_fill(unknown, UNKNOWN)


def _question(record: Record, phrase: str, choice: int) -> str:
    try:
        return question_for(phrase, choice)
    except ValueError as error:
        raise ManifestError(f"{record.image}: {error}") from None


def _most_frequent_phrase(records: list[Record]) -> str:
    """The most frequent phrase, which evaluation also uses for images without objects."""
    counted = Counter(phrase for record in records for phrase in record.phrases)
    return counted.most_common(1)[0][0] if counted else DEFAULT_PHRASE
