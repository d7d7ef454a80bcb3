"""Work for a client ends as soon as the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.types import Receive

from vesselseg.service.errors import ClientGone

_Result = TypeVar("_Result")


class Client:
    """The client of a request whose body was received."""

    def __init__(self, gone: asyncio.Future[None]) -> None:
        self._gone = gone

    async def unless_gone(self, work: Awaitable[_Result]) -> _Result:
        """The result of the work; cancels it and raises ClientGone if the client disconnects first."""
        task = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {task, self._gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise ClientGone
        finally:
            task.cancel()
            await asyncio.wait({task})


@asynccontextmanager
async def watched_client(receive: Receive) -> AsyncIterator[Client]:
    """receive: of a request whose body was received."""
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        yield Client(gone)
    finally:
        gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
