"""Masks -> a LabelMe file with the same polygons as predicted files; optionally with the embedded image."""

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
from vesselseg.service.model_queue import MAX_REQUEST_PIXELS
from vesselseg.service.schemas import LabelMeRequest
from vesselseg.service.uploads import base_name

_MAX_EDGES = 1_000_000  # differing neighbour pixels over all masks: ten seconds of polygons; usual masks have 1 %
_MASK_THRESHOLD = 127  # grey values above it are vessel


def labelme_file(request: LabelMeRequest) -> dict[str, Any]:
    """The content of the LabelMe file. Raises ServiceError that names every unusable image."""
    size = (request.width, request.height)
    if request.width * request.height * max(1, len(request.objects)) > MAX_REQUEST_PIXELS:
        raise ServiceError(
            413, "too_many_pixels", f"expected at most {MAX_REQUEST_PIXELS:,} pixels in all masks together"
        )
    masks, problems = [], []
    for number, item in enumerate(request.objects):
        try:
            masks.append(_mask(item.mask_png, size))
        except ValueError as error:
            problems.append(f"objects.{number}.mask_png: {error}")
    if request.picture_png is not None:
        try:
            _check_picture(request.picture_png, size)
        except ValueError as error:
            problems.append(f"picture_png: {error}")
    if problems:
        raise ServiceError(422, "invalid_request", "; ".join(problems[:5]))
    phrases = tuple(item.phrase for item in request.objects)
    stacked = np.stack(masks) if masks else np.zeros((0, request.height, request.width), bool)  # (objects, h, w)
    edges = sum(int(np.count_nonzero(np.diff(stacked, axis=axis))) for axis in (1, 2))
    if edges > _MAX_EDGES:
        raise ServiceError(413, "too_rough", f"the masks are noise: {edges:,} edges; expected at most {_MAX_EDGES:,}")
    content = prediction_labels(Prediction(stacked.astype(np.float32), stacked, phrases, 0.5), base_name(request.name))
    return {**content, "imageData": request.picture_png}


def _mask(encoded: str, size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool."""
    return np.asarray(_decoded(encoded, size).convert("L")) > _MASK_THRESHOLD


def _check_picture(encoded: str, size: tuple[int, int]) -> None:
    """Raises ValueError for an image that LabelMe or vesselseg prepare would convert."""
    mode = _decoded(encoded, size).mode
    if mode not in ("L", "RGB"):
        raise ValueError(f"a PNG of mode {mode}, expected 8-bit grey or RGB, as /predict gives it")


def _decoded(encoded: str, size: tuple[int, int]) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)), formats=("PNG",))
        if image.size == size:  # decoded only with the right size, which limits memory
            image.load()
    except DECODE_ERRORS:
        raise ValueError("no PNG in base64, or a damaged one") from None
    if image.size != size:
        raise ValueError(f"{image.width}x{image.height} pixels, expected {size[0]}x{size[1]}")
    return image
