"""VesselDataset: dataset folder -> Example."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from vesselseg.data.augment import Augment
from vesselseg.data.batch import Example
from vesselseg.data.image_views import ImageViews, as_rgb
from vesselseg.data.manifest import ManifestError, Record, fingerprint, image_path, read_split
from vesselseg.data.prompts import ANSWER, question_for
from vesselseg.data.rasterise import record_masks
from vesselseg.data.tokens import ConversationTokens

DEFAULT_PHRASE = "blood vessel"
# what Pillow raises on damaged files, format by format, and on pictures that would fill the memory
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, Image.DecompressionBombError)


class VesselDataset(Dataset):
    """One Example per record of a split.

    Every random draw comes from a generator seeded by (seed, epoch, index), so a resumed run draws the same. A broken
    sample is an error that names it, never replaced by another one: `tools/prepare_data.py` is where input is repaired.

    data_root: dataset folder. split: train, val or test. tokenizer: with the new tokens. views: sizes of both views.
    tokens_per_tile: placeholders per tile. tokens: how conversations become ids. augment: None for none.
    """

    def __init__(
        self,
        data_root: str | Path,
        split: str,
        *,
        views: ImageViews,
        tokens: ConversationTokens,
        tokens_per_tile: int,
        augment: Augment | dict[str, Any] | None = None,
        vary_questions: bool = True,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        self.root = Path(data_root)
        self.split = split
        self.records = read_split(self.root, split)[:limit]
        if not self.records:
            raise ManifestError(f"{self.root}: split {split!r} holds no image; prepare the data with another --split")
        self.fingerprint = fingerprint(self.root)
        self.usual_phrase = _usual_phrase(self.records)
        self.views = views
        self.tokens = tokens
        self.tokens_per_tile = tokens_per_tile
        self.augment = Augment(**augment) if isinstance(augment, dict) else augment
        self.vary_questions = vary_questions
        self.seed = seed

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that conversations are encoded with."""
        return self.tokens.tokenizer

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: int | tuple[int, int]) -> Example:
        """item: index, or (epoch, index) as the sampler hands it out."""
        epoch, index = item if isinstance(item, tuple) else (0, item)
        index = range(len(self.records))[index]
        record = self.records[index]
        generator = np.random.default_rng((self.seed, epoch, index))
        image = self.image(record)
        phrases, masks = self._objects(record, image.height, image.width)
        if self.augment is not None:
            pixels, masks = self.augment(np.asarray(image), masks, generator)
            image = Image.fromarray(pixels)
        order = generator.permutation(len(phrases)) if self.vary_questions else np.arange(len(phrases))
        phrases = tuple(phrases[number] for number in order)
        tiles = self.views.tiles(image)
        choices = generator.integers(0, 2**31, len(phrases)) if self.vary_questions else np.zeros(len(phrases), int)
        rounds = [(_question(record, phrase, int(choice)), ANSWER) for phrase, choice in zip(phrases, choices)]
        input_ids, labels = self.tokens.encode(rounds, len(tiles) * self.tokens_per_tile, where=record.image)
        return Example(
            image_id=record.image,
            tiles=tiles,
            sam_image=self.views.square(image),
            input_ids=input_ids,
            labels=labels,
            masks=torch.from_numpy(np.ascontiguousarray(masks[order])),
            phrases=phrases,
        )

    def _objects(self, record: Record, height: int, width: int) -> tuple[tuple[str, ...], np.ndarray]:
        """Phrases and masks; an image without objects is asked for the usual phrase, and the answer is empty."""
        if record.phrases:
            return record.phrases, record_masks(record, height, width)
        return (self.usual_phrase,), np.zeros((1, height, width), np.uint8)

    def image(self, record: Record) -> Image.Image:
        """The record's image as 8-bit RGB; raises ManifestError naming the file if it cannot be read."""
        path = image_path(self.root, record)
        try:
            with Image.open(path) as opened:
                opened.load()  # an RGB image is handed on as it is, and its file is closed here
                return as_rgb(opened)
        except _UNREADABLE as error:
            raise ManifestError(f"{path}: cannot be read as an image ({error}); prepare the data again") from None


def _question(record: Record, phrase: str, choice: int) -> str:
    try:
        return question_for(phrase, choice)
    except ValueError as error:
        raise ManifestError(f"{record.image}: {error}") from None


def _usual_phrase(records: list[Record]) -> str:
    """The most frequent phrase, which evaluation asks of images without objects too."""
    counted = Counter(phrase for record in records for phrase in record.phrases)
    return counted.most_common(1)[0][0] if counted else DEFAULT_PHRASE
