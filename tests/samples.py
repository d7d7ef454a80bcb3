"""Batches for a tiny model, as the dataset and collate build them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.tiny import picture
from vesselseg.dataset.batch import Batch, Example
from vesselseg.dataset.collate import collate
from vesselseg.dataset.prompts import ANSWER, question_for
from vesselseg.inference.processor import Processor, processor_for
from vesselseg.losses.total import TotalLoss
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.sa2va import Sa2VA

# (width, height) and phrases: one tile, several tiles, several objects
SPECIMENS: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (150, 120, ("blood vessel",)),
    (240, 90, ("catheter", "left coronary artery", "vessel")),
    (60, 200, ("vessel", "segment")),
)


def processor_of(model: Sa2VA, base: Path) -> Processor:
    """The processor of a model built from that base folder."""
    return processor_for(model.config, read_base_folder(base).tokenizer)


def example(processor: Processor, number: int) -> Example:
    """Specimen `number` with random masks."""
    width, height, phrases = SPECIMENS[number]
    image = picture(number, width, height)
    tiles = processor.views.tiles(image)
    rounds = [(question_for(phrase), ANSWER) for phrase in phrases]
    ids, labels = processor.tokens.encode(rounds, len(tiles) * processor.tokens_per_tile)
    masks = np.random.default_rng(number).integers(0, 2, (len(phrases), height, width), dtype=np.uint8)
    return Example(
        str(number), tiles, processor.views.square(image), ids, labels, torch.from_numpy(masks), tuple(phrases)
    )


def batch_of(processor: Processor, *numbers: int) -> Batch:
    """A batch of the specimens with these numbers, or of all."""
    return collate([example(processor, number) for number in numbers or range(len(SPECIMENS))])


def losses_of(model: Sa2VA, batch: Batch) -> dict[str, Tensor]:
    """The weighted losses of a batch."""
    output = model(batch)
    return TotalLoss()(output.mask_logits, output.answer_logits, output.answer_labels, batch)
