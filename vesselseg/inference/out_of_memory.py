"""Out-of-memory errors on a GPU or CPU: how to recognise them, and how large a batch may be."""

from __future__ import annotations

import errno

import torch
from PIL import Image

from vesselseg.errors import UserError

BATCH_PIXELS = 32_000_000  # limit of `probability_map_pixels` for a batch of more than one image
# Messages of torch, oneDNN, the CUDA libraries, OpenCV and ONNX Runtime, which raise exceptions of different types.
_MESSAGES = (
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
    """Whether an error reports a failed allocation, on a GPU or in main memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return not isinstance(error, UserError) and any(message in str(error) for message in _MESSAGES)


def probability_map_pixels(image: Image.Image, phrases: int) -> int:
    """Total pixels of an image's probability maps, one map per phrase; each pixel takes 4 bytes."""
    return image.width * image.height * phrases
