"""An upload -> its frames as pictures; pictures and predictions -> PNG."""

from __future__ import annotations

import base64
import io
from functools import partial

import numpy as np
from PIL import Image

from vesselseg.imaging import dicom_series
from vesselseg.imaging.frames import DicomFrames, FrameSource, UnreadableInputError, open_frames
from vesselseg.inference.predictor import Prediction
from vesselseg.service.errors import ServiceError
from vesselseg.service.model_queue import MAX_REQUEST_PIXELS
from vesselseg.service.schemas import FoundObject
from vesselseg.service.uploads import Upload

_COMPRESSION = 1  # PNG level: twice as fast as the default 6, files a tenth larger


def open_upload(upload: Upload, phrases: int) -> FrameSource:
    """Open the uploaded file. phrases: their number. Raises ServiceError if it is unreadable or has too many pixels."""
    try:
        pictures = open_frames(upload.name, upload.content, partial(_check_size, phrases))
    except UnreadableInputError as error:
        raise ServiceError(422, "unreadable_image", str(error)) from None
    _check_size(phrases, pictures.size)  # again after opening, since the size in a header may be wrong
    return pictures


def check_frame(pictures: FrameSource, number: int) -> None:
    """Raises ServiceError if the file does not have this frame."""
    if number >= pictures.frames:
        raise ServiceError(422, "no_such_frame", f"frame {number}; the file has {pictures.frames}, counted from 0")


def read_frame(pictures: FrameSource, number: int) -> Image.Image:
    """Decode one frame. Raises ServiceError if it is damaged."""
    try:
        return pictures.frame(number)
    except UnreadableInputError as error:
        raise ServiceError(422, "unreadable_image", str(error)) from None


def instance_of(pictures: FrameSource) -> str | None:
    """SOPInstanceUID of an uploaded DICOM file; None for any other file and for one without it."""
    return dicom_series.instance_of(pictures.file.header) if isinstance(pictures, DicomFrames) else None


def _check_size(phrases: int, size: tuple[int, int]) -> None:
    """Raises ServiceError if a request has too many pixels. size: (width, height)."""
    width, height = size
    if width * height * phrases > MAX_REQUEST_PIXELS:
        raise ServiceError(
            413,
            "too_many_pixels",
            f"{width}x{height} pixels times {phrases} phrases; expected at most {MAX_REQUEST_PIXELS:,} together; "
            "send a smaller image or fewer phrases",
        )


def encode_objects(prediction: Prediction) -> list[FoundObject]:
    """The objects of a response."""
    return [
        FoundObject(
            phrase=phrase,
            probability_png=encode_png(Image.fromarray(np.rint(probability * 255).astype(np.uint8))),
            pixels=int(mask.sum()),
            share=round(float(mask.mean()), 6),
        )
        for phrase, probability, mask in zip(prediction.phrases, prediction.probabilities, prediction.masks)
    ]


def encode_png(image: Image.Image) -> str:
    """Base64 of a PNG without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=_COMPRESSION, exif=b"", icc_profile=None)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
