"""Memory that runs out, on a GPU or on a CPU: how it is told, and how much one batch may take of it."""

from __future__ import annotations

import errno

import torch
from PIL import Image

from vesselseg.errors import UserError

BATCH_PIXELS = 32_000_000  # `map_pixels` of a batch, if it holds more than one image
# How torch, oneDNN, CUDA's libraries, OpenCV and ONNX Runtime word it, each in an exception of its own.
_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a primitive",
    "could not create a memory",
    "could not execute a primitive",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
    "(-4:Insufficient memory)",
    "Failed to allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a GPU or in main memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return not isinstance(error, UserError) and any(sign in str(error) for sign in _SIGNS)


def map_pixels(image: Image.Image, phrases: int) -> int:
    """Pixels of an image's probability maps, one map per phrase; each pixel takes 4 bytes."""
    return image.width * image.height * phrases
