"""Corrected masks -> a LabelMe file, by the same polygons as everywhere; it may hold the picture."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from vesselseg.imaging.decode import DECODE_ERRORS
from vesselseg.inference.predictor import Prediction
from vesselseg.predict.result_files import prediction_labels
from vesselseg.service.errors import ServiceError
from vesselseg.service.model_queue import LARGEST_REQUEST
from vesselseg.service.schemas import LabelMeRequest
from vesselseg.service.uploads import base_name

_MOST_EDGES = 1_000_000  # neighbours that differ, all masks together: ten seconds of polygons; drawn ones have 1 %
_CUT = 127  # grey values above it are vessel


def labelme_file(asked: LabelMeRequest) -> dict[str, Any]:
    """The content of the LabelMe file. Raises ServiceError with all pictures that cannot be used."""
    size = (asked.width, asked.height)
    if asked.width * asked.height * max(1, len(asked.objects)) > LARGEST_REQUEST:
        raise ServiceError(
            413, "too_many_pixels", f"expected at most {LARGEST_REQUEST:,} pixels, those of all masks together"
        )
    masks, problems = [], []
    for number, found in enumerate(asked.objects):
        try:
            masks.append(_mask(found.mask_png, size))
        except ValueError as error:
            problems.append(f"objects.{number}.mask_png: {error}")
    if asked.picture_png is not None:
        try:
            _check_picture(asked.picture_png, size)
        except ValueError as error:
            problems.append(f"picture_png: {error}")
    if problems:
        raise ServiceError(422, "invalid_request", "; ".join(problems[:5]))
    phrases = tuple(found.phrase for found in asked.objects)
    stacked = np.stack(masks) if masks else np.zeros((0, asked.height, asked.width), bool)
    edges = sum(int(np.count_nonzero(np.diff(stacked, axis=axis))) for axis in (1, 2))
    if edges > _MOST_EDGES:
        raise ServiceError(413, "too_rough", f"the masks are noise: {edges:,} edges; expected at most {_MOST_EDGES:,}")
    content = prediction_labels(Prediction(stacked.astype(np.float32), stacked, phrases, 0.5), base_name(asked.name))
    return {**content, "imageData": asked.picture_png}


def _mask(encoded: str, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(_decoded(encoded, size).convert("L")) > _CUT


def _check_picture(encoded: str, size: tuple[int, int]) -> None:
    """Raises ValueError for what LabelMe and tools/prepare_data.py would not show as it is."""
    mode = _decoded(encoded, size).mode
    if mode not in ("L", "RGB"):
        raise ValueError(f"a PNG of mode {mode}, expected 8-bit grey or RGB, as /predict gives it")


def _decoded(encoded: str, size: tuple[int, int]) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)), formats=("PNG",))
        if image.size == size:  # another one is not decoded
            image.load()
    except DECODE_ERRORS:
        raise ValueError("no PNG in base64, or a damaged one") from None
    if image.size != size:
        raise ValueError(f"{image.width}x{image.height} pixels, expected {size[0]}x{size[1]}")
    return image
