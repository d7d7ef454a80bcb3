"""Examples -> Batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vesselseg.data.batch import Batch, Example


def collate(examples: Sequence[Example]) -> Batch:
    """Stack the views; conversations stay rows of different length."""
    return Batch(
        image_ids=tuple(example.image_id for example in examples),
        tiles=torch.cat([example.tiles for example in examples]),
        tiles_per_image=tuple(len(example.tiles) for example in examples),
        sam_images=torch.stack([example.sam_image for example in examples]),
        input_ids=tuple(example.input_ids for example in examples),
        labels=tuple(example.labels for example in examples),
        masks=tuple(example.masks for example in examples),
        objects_per_image=tuple(len(example.phrases) for example in examples),
    )
