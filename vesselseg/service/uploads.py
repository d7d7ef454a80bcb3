"""A request's multipart form -> an image's bytes and checked fields, in memory only."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from vesselseg.dataset.prompts import clean_phrase
from vesselseg.service.errors import ServiceError
from vesselseg.service.schemas import PredictForm
from vesselseg.service.settings import MOST_PHRASES

_REPEATABLE = "phrase"
_SHOWN = 5  # problems of one request
_LONGEST_VALUE = 80  # characters of a wrong value that are repeated


@dataclass(frozen=True)
class Upload:
    """An image's bytes, the file's name without its folders, the form's other fields."""

    content: bytes
    name: str
    form: PredictForm


class _InMemoryParser(MultiPartParser):
    """Never puts an upload into a temporary file: nothing of a patient's is written to a disk."""

    spool_max_size = 1 << 50


async def read_upload(request: Request) -> Upload:
    """The form of /predict. Raises ServiceError with everything that is wrong with it."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise ServiceError(
            415,
            "unsupported_type",
            f"Content-Type is {kind[:_LONGEST_VALUE]!r}; expected multipart/form-data with the file field image, e.g. "
            "curl -F image=@angiogram.png -F 'phrase=blood vessel'",
        )
    parser = _InMemoryParser(request.headers, request.stream(), max_files=1, max_fields=MOST_PHRASES + 8)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ServiceError(400, "bad_multipart", f"the multipart body cannot be read: {error.message}") from None
    try:
        return await _checked(form)
    finally:
        await form.close()


async def _checked(form: FormData) -> Upload:
    fields: dict[str, list[str]] = defaultdict(list)
    image: UploadFile | None = None
    problems = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile) and name == "image":
            image = value
        elif isinstance(value, UploadFile) or name == "image":
            problems.append(_misplaced(name))
        else:
            fields[name].append(value)
    if image is None and not problems:
        problems.append("image: missing; expected a file")
    known = _parse(fields, problems)
    if problems or image is None or known is None:
        raise ServiceError(422, "invalid_request", "; ".join(problems[:_SHOWN]))
    return Upload(await image.read(), base_name(image.filename or ""), known)


def _misplaced(name: str) -> str:
    """What is wrong with text for the image, or with a file as another field: unknown, or one that takes text."""
    if name == "image":
        return "image: expected a file (with a file name)"
    wanted = "expected text" if name in PredictForm.model_fields else "unknown field; the file's field is image"
    return f"{name[:_LONGEST_VALUE]}: {wanted}"


def _parse(fields: dict[str, list[str]], problems: list[str]) -> PredictForm | None:
    single = {name: values[-1] for name, values in fields.items() if name != _REPEATABLE}
    problems += [f"{name}: given {len(fields[name])} times, expected once" for name in single if len(fields[name]) > 1]
    phrases = []
    for phrase in fields.get(_REPEATABLE, ()):
        try:
            phrases.append(clean_phrase(phrase))
        except ValueError as error:
            problems.append(f"phrase: {error}")
    given = {_REPEATABLE: list(dict.fromkeys(phrases))} if phrases else {}
    try:
        return PredictForm.model_validate({**single, **given})
    except ValidationError as error:
        problems += describe_problems(error)
        return None


def describe_problems(error: ValidationError) -> list[str]:
    """Pydantic's findings, one phrase each."""
    listed = []
    for found in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in found["loc"])
        value = found["input"]
        shown = f" (found {value[:_LONGEST_VALUE]!r})" if isinstance(value, str) and found["type"] != "missing" else ""
        words = "unknown field" if found["type"] == "extra_forbidden" else found["msg"][:1].lower() + found["msg"][1:]
        listed.append(f"{place[:_LONGEST_VALUE]}: {words}{'' if found['type'] == 'extra_forbidden' else shown}")
    return listed


def base_name(name: str) -> str:
    """The last part of a path as any system writes it, without control characters; "image" where nothing is left."""
    last = PurePosixPath(PureWindowsPath(name).name).name
    return "".join(sign for sign in last if sign.isprintable())[:255] or "image"


def stem_of(name: str, frame: int | None) -> str:
    """A file's name without its ending; the frame of a clip, counted from 0, is told from 1: clip_f006.

    So the page shows it, and so `tools/prepare_data.py` finds the frame that a label's name ends in. DICOM files named
    by a UID have no ending.
    """
    path = PurePosixPath(name)
    stem = path.name if path.suffix[1:].isdigit() else path.stem
    return stem if frame is None else f"{stem}_f{frame + 1:03d}"


def schema_of(form: type[BaseModel], file: str) -> dict[str, object]:
    """What OpenAPI says of a multipart form: the model's fields and one file."""
    schema = form.model_json_schema()
    properties = {file: {"type": "string", "format": "binary", "description": "Any image, DICOM file or video."}}
    properties |= schema["properties"]
    return {"type": "object", "required": [file], "properties": properties, "additionalProperties": False}
