"""Collate Examples into a Batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from vesselseg.dataset.batch import Batch, EncodedViews, Example


def collate(examples: Sequence[Example]) -> Batch:
    """Concatenate views and features; conversations and masks stay tuples, since their sizes differ."""
    return Batch(
        image_ids=tuple(example.image_id for example in examples),
        tiles=concatenate([example.tiles for example in examples]),  # (all tiles, 3, tile, tile)
        tiles_per_image=tuple(example.tile_count for example in examples),
        sam_images=concatenate([example.sam_image.unsqueeze(0) for example in examples]),  # (images, 3, side, side)
        input_ids=tuple(example.input_ids for example in examples),
        labels=tuple(example.labels for example in examples),
        masks=tuple(example.masks for example in examples),
        objects_per_image=tuple(len(example.phrases) for example in examples),
        encoded=_encoded([example.encoded for example in examples if example.encoded is not None]),
    )


def _encoded(views: Sequence[EncodedViews]) -> EncodedViews | None:
    if not views:
        return None
    return EncodedViews(**{name: concatenate([getattr(one, name) for one in views]) for name in views[0].tensors()})


def concatenate(pieces: Sequence[Tensor]) -> Tensor:
    """Concatenate along the first dimension. A data loading process writes into shared memory, which saves a copy."""
    if get_worker_info() is None:
        return torch.cat(list(pieces))
    first, rows = pieces[0], sum(len(piece) for piece in pieces)
    storage = torch.UntypedStorage._new_shared(rows * first[:1].numel() * first.element_size(), device="cpu")
    out = torch.empty(0, dtype=first.dtype).set_(storage).resize_(rows, *first.shape[1:])
    return torch.cat(list(pieces), out=out)
