"""A response of JSON lines that are sent as they are made: a clip's frames, one by one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vesselseg.service.disconnects import watched_client
from vesselseg.service.errors import ClientGone, ServiceError, error_content, internal_error
from vesselseg.service.guard import RequestInfo

JSON_LINES = "application/x-ndjson"
SEND_TIMEOUT_S = 60.0  # for one line: a client that stops reading must not hold its place
_LOG = logging.getLogger("vesselseg.service")


class JsonLines(Response):
    """lines: whatever it raises before the first line becomes an ordinary error response, later a last line `error`.

    It is closed when the client disconnects.
    """

    media_type = JSON_LINES

    def __init__(self, lines: AsyncGenerator[BaseModel, None], info: RequestInfo) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._lines, self._info = lines, info

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines."""
        try:
            line: BaseModel | None = await anext(self._lines)
            self._info.streams = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with watched_client(receive) as client:
                while line is not None:
                    await self._send(send, line)
                    line = await client.unless_gone(self._next())
        except ServiceError as error:
            if not self._info.streams:
                raise
            await self._end(send, error)
        except Exception as error:
            if not self._info.streams or isinstance(error, ClientGone):
                raise
            _LOG.exception("id=%s failed", self._info.request_id)
            await self._end(send, internal_error())
        else:
            await send({"type": "http.response.body", "body": b""})
        finally:
            await self._lines.aclose()

    async def _next(self) -> BaseModel | None:
        return await anext(self._lines, None)

    async def _send(self, send: Send, line: BaseModel) -> None:
        message = {"type": "http.response.body", "body": f"{line.model_dump_json()}\n".encode(), "more_body": True}
        try:
            await asyncio.wait_for(send(message), SEND_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise ClientGone from None

    async def _end(self, send: Send, error: ServiceError) -> None:
        """The log line and the metrics have the error's status, although the client got 200 with the first line."""
        self._info.status = error.status
        body = error_content(error, self._info.request_id) + b"\n"
        await send({"type": "http.response.body", "body": body})
