"""Image -> InternVL tiles and SAM2's square view; mask logits -> size of the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vesselseg.dataset.batch import IMAGENET_MEAN, IMAGENET_STD, normalise_pixels


@dataclass(frozen=True)
class ImageViews:
    """Sizes of both views.

    tile_size: side of an InternVL tile in pixels. sam_size: side of SAM2's square view in pixels.
    min_tiles, max_tiles: number of tiles per image without the thumbnail. use_thumbnail: append the whole image as a
    further tile if there are several.
    """

    tile_size: int
    sam_size: int
    min_tiles: int = 1
    max_tiles: int = 12
    use_thumbnail: bool = True

    def tile_count(self, width: int, height: int) -> int:
        """Number of tiles of an image of this size in pixels, thumbnail included."""
        columns, rows = tile_grid(width, height, self.min_tiles, self.max_tiles, self.tile_size)
        return columns * rows + (1 if self.use_thumbnail and columns * rows > 1 else 0)

    def tiles(self, image: Image.Image) -> Tensor:
        """InternVL's dynamic tiling (Chen et al. 2024): (tiles, 3, tile, tile) float32, normalised, thumbnail last."""
        return normalise_pixels(self.tile_pixels(image))

    def tile_pixels(self, image: Image.Image) -> Tensor:
        """The tiles before normalisation: (tiles, 3, tile, tile) uint8, in channels-last memory format."""
        size = self.tile_size
        columns, rows = tile_grid(image.width, image.height, self.min_tiles, self.max_tiles, size)
        resized = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
        views = [
            resized.crop((column * size, row * size, (column + 1) * size, (row + 1) * size))
            for row in range(rows)
            for column in range(columns)
        ]
        if self.use_thumbnail and len(views) > 1:
            views.append(image.resize((size, size), Image.Resampling.BICUBIC))
        stacked = torch.stack([_pixels(view).movedim(0, -1) for view in views])  # (tiles, tile, tile, 3)
        return stacked.movedim(-1, 1)

    def square(self, image: Image.Image) -> Tensor:
        """SAM2's view, resized to a square without keeping the aspect ratio: (3, side, side) float32, normalised."""
        return normalise_pixels(self.square_pixels(image))

    def square_pixels(self, image: Image.Image) -> Tensor:
        """The square view before normalisation: (3, side, side) uint8, in channels-last memory format."""
        return _pixels(image.resize((self.sam_size, self.sam_size), Image.Resampling.BICUBIC))


def normalise(image: Image.Image) -> Tensor:
    """8-bit RGB image -> (3, height, width) float32 with ImageNet's mean and standard deviation."""
    return normalise_pixels(_pixels(image))


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def to_pixels(view: Tensor) -> np.ndarray:
    """Exact inverse of `normalise`: (3, height, width) float32 -> (height, width, 3) uint8."""
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    pixels: np.ndarray = ((view * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return pixels


def tile_grid(width: int, height: int, min_tiles: int, max_tiles: int, tile_size: int) -> tuple[int, int]:
    """(columns, rows) of the tiling whose aspect ratio is closest to the image's, as in InternVL's published code.

    Grids are tried from the fewest tiles on; of equally close ones, a larger grid is used only if the image's area
    exceeds half of the grid's.
    """
    grids = sorted(
        {(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles + 1) if min_tiles <= c * r <= max_tiles},
        key=lambda grid: grid[0] * grid[1],
    )
    aspect = width / height
    best, smallest = (1, 1), float("inf")
    for columns, rows in grids:
        difference = abs(aspect - columns / rows)
        if difference < smallest:
            best, smallest = (columns, rows), difference
        elif difference == smallest and width * height > 0.5 * tile_size**2 * columns * rows:
            best = (columns, rows)
    return best


def logits_to_image(mask_logits: Tensor, square_side: int, height: int, width: int) -> Tensor:
    """Resize mask logits to the image, by way of a square, as the published code goes through SAM2's.

    mask_logits: (objects, side / 4, side / 4), or another square. Returns (objects, height, width) float32.
    """
    logits = mask_logits.float().unsqueeze(1)  # (objects, 1, h, w)
    square = functional.interpolate(logits, size=(square_side, square_side), mode="bilinear", align_corners=False)
    # (objects, 1, square_side, square_side) -> (objects, height, width)
    return functional.interpolate(square, size=(height, width), mode="bilinear", align_corners=False).squeeze(1)
