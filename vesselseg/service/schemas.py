"""Requests and responses, as /openapi.json describes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from vesselseg.dataset.prompts import DEFAULT_PHRASE
from vesselseg.service.settings import MAX_CLIP_FRAMES, MAX_PHRASES

Base64Png = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"})]
_Phrases = Annotated[
    list[str],
    Field(min_length=1, max_length=MAX_PHRASES, description="What to segment; repeat the field for several phrases."),
]


class QuestionForm(BaseModel):
    """What to segment."""

    model_config = ConfigDict(extra="forbid")
    phrase: _Phrases = [DEFAULT_PHRASE]
    model: Annotated[str | None, Field(description="A name from /models; by default the first one.")] = None
    threshold: Annotated[
        float | None, Field(gt=0, lt=1, description="A probability; by default the one stored with the model.")
    ] = None


class PredictForm(QuestionForm):
    """The fields of a request to /predict, in addition to the image."""

    frame: Annotated[int, Field(ge=0, description="Frame of a DICOM clip or video, counted from 0.")] = 0


class FramesForm(BaseModel):
    """The fields of a request to /frames, in addition to the image."""

    model_config = ConfigDict(extra="forbid")
    first: Annotated[int, Field(ge=0, description="The first frame of the response, counted from 0.")] = 0
    count: Annotated[
        int | None,
        Field(ge=1, description=f"Number of frames, at most {MAX_CLIP_FRAMES}; by default all up to the last one."),
    ] = None


class ClipForm(QuestionForm, FramesForm):
    """The fields of a request to /clip, in addition to the image."""

    pictures: Annotated[bool, Field(description="Whether the response contains the segmented pictures.")] = True


class FoundObject(BaseModel):
    """The result for one phrase. pixels, share (0 to 1, of the image): of the mask at the response's threshold."""

    phrase: str
    probability_png: Annotated[
        Base64Png, Field(description="8-bit grey, width x height of the picture; probability = value / 255.")
    ]
    pixels: int
    share: float


class PredictAnswer(BaseModel):
    """The result for one image."""

    request_id: str
    model: str
    name: Annotated[str, Field(description="File name of the upload.")]
    width: int
    height: int
    frames: Annotated[int, Field(description="Frames of the clip; 1 for an image.")]
    frame: Annotated[int, Field(description="The segmented frame, counted from 0.")]
    threshold: float
    picture_png: Annotated[Base64Png, Field(description="8-bit RGB: the segmented image, upright.")]
    stem: Annotated[
        str,
        Field(
            description="Name, without suffix, for files made from this image: angio for angio.png, clip_f006 for "
            "frame 5 of clip.dcm. Frames in names are counted from 1, as by vesselseg prepare."
        ),
    ]
    labelme_opens: Annotated[
        bool,
        Field(
            description="Whether LabelMe opens the uploaded file as it was segmented. If not (a frame, DICOM, 16 bits, "
            "CMYK), send picture_png to /labelme as well."
        ),
    ]
    notes: Annotated[list[str], Field(description="What was converted or assumed when the image was read.")]
    instance: Annotated[str | None, Field(description="SOPInstanceUID of a DICOM file; else null.")] = None
    objects: list[FoundObject]
    seconds: Annotated[float, Field(description="From request to response.")]


class ClipHeader(BaseModel):
    """The first line of a response to /frames or /clip. model, threshold: null for /frames."""

    request_id: str
    name: Annotated[str, Field(description="File name of the upload.")]
    width: int
    height: int
    frames: Annotated[int, Field(description="Frames of the clip; 1 for an image.")]
    first: Annotated[int, Field(description="The first frame of this response, counted from 0.")]
    count: Annotated[int, Field(description="Frames of this response, a line each.")]
    frame_rate: Annotated[float | None, Field(description="Mean frames per second by the header; null if unknown.")]
    model: str | None
    threshold: float | None
    labelme_opens: bool
    notes: list[str]
    instance: Annotated[str | None, Field(description="SOPInstanceUID of a DICOM file; else null.")] = None


class FrameLine(BaseModel):
    """A line per frame. The fields are those of `PredictAnswer`."""

    frame: int
    stem: str
    picture_png: Base64Png | None
    objects: list[FoundObject]
    seconds: Annotated[float, Field(description="From request to this line.")]


class ModelDescription(BaseModel):
    """phrases: those that the model can segment; null if it accepts any. threshold: stored with the model."""

    name: str
    kind: Literal["sa2va", "sam2_only"]
    threshold: float
    phrases: list[str] | None


class Limits(BaseModel):
    """Limits of the service, so that a client can check a request before sending it."""

    max_bytes: Annotated[int, Field(description="Of the body of a request.")]
    phrases: int
    clip_frames: Annotated[int, Field(description="Frames of a clip per request.")]
    pixels_times_phrases: int
    requests_per_second: Annotated[
        float, Field(description="Mean rate of one client, excluding the page and its files; 0 means unlimited.")
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

    picture_png: the image itself, to be embedded if LabelMe cannot open its file; name is then the name it would have.
    """

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=255)]
    width: Annotated[int, Field(ge=1, le=100_000)]
    height: Annotated[int, Field(ge=1, le=100_000)]
    objects: Annotated[list[LabelMeObject], Field(max_length=4 * MAX_PHRASES)]
    picture_png: Annotated[
        Base64Png | None, Field(description="8-bit grey or RGB, width x height: becomes LabelMe's imageData.")
    ] = None


class Health(BaseModel):
    """models: whether each model is running and its last requests did not all fail."""

    status: Literal["ok", "failing", "stopping"]
    version: str
    models: dict[str, bool]


class ErrorDetail(BaseModel):
    """code: a word for programs. message: for people. request_id: as in the log of the service."""

    code: str
    message: str
    request_id: str


class ErrorAnswer(BaseModel):
    """The form of all errors."""

    error: ErrorDetail
