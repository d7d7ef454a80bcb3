"""A service that listens: models loaded, signals obeyed."""

from __future__ import annotations

import ctypes
import logging
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from vesselseg.errors import UserError, describe_os_error
from vesselseg.service.service import Service
from vesselseg.service.settings import ServiceSettings

_STOP_S = 30.0  # seconds that running requests get to end
_BACKLOG = 2048  # connections that wait to be taken, as many as uvicorn lets
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_LOG = logging.getLogger("vesselseg.service")


class ServiceServer(uvicorn.Server):
    """Stops gently: the first signal lets running requests end while new ones get 503, the second one ends them."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._stop_at = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM and SIGINT come here."""
        if self._stop_at:
            super().handle_exit(sig, frame)
            return
        self._stop_at = time.monotonic() + _STOP_S
        self._service.stopping = True
        _LOG.info("stopping: %d requests are being served", self._service.accepted)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self._stop_at and (not self._service.accepted or time.monotonic() > self._stop_at):
            self.should_exit = True
        return await super().on_tick(counter)


def serve(app: FastAPI, settings: ServiceSettings) -> None:
    """Listen until a signal comes. Raises UserError where the address is taken."""
    give_memory_back()
    listening = listen(settings)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    _LOG.info("open http://%s:%d/  (Ctrl-C ends it)", host, listening.getsockname()[1])
    server_for(app).run([listening])


def give_memory_back() -> None:
    """Keep glibc from holding on to memory that is free again; elsewhere nothing is done.

    By itself it raises the size from which memory goes back to the system at once to 32 MiB, as pictures come and go,
    and keeps the rest in an arena per thread: the process grows for hours though nothing of it is in use (mallopt(3)).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 17)
        libc.mallopt(_M_ARENA_MAX, 2)


def server_for(app: FastAPI) -> ServiceServer:
    """The server of an application of `create_app`; its `run` takes a socket of `listen`."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,  # a client's address is what rates are counted by; it cannot be claimed
        ws="none",
        timeout_keep_alive=75,  # a connection closed just as its client asks again is an error there
        timeout_graceful_shutdown=5,
    )
    return ServiceServer(config, app.state.service)


def listen(settings: ServiceSettings) -> socket.socket:
    """The listening socket. Raises UserError where the address is taken or is not this machine's."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(_BACKLOG)  # who reads the address and connects at once waits for the start; nobody is refused
    except OSError as error:
        listening.close()
        where = f"--host {settings.host} --port {settings.port}"
        raise UserError(f"{where}: {describe_os_error(error)}; choose another, or --port 0 for a free one") from None
    return listening


def model_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart: a/hf and b/hf, but x and y.

    Raises UserError for a model that is named twice.
    """
    parts = [Path(path).absolute().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError("a model is named twice; name each one once")
    names = []
    for one in parts:
        length = 1
        while sum(other[-length:] == one[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(one[-length:]))
    return names
