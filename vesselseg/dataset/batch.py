"""Example and Batch, the contract between data and models: every tensor with its shape, dtype and range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IGNORE_LABEL = -100  # torch's cross_entropy default: positions without a language-model loss

UNKNOWN = -1  # pixels of masks without a mask loss


def normalise_pixels(pixels: Tensor) -> Tensor:
    """(..., 3, height, width) uint8 -> float32 of that shape, with ImageNet's mean and standard deviation.

    On the device of the pixels: they are a quarter of the bytes that would cross to a GPU otherwise.
    """
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    values = pixels.float() / 255
    return (values - mean.to(values.device)) / std.to(values.device)


def normalised_view(view: Tensor, dtype: torch.dtype) -> Tensor:
    """A view as its pixels (uint8) or already normalised -> normalised, in this type."""
    return (normalise_pixels(view) if view.dtype == torch.uint8 else view).to(dtype)


@dataclass
class EncodedViews:
    """Outputs of the frozen encoders for the views of some images, in the dtype of the weights.

    patches: (tiles, tokens per tile, channels), pixel-shuffled patches of the vision tower: before the projector if it
        is trained, after it if it is frozen.
    embedding: (images, 256, side / 16, side / 16), SAM2's image embedding with the no-memory embedding added.
    stride_8: (images, 256 or 64, side / 8, side / 8), SAM2's features at stride 8; 64 channels if the decoder's
        convolution for this level is frozen and already applied.
    stride_4: (images, 256 or 32, side / 4, side / 4), the same at stride 4; 32 channels if its convolution is frozen.
    view: (images, 3, side, side) uint8, SAM2's square views, if masks are predicted from the pixels too; else None.
    """

    patches: Tensor
    embedding: Tensor
    stride_8: Tensor
    stride_4: Tensor
    view: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> EncodedViews:
        """A copy with `change` applied to every tensor."""
        return EncodedViews(**{name: change(tensor) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are present, by field name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


@dataclass
class Example:
    """One image with its conversation; an item of VesselDataset.

    image_id: path below ``images/``.
    tiles: (tiles, 3, tile, tile) float32, ImageNet-normalised views for the vision tower, thumbnail last.
    sam_image: (3, side, side) float32, ImageNet-normalised square view for SAM2.
    encoded: features of this image, in place of both views if they were computed before; the views are empty then.
    input_ids: (tokens,) int64, the conversation with one [SEG] per object, in the order of `masks`.
    labels: (tokens,) int64, input_ids at answer positions, IGNORE_LABEL elsewhere; not shifted.
    masks: (objects, height, width) uint8, 0 or 1, or float16, the covered part of each pixel, at the image's own
        size. If the labels say nothing about some pixels: int8 or float32, with UNKNOWN there.
    phrases: one per object, in the order of `masks`.
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
        """Number of InternVL tiles of the image, thumbnail included."""
        return len(self.tiles if self.encoded is None else self.encoded.patches)


@dataclass
class Batch:
    """Collated Examples; the only input of the models.

    image_ids: (images,) paths below ``images/``.
    tiles: (sum of tiles_per_image, 3, tile, tile) float32, the tiles of one image after those of another.
    tiles_per_image: (images,) number of tiles of each image.
    sam_images: (images, 3, side, side) float32.
    input_ids: per image (tokens,) int64, without padding. Kept in CPU memory, as are the labels: the model looks up
        token positions there and moves only what it needs.
    labels: per image (tokens,) int64, IGNORE_LABEL where there is no loss.
    masks: per image as in Example; an empty tuple when predicting.
    objects_per_image: (images,) number of [SEG] tokens in each conversation.
    encoded: features in place of tiles and sam_images if they were computed before; those are empty then.
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
        """The batch with views and masks on the device; conversations stay in CPU memory."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, so that copies to a GPU overlap; called by torch's DataLoader."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)}
        encoded = None if self.encoded is None else self.encoded.each(change)
        return replace(self, **changed, masks=tuple(change(mask) for mask in self.masks), encoded=encoded)

    def __len__(self) -> int:
        return len(self.image_ids)
