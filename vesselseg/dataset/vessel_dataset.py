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
from vesselseg.dataset.batch import EncodedViews, Example
from vesselseg.dataset.feature_store import FeatureStore, digest
from vesselseg.dataset.image_views import ImageViews
from vesselseg.dataset.manifest import Record, fingerprint, image_path, read_split
from vesselseg.dataset.prompts import ANSWER, DEFAULT_PHRASE, question_for
from vesselseg.dataset.record_masks import record_masks
from vesselseg.dataset.tokens import ConversationTokens
from vesselseg.errors import ManifestError, UserError
from vesselseg.imaging.read_image import read_image, unreadable

_TEXT = 1  # sets the draws of an epoch's questions apart from those of its augmentation


@dataclass
class View:
    """An image as one augmentation leaves it: tiles and sam_image as in Example, masks in the record's order.

    encoded: in place of both pictures, which are empty then.
    """

    tiles: Tensor
    sam_image: Tensor
    masks: Tensor
    encoded: EncodedViews | None = None


@dataclass(frozen=True)
class Conversation:
    """What is asked about an image: one round per object.

    order: which object of the record each round asks for. phrases: their phrases. rounds: (question, answer).
    """

    order: tuple[int, ...]
    phrases: tuple[str, ...]
    rounds: tuple[tuple[str, str], ...]


class VesselDataset(Dataset):
    """One Example per record of a split.

    Every random draw comes from a generator seeded by (seed, epoch, index), so a resumed run draws the same. A broken
    sample is an error that names it, never replaced by another one: `tools/prepare_data.py` is where input is repaired.

    data_root: dataset folder. split: train, val or test. tokenizer: with the new tokens. views: sizes of both views.
    tokens_per_tile: placeholders per tile. tokens: how conversations become ids; None without a
    tokenizer, for views and conversations but no Examples. augment: None for none.
    variants: augmented views per image, of which epoch e sees number e % variants; None: every epoch draws another.
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
        """From now on, take views from a store. names: by (index, number of the view), as `view_name` makes them."""
        self._stored = store, names

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that conversations are encoded with."""
        return self.tokens.tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether conversations can be encoded."""
        return self._tokens is not None

    @property
    def tokens(self) -> ConversationTokens:
        """How conversations become ids; raises UserError where the data set was opened without a tokenizer."""
        if self._tokens is None:
            raise UserError(f"{self.root}: this data set was opened without a tokenizer; it makes no Examples")
        return self._tokens

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: int | tuple[int, int]) -> Example:
        """item: index, or (epoch, index) as the sampler hands it out."""
        epoch, index = item if isinstance(item, tuple) else (0, item)
        index = range(len(self.records))[index]
        number = epoch if self.variants is None else epoch % self.variants
        view = self._stored_view(index, number) or self.view(index, number)
        return self._ask(index, view, self.conversation(index, epoch))

    def view(self, index: int, number: int) -> View:
        """View `number` of an image, computed from its file."""
        record = self.records[index]
        image = self.image(record)
        masks = np.zeros((1, image.height, image.width), np.uint8)  # of an image without objects
        if record.phrases:
            masks = record_masks(record, image.height, image.width)
        if self.augment is not None:
            pixels, masks = self.augment(np.asarray(image), masks, np.random.default_rng((self.seed, number, index)))
            image = Image.fromarray(pixels)
        return View(self.views.tiles(image), self.views.square(image), torch.from_numpy(masks))

    def view_name(self, index: int, number: int) -> str:
        """A digest of what the view depends on beside the settings of this data set; reads the image's file."""
        record = self.records[index]
        try:
            content = hashlib.sha256(image_path(self.root, record).read_bytes()).hexdigest()
        except OSError as error:
            raise unreadable(image_path(self.root, record), error) from None
        drawn = None if self.augment is None else [number, index]
        return digest([content, record.regions, drawn])

    def _stored_view(self, index: int, number: int) -> View | None:
        if self._stored is None:
            return None
        store, names = self._stored
        encoded, masks = store.read(names[index, number])
        return View(torch.empty(0), torch.empty(0), masks, encoded)

    def conversation(self, index: int, epoch: int) -> Conversation:
        """What is asked about an image in an epoch; one without objects is asked for the usual phrase, in vain."""
        record, generator = self.records[index], np.random.default_rng((self.seed, epoch, index, _TEXT))
        phrases = record.phrases or (self.default_phrase,)
        order = generator.permutation(len(phrases)) if self.vary_questions else np.arange(len(phrases))
        phrases = tuple(phrases[number] for number in order)
        choices = generator.integers(0, 2**31, len(phrases)) if self.vary_questions else np.zeros(len(phrases), int)
        rounds = tuple((_question(record, phrase, int(choice)), ANSWER) for phrase, choice in zip(phrases, choices))
        return Conversation(tuple(int(number) for number in order), phrases, rounds)

    def _ask(self, index: int, view: View, conversation: Conversation) -> Example:
        """A view with the questions about it."""
        record = self.records[index]
        tiles = len(view.tiles if view.encoded is None else view.encoded.patches)
        input_ids, labels = self.tokens.encode(conversation.rounds, tiles * self.tokens_per_tile, where=record.image)
        return Example(
            image_id=record.image,
            tiles=view.tiles,
            sam_image=view.sam_image,
            input_ids=input_ids,
            labels=labels,
            masks=view.masks[list(conversation.order)],
            phrases=conversation.phrases,
            encoded=view.encoded,
        )

    def image(self, record: Record) -> Image.Image:
        """The record's image as 8-bit RGB; raises ManifestError naming the file if it cannot be read."""
        return read_image(image_path(self.root, record))


def _question(record: Record, phrase: str, choice: int) -> str:
    try:
        return question_for(phrase, choice)
    except ValueError as error:
        raise ManifestError(f"{record.image}: {error}") from None


def _most_frequent_phrase(records: list[Record]) -> str:
    """The most frequent phrase, which evaluation asks of images without objects too."""
    counted = Counter(phrase for record in records for phrase in record.phrases)
    return counted.most_common(1)[0][0] if counted else DEFAULT_PHRASE
