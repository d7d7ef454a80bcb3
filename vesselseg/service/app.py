"""The web application: routes, errors and what /openapi.json says of them."""

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
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from vesselseg import __version__
from vesselseg.inference.predictor import Predictor
from vesselseg.reports.html import page_file, render
from vesselseg.service.errors import ServiceError, error_response
from vesselseg.service.guard import Guard, Running
from vesselseg.service.labelme import labelme_file
from vesselseg.service.metrics import Metrics
from vesselseg.service.schemas import (
    ErrorAnswer,
    Health,
    LabelMeRequest,
    Models,
    PredictAnswer,
    PredictForm,
)
from vesselseg.service.service import Service
from vesselseg.service.settings import ServiceSettings
from vesselseg.service.uploads import schema_of

_PAGE = Path(__file__).resolve().parent / "page"
_KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
_STATIC = re.compile(r"palette\.css|browse_(stage|panels)\.js|service(_[a-z]+)*\.(css|js)")
_WORDS = {
    400: "The body is no readable multipart or JSON",
    401: "No token, or a wrong one",
    403: "Request under a foreign name, or by another site's page",
    404: "Unknown model or address",
    408: "The upload took too long",
    413: "Too many bytes or pixels",
    415: "Not multipart/form-data",
    422: "An image that cannot be read, or a wrong field",
    429: "Too many requests of this client",
    500: "An error of the service",
    503: "Too much at once, stopping, or out of memory",
    507: "The result cannot be stored (--keep)",
}
_EVERYWHERE = (401, 403, 429, 500)


def create_app(predictors: Mapping[str, Predictor], settings: ServiceSettings) -> FastAPI:
    """The application; predictors: by the name that clients use, the default one first."""
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
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        responses=_errors(*_EVERYWHERE),
        # only says so in /openapi.json: the guard has looked at the token before
        dependencies=[] if settings.token is None else [Depends(HTTPBearer(auto_error=False))],
    )
    app.state.service = service
    _add_routes(app, service, metrics)
    _add_page(app)
    for kind in (ServiceError, HTTPException, RequestValidationError, ValidationError):
        app.add_exception_handler(kind, _told)
    routes = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    app.add_middleware(Guard, settings=settings, metrics=metrics, routes=routes)
    return app


def _add_routes(app: FastAPI, service: Service, metrics: Metrics) -> None:
    form = {"multipart/form-data": {"schema": schema_of(PredictForm, "image")}}

    @app.post(
        "/predict",
        responses=_errors(400, 404, 408, 413, 415, 422, 503, 507),
        openapi_extra={"requestBody": {"required": True, "content": form}},
    )
    async def predict(request: Request) -> PredictAnswer:
        """Segment one image: a probability map per phrase."""
        return await service.predict(request, _running(request))

    @app.post("/labelme", responses=_errors(400, 408, 413, 422, 503))
    async def labelme(asked: LabelMeRequest) -> dict[str, Any]:
        """Masks -> the content of a LabelMe file: a polygon per connected piece."""
        return await service.in_thread(labelme_file, asked)

    @app.get("/models")
    async def models() -> Models:
        """The models and the service's limits."""
        return service.describe_models()

    @app.get("/health", response_model=Health, responses={503: {"model": Health, "description": "Not ok"}})
    async def health() -> Response:
        """Whether requests will be answered; asks for no token."""
        found = service.health()
        return JSONResponse(found.model_dump(), 200 if found.status == "ok" else 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def counted() -> Response:
        """Counts in Prometheus' text form."""
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
        return Response(content, media_type=_KINDS[PurePosixPath(name).suffix])


def _running(request: Request) -> Running:
    return request.scope["state"]["running"]


async def _told(request: Request, error: Exception) -> JSONResponse:
    """Every refusal in the one JSON form."""
    request_id = _running(request).request_id
    if isinstance(error, ServiceError):
        return error_response(error, request_id)
    if isinstance(error, RequestValidationError) and error.errors()[0]["type"] == "json_invalid":
        told = ServiceError(400, "bad_request", "the body is no readable JSON")
    elif isinstance(error, RequestValidationError):
        told = ServiceError(422, "invalid_request", "; ".join(_findings(error)[:5]))
    elif isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed", 400: "bad_request"}.get(error.status_code, "refused")
        told = ServiceError(error.status_code, code, _REASONS.get(code, str(error.detail)))
    else:
        raise error
    return error_response(told, request_id)


_REASONS = {
    "not_found": "there is nothing here; /openapi.json lists what there is",
    "method_not_allowed": "another method is expected here; /openapi.json lists them",
}


def _findings(error: RequestValidationError) -> list[str]:
    listed = []
    for found in error.errors():
        place = ".".join(str(part) for part in found["loc"] if part != "body") or "body"
        listed.append(f"{place[:80]}: {found['msg'][:1].lower()}{found['msg'][1:]}")
    return listed


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": _WORDS[status]} for status in statuses}
