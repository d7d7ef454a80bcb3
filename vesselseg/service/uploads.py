"""A request's multipart form -> image bytes and validated fields, in memory only."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from vesselseg.dataset.prompts import clean_phrase
from vesselseg.service.errors import ServiceError
from vesselseg.service.settings import MAX_PHRASES

_REPEATABLE = "phrase"
_MAX_PROBLEMS = 5  # reported per request
_MAX_QUOTED = 80  # characters of a wrong value quoted in a message
_Form = TypeVar("_Form", bound=BaseModel)
_SomeForm = TypeVar("_SomeForm", bound=BaseModel, covariant=True)


@dataclass(frozen=True)
class Upload(Generic[_SomeForm]):
    """A request with an image file."""

    content: bytes  # of the image file
    name: str  # of the file, without folders
    form: _SomeForm  # the other fields


class _InMemoryParser(MultiPartParser):
    """Never spools an upload to a temporary file, so no patient data is written to disk."""

    spool_max_size = 1 << 50


async def read_upload(request: Request, expected: type[_Form]) -> Upload[_Form]:
    """The request's form. Raises ServiceError that lists all problems."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise ServiceError(
            415,
            "unsupported_type",
            f"Content-Type is {kind[:_MAX_QUOTED]!r}; expected multipart/form-data with the file field image, e.g. "
            "curl -F image=@angiogram.png -F 'phrase=blood vessel'",
        )
    parser = _InMemoryParser(request.headers, request.stream(), max_files=1, max_fields=MAX_PHRASES + 8)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ServiceError(400, "bad_multipart", f"the multipart body cannot be read: {error.message}") from None
    try:
        return await _checked(form, expected)
    finally:
        await form.close()


async def _checked(form: FormData, expected: type[_Form]) -> Upload[_Form]:
    fields: dict[str, list[str]] = defaultdict(list)
    image: UploadFile | None = None
    problems = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile) and name == "image":
            image = value
        elif isinstance(value, UploadFile) or name == "image":
            problems.append(_misplaced(name, expected))
        else:
            fields[name].append(value)
    if image is None and not problems:
        problems.append("image: missing; expected a file")
    known = _parse(fields, expected, problems)
    if problems or image is None or known is None:
        raise ServiceError(422, "invalid_request", "; ".join(problems[:_MAX_PROBLEMS]))
    return Upload(await image.read(), base_name(image.filename or ""), known)


def _misplaced(name: str, expected: type[BaseModel]) -> str:
    """The problem with text in the field image, or with a file in another field."""
    if name == "image":
        return "image: expected a file (with a file name)"
    reason = "expected text" if name in expected.model_fields else "unknown field; the file's field is image"
    return f"{name[:_MAX_QUOTED]}: {reason}"


def _parse(fields: dict[str, list[str]], expected: type[_Form], problems: list[str]) -> _Form | None:
    single = {name: values[-1] for name, values in fields.items() if name != _REPEATABLE}
    problems += [f"{name}: given {len(fields[name])} times, expected once" for name in single if len(fields[name]) > 1]
    phrases = []
    for phrase in fields.get(_REPEATABLE, ()):
        try:
            phrases.append(clean_phrase(phrase))
        except ValueError as error:
            problems.append(f"phrase: {error}")
    repeated = {_REPEATABLE: list(dict.fromkeys(phrases))} if phrases else {}
    try:
        return expected.model_validate({**single, **repeated})
    except ValidationError as error:
        problems += describe_problems(error)
        return None


def describe_problems(error: ValidationError) -> list[str]:
    """Pydantic's errors, one line each."""
    messages = []
    for problem in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in problem["loc"])[:_MAX_QUOTED]
        value, kind = problem["input"], problem["type"]
        if kind == "extra_forbidden":
            messages.append(f"{place}: unknown field")
            continue
        quoted = f" (found {value[:_MAX_QUOTED]!r})" if isinstance(value, str) and kind != "missing" else ""
        messages.append(f"{place}: {problem['msg'][:1].lower()}{problem['msg'][1:]}{quoted}")
    return messages


def base_name(name: str) -> str:
    """The last part of a POSIX or Windows path, without control characters; "image" if that is empty."""
    last = PurePosixPath(PureWindowsPath(name).name).name
    return "".join(character for character in last if character.isprintable())[:255] or "image"


def result_stem(name: str, frame: int | None) -> str:
    """A file's name without its suffix; for a clip with the frame number: clip_f006 for frame 5, counted from 0.

    Names count from 1, as the page shows frames and as `vesselseg prepare` reads the frame from a label's name.
    DICOM files named by a UID have no suffix.
    """
    path = PurePosixPath(name)
    stem = path.name if path.suffix[1:].isdigit() else path.stem
    return stem if frame is None else f"{stem}_f{frame + 1:03d}"


def form_schema(form: type[BaseModel], file: str) -> dict[str, object]:
    """The OpenAPI schema of a multipart form: the model's fields and one file."""
    schema = form.model_json_schema()
    properties = {file: {"type": "string", "format": "binary", "description": "Any image, DICOM file or video."}}
    properties |= schema["properties"]
    return {"type": "object", "required": [file], "properties": properties, "additionalProperties": False}
