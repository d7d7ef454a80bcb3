"""Example and Batch: every tensor with shape, dtype and range. THE contract between data and models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

IGNORE_LABEL = -100  # torch's cross_entropy default: positions without a language-model loss


@dataclass
class EncodedViews:
    """What the frozen encoders make of images' views, in the type of the weights.

    patches: (tiles, tokens per tile, channels), pixel-shuffled patches of the vision tower: before the projector where
        that trains, behind it where it is frozen.
    embedding: (images, 256, side / 16, side / 16), SAM2's, with the no-memory embedding added.
    stride_8: (images, 256 or 64, side / 8, side / 8). stride_4: (images, 256 or 32, side / 4, side / 4). The smaller
        numbers where the decoder's convolutions for these levels are frozen.
    """

    patches: Tensor
    embedding: Tensor
    stride_8: Tensor
    stride_4: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> EncodedViews:
        """Every tensor changed."""
        return EncodedViews(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


@dataclass
class Example:
    """One image with its conversation; what the dataset returns.

    image_id: path below ``images/``.
    tiles: (tiles, 3, tile, tile) float32, ImageNet-normalised views for the vision tower, thumbnail last.
    sam_image: (3, side, side) float32, ImageNet-normalised square view for SAM2.
    encoded: what stands in for both views where it has been computed before, of one image; they are empty then.
    input_ids: (tokens,) int64, the conversation with one [SEG] per object, in the order of masks.
    labels: (tokens,) int64, input_ids on answer positions, IGNORE_LABEL elsewhere; not shifted.
    masks: (objects, height, width) uint8, 0 or 1, at the image's own size.
    phrases: one per object.
    """

    image_id: str
    tiles: Tensor
    sam_image: Tensor
    input_ids: Tensor
    labels: Tensor
    masks: Tensor
    phrases: tuple[str, ...]
    encoded: EncodedViews | None = None

    @property
    def tile_count(self) -> int:
        """InternVL tiles of the image."""
        return len(self.tiles if self.encoded is None else self.encoded.patches)


@dataclass
class Batch:
    """Examples put together; the only thing that models take.

    image_ids: (images,) names.
    tiles: (all tiles, 3, tile, tile) float32, image after image.
    tiles_per_image: (images,) how many of them belong to each image.
    sam_images: (images, 3, side, side) float32.
    input_ids: per image (tokens,) int64, without padding. They stay in main memory, as the labels do: the model finds
        there what stands where, and moves what it needs.
    labels: per image (tokens,) int64, IGNORE_LABEL where there is no loss.
    masks: per image (objects, height, width) uint8; empty tuple when predicting.
    objects_per_image: (images,) how many [SEG] each conversation holds.
    encoded: what stands in for tiles and sam_images where it has been computed before; they are empty then.
    """

    image_ids: tuple[str, ...]
    tiles: Tensor
    tiles_per_image: tuple[int, ...]
    sam_images: Tensor
    input_ids: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    objects_per_image: tuple[int, ...]
    encoded: EncodedViews | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with views and masks on the device; conversations stay in main memory."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, as torch's DataLoader asks for it, so that copies to a GPU overlap."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)}
        encoded = None if self.encoded is None else self.encoded.each(change)
        return replace(self, **changed, masks=tuple(change(mask) for mask in self.masks), encoded=encoded)

    def __len__(self) -> int:
        return len(self.image_ids)
