"""The JSON that goes in and out, as /openapi.json describes it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from vesselseg.dataset.prompts import DEFAULT_PHRASE
from vesselseg.service.settings import MOST_PHRASES

Base64Png = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"})]
_Phrases = Annotated[
    list[str],
    Field(min_length=1, max_length=MOST_PHRASES, description="What to segment; repeat the field for several."),
]


class PredictForm(BaseModel):
    """The fields beside the image of a request to /predict."""

    model_config = ConfigDict(extra="forbid")
    phrase: _Phrases = [DEFAULT_PHRASE]
    model: Annotated[str | None, Field(description="A name of /models; the first one by default.")] = None
    threshold: Annotated[
        float | None, Field(gt=0, lt=1, description="A probability; the one stored with the model by default.")
    ] = None
    frame: Annotated[int, Field(ge=0, description="Which frame of a DICOM clip or video, counted from 0.")] = 0


class FoundObject(BaseModel):
    """What was found for one phrase. pixels, share (0 to 1, of the image): of the mask at the answer's threshold."""

    phrase: str
    probability_png: Annotated[
        Base64Png, Field(description="8-bit grey, width x height of the picture; probability = value / 255.")
    ]
    pixels: int
    share: float


class PredictAnswer(BaseModel):
    """name: the upload's file name. frames, frame: of a clip; 1 and 0 otherwise. seconds: from request to answer."""

    request_id: str
    model: str
    name: str
    width: int
    height: int
    frames: int
    frame: int
    threshold: float
    picture_png: Annotated[Base64Png, Field(description="8-bit RGB: what was segmented, upright.")]
    stem: Annotated[
        str,
        Field(
            description="What files made of this picture are called, without their ending: angio for angio.png, "
            "clip_f006 for frame 5 of clip.dcm, counted from 1 there as tools/prepare_data.py counts."
        ),
    ]
    labelme_opens: Annotated[
        bool,
        Field(
            description="Whether LabelMe opens the uploaded file as it was segmented. Where it does not (a frame, "
            "DICOM, 16 bits, CMYK), send /labelme the picture as well."
        ),
    ]
    notes: Annotated[list[str], Field(description="What was changed or guessed while the image was read.")]
    objects: list[FoundObject]
    seconds: float


class ModelDescription(BaseModel):
    """phrases: what it can be asked; null for a model that takes any phrase. threshold: stored with the model."""

    name: str
    kind: Literal["sa2va", "sam2_only"]
    threshold: float
    phrases: list[str] | None


class Limits(BaseModel):
    """What the service accepts, so that a client can tell before it sends."""

    max_bytes: Annotated[int, Field(description="Of a request's body.")]
    phrases: int
    pixels_times_phrases: int
    requests_per_second: Annotated[
        float, Field(description="Of one client on average, the page and its files not counted; 0 is without a limit.")
    ]


class Models(BaseModel):
    """The models of this service, the default one first."""

    models: list[ModelDescription]
    limits: Limits


class LabelMeObject(BaseModel):
    """A mask, drawn or corrected."""

    phrase: Annotated[str, Field(min_length=1, max_length=500)]
    mask_png: Annotated[Base64Png, Field(description="8-bit grey, width x height of the picture; above 127 is vessel.")]


class LabelMeRequest(BaseModel):
    """name: the image's file name, which the LabelMe file refers to.

    picture_png: the picture itself, for the LabelMe file to hold where LabelMe opens no such file; name then says what
    it would be called.
    """

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=255)]
    width: Annotated[int, Field(ge=1, le=100_000)]
    height: Annotated[int, Field(ge=1, le=100_000)]
    objects: Annotated[list[LabelMeObject], Field(max_length=4 * MOST_PHRASES)]
    picture_png: Annotated[
        Base64Png | None, Field(description="8-bit grey or RGB, width x height: becomes LabelMe's imageData.")
    ] = None


class Health(BaseModel):
    """models: whether each one's thread lives and its last requests did not all fail."""

    status: Literal["ok", "failing", "stopping"]
    version: str
    models: dict[str, bool]


class ErrorDetail(BaseModel):
    """code: one word for programs. message: for people. request_id: to be found in the service's log."""

    code: str
    message: str
    request_id: str


class ErrorAnswer(BaseModel):
    """The form that all errors have."""

    error: ErrorDetail
