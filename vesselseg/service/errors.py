"""What a client is told when a request cannot be served."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse


class ServiceError(Exception):
    """A refusal. code: one word for programs; message: what, found, expected, what to do.

    retry_after: seconds after which the same request may succeed, or None where it will not.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


class ClientGone(Exception):  # noqa: N818 - nobody is told
    """The client closed the connection before its answer was there."""


def error_response(error: ServiceError, request_id: str) -> JSONResponse:
    """The JSON form that all errors have."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content: dict[str, Any] = {"code": error.code, "message": error.message, "request_id": request_id}
    return JSONResponse({"error": content}, error.status, headers)


def busy(message: str) -> ServiceError:
    """Too much at once, for now."""
    return ServiceError(503, "busy", message, retry_after=2)
