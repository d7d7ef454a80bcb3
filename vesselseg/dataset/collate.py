"""Examples -> Batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from vesselseg.dataset.batch import Batch, EncodedViews, Example


def collate(examples: Sequence[Example]) -> Batch:
    """Stack the views; conversations stay rows of different length."""
    return Batch(
        image_ids=tuple(example.image_id for example in examples),
        tiles=together([example.tiles for example in examples]),
        tiles_per_image=tuple(example.tile_count for example in examples),
        sam_images=together([example.sam_image.unsqueeze(0) for example in examples]),
        input_ids=tuple(example.input_ids for example in examples),
        labels=tuple(example.labels for example in examples),
        masks=tuple(example.masks for example in examples),
        objects_per_image=tuple(len(example.phrases) for example in examples),
        encoded=_encoded([example.encoded for example in examples if example.encoded is not None]),
    )


def _encoded(views: Sequence[EncodedViews]) -> EncodedViews | None:
    names = [field.name for field in fields(EncodedViews)]
    return EncodedViews(**{name: together([getattr(one, name) for one in views]) for name in names}) if views else None


def together(pieces: Sequence[Tensor]) -> Tensor:
    """The pieces one behind the other. A loading process puts them where the training process reads: one copy less."""
    if get_worker_info() is None:
        return torch.cat(list(pieces))
    first, rows = pieces[0], sum(len(piece) for piece in pieces)
    storage = torch.UntypedStorage._new_shared(rows * first[:1].numel() * first.element_size(), device="cpu")
    out = torch.empty(0, dtype=first.dtype).set_(storage).resize_(rows, *first.shape[1:])
    return torch.cat(list(pieces), out=out)
