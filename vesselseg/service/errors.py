"""Errors of the service, and the response that a client gets."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse


class ServiceError(Exception):
    """A refused request. code: a word for programs; message: what is wrong, what is expected, and what to do.

    retry_after: seconds after which the same request may succeed; None if it will not.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


class ClientGone(Exception):  # noqa: N818 - not an error: nobody waits for a response
    """The client closed the connection before the response was ready."""


def error_response(error: ServiceError, request_id: str) -> JSONResponse:
    """The JSON form of all errors."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(_content(error, request_id), error.status, headers)


def error_content(error: ServiceError, request_id: str) -> bytes:
    """The same form as one line of JSON, for a response that has begun."""
    return json.dumps(_content(error, request_id)).encode()


def _content(error: ServiceError, request_id: str) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message, "request_id": request_id}}


def busy(message: str) -> ServiceError:
    """Too many requests at the moment."""
    return ServiceError(503, "busy", message, retry_after=2)


def internal_error() -> ServiceError:
    """A defect, or a failure of the model; the log has the traceback."""
    return ServiceError(500, "internal", "internal error of the service; its log has the details under this request_id")
