"""Examples -> Batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vesselseg.data.batch import IGNORE_LABEL, Batch, Example

PADDING_ID = 0  # any valid id: padded positions are masked out and carry no label


def collate(examples: Sequence[Example]) -> Batch:
    """Pad conversations on the right, stack the views."""
    input_ids, attention_mask = pad_conversations([example.input_ids for example in examples])
    return Batch(
        image_ids=tuple(example.image_id for example in examples),
        tiles=torch.cat([example.tiles for example in examples]),
        tiles_per_image=tuple(len(example.tiles) for example in examples),
        sam_images=torch.stack([example.sam_image for example in examples]),
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=pad_sequence([e.labels for e in examples], batch_first=True, padding_value=IGNORE_LABEL),
        masks=tuple(example.masks for example in examples),
        objects_per_image=tuple(len(example.phrases) for example in examples),
    )


def pad_conversations(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows (tokens,) of different length -> input_ids (rows, tokens) and a mask that is False on padding."""
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = pad_sequence(list(rows), batch_first=True, padding_value=PADDING_ID)
    return input_ids, torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)
