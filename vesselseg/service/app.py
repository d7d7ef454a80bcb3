"""The web application: routes, error responses and their description in /openapi.json."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from vesselseg import __version__
from vesselseg.inference.predictor import Predictor
from vesselseg.reports.html import page_file, render
from vesselseg.service.clips import clip_lines, frame_lines
from vesselseg.service.errors import ServiceError, error_response
from vesselseg.service.guard import Guard, RequestInfo
from vesselseg.service.json_lines import JSON_LINES, JsonLines
from vesselseg.service.labelme import labelme_file
from vesselseg.service.metrics import Metrics
from vesselseg.service.schemas import (
    ClipForm,
    ClipHeader,
    ErrorAnswer,
    FrameLine,
    FramesForm,
    Health,
    LabelMeRequest,
    Models,
    PredictAnswer,
    PredictForm,
)
from vesselseg.service.service import Service
from vesselseg.service.settings import ServiceSettings
from vesselseg.service.uploads import form_schema

_PAGE = Path(__file__).resolve().parent / "page"
_MEDIA_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
_STATIC = re.compile(r"palette\.css|browse_(stage|panels)\.js|service(_[a-z]+)*\.(css|js)")
_DESCRIPTIONS = {
    400: "The body is not valid multipart or JSON",
    401: "Missing or wrong token",
    403: "Foreign Host header, or a request from another site's page",
    404: "Unknown model or path",
    408: "The upload took too long",
    413: "Too many bytes or pixels",
    415: "Not multipart/form-data",
    422: "Unreadable image or invalid field",
    429: "Too many requests from this client",
    500: "Internal error of the service",
    503: "Too many requests, stopping, or out of memory",
    507: "The result cannot be stored (--keep)",
}
_COMPONENT = "#/components/schemas/{model}"
_COMMON_ERRORS = (401, 403, 429, 500)
_UPLOAD_ERRORS = (400, 408, 413, 415, 422, 503)


def create_app(predictors: Mapping[str, Predictor], settings: ServiceSettings) -> FastAPI:
    """The application; predictors: by the model name that clients use, the default one first."""
    metrics = Metrics()
    service = Service(predictors, settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="vesselseg",
        version=__version__,
        summary="Segment vessels in images with a trained model.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from other sites
        redoc_url=None,
        responses=_errors(*_COMMON_ERRORS),
        # Only for /openapi.json: Guard has already checked the token.
        dependencies=[] if settings.token is None else [Depends(HTTPBearer(auto_error=False))],
    )
    app.state.service = service
    _add_routes(app, service, metrics)
    _add_page(app)
    for kind in (ServiceError, HTTPException, RequestValidationError, ValidationError):
        app.add_exception_handler(kind, _handle_error)
    routes = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    app.add_middleware(Guard, settings=settings, metrics=metrics, routes=routes)
    return app


def _add_routes(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.post("/predict", responses=_errors(*_UPLOAD_ERRORS, 404, 507), openapi_extra=_form(PredictForm))
    async def predict(request: Request) -> PredictAnswer:
        """Segment one image: a probability map per phrase."""
        return await service.predict(request, _request_info(request))

    @app.post(
        "/clip",
        response_class=Response,
        responses={**_lines(FrameLine), **_errors(*_UPLOAD_ERRORS, 404, 507)},
        openapi_extra=_form(ClipForm),
    )
    async def clip(request: Request) -> JsonLines:
        """Segment the frames of a clip: a line of JSON about the clip, then one per frame, as each is finished."""
        info = _request_info(request)
        return JsonLines(clip_lines(service, request, info), info)

    @app.post(
        "/frames",
        response_class=Response,
        responses={**_lines(FrameLine), **_errors(*_UPLOAD_ERRORS)},
        openapi_extra=_form(FramesForm),
    )
    async def frames(request: Request) -> JsonLines:
        """Decode images and clips without a model: a line of JSON about the file, then one per frame."""
        info = _request_info(request)
        return JsonLines(frame_lines(service, request, info), info)

    @app.post("/labelme", responses=_errors(400, 408, 413, 422, 503))
    async def labelme(request: LabelMeRequest) -> dict[str, Any]:
        """Masks -> the content of a LabelMe file: one polygon per connected component."""
        return await service.in_thread(labelme_file, request)

    @app.get("/models")
    async def models() -> Models:
        """The models and the limits of the service."""
        return service.describe_models()

    @app.get("/health", response_model=Health, responses={503: {"model": Health, "description": "Not ok"}})
    async def health() -> Response:
        """Whether the service can answer requests; needs no token."""
        state = service.health()
        return JSONResponse(state.model_dump(), 200 if state.status == "ok" else 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics_text() -> Response:
        """Metrics in the Prometheus text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(render("service.html.j2", _PAGE, version=__version__))

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        try:
            content = page_file(name, _PAGE) if _STATIC.fullmatch(name) else None
        except FileNotFoundError:
            content = None
        if content is None:
            raise HTTPException(404)
        return Response(content, media_type=_MEDIA_TYPES[PurePosixPath(name).suffix])


def _request_info(request: Request) -> RequestInfo:
    return request.scope["state"]["request_info"]


async def _handle_error(request: Request, error: Exception) -> JSONResponse:
    """Every error response in the same JSON form."""
    request_id = _request_info(request).request_id
    if isinstance(error, ServiceError):
        return error_response(error, request_id)
    if isinstance(error, RequestValidationError) and error.errors()[0]["type"] == "json_invalid":
        refusal = ServiceError(400, "bad_request", "the body is not valid JSON")
    elif isinstance(error, RequestValidationError):
        refusal = ServiceError(422, "invalid_request", "; ".join(_validation_messages(error)[:5]))
    elif isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed", 400: "bad_request"}.get(error.status_code, "refused")
        refusal = ServiceError(error.status_code, code, _REASONS.get(code, str(error.detail)))
    else:
        raise error
    return error_response(refusal, request_id)


_REASONS = {
    "not_found": "no such path; /openapi.json lists all paths",
    "method_not_allowed": "this path does not accept the method; /openapi.json lists those that it accepts",
}


def _validation_messages(error: RequestValidationError) -> list[str]:
    messages = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"] if part != "body") or "body"
        messages.append(f"{place[:80]}: {problem['msg'][:1].lower()}{problem['msg'][1:]}")
    return messages


def _form(form: type[BaseModel]) -> dict[str, Any]:
    """The description of a request with an image file."""
    content = {"multipart/form-data": {"schema": form_schema(form, "image")}}
    return {"requestBody": {"required": True, "content": content}}


def _lines(line: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The description of a response of JSON lines."""
    schemas = [kind.model_json_schema(ref_template=_COMPONENT) for kind in (ClipHeader, line, ErrorAnswer)]
    schema = {"oneOf": [{key: value for key, value in one.items() if key != "$defs"} for one in schemas]}
    return {200: {"description": "One JSON object per line", "content": {JSON_LINES: {"schema": schema}}}}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": _DESCRIPTIONS[status]} for status in statuses}
