"""The running service: listening socket, server, signals."""

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

_STOP_S = 30.0  # seconds for running requests to finish
_BACKLOG = 2048  # connections waiting to be accepted, uvicorn's default
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_LOG = logging.getLogger("vesselseg.service")


class ServiceServer(uvicorn.Server):
    """Stops gracefully: after the first signal running requests finish and new ones get 503; a second one ends them."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._stop_at = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handler of SIGTERM and SIGINT."""
        if self._stop_at:
            super().handle_exit(sig, frame)
            return
        self._stop_at = time.monotonic() + _STOP_S
        self._service.stopping = True
        _LOG.info("stopping: %d requests are being served", self._service.accepted)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if self._stop_at and (not self._service.accepted or time.monotonic() > self._stop_at):
            self.should_exit = True
        return await super().on_tick(counter)


def serve(app: FastAPI, settings: ServiceSettings) -> None:
    """Serve until a signal arrives. Raises UserError if the address is in use."""
    release_freed_memory()
    listening = open_socket(settings)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    _LOG.info("open http://%s:%d/  (Ctrl-C ends it)", host, listening.getsockname()[1])
    build_server(app).run([listening])


def release_freed_memory() -> None:
    """Make glibc return freed memory to the system; no effect with other C libraries.

    By default glibc raises its mmap threshold to 32 MiB as images are freed and keeps smaller blocks in one arena per
    thread, so the process grows for hours although the memory is not in use (mallopt(3)).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 17)
        libc.mallopt(_M_ARENA_MAX, 2)


def build_server(app: FastAPI) -> ServiceServer:
    """The server of an application from `create_app`; pass a socket from `open_socket` to its `run`."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,  # the rate limit counts client addresses, which a header could forge
        ws="none",
        timeout_keep_alive=75,  # closing a connection just as its client sends a request causes an error there
        timeout_graceful_shutdown=5,
    )
    return ServiceServer(config, app.state.service)


def open_socket(settings: ServiceSettings) -> socket.socket:
    """The listening socket. Raises UserError if the address is in use or does not belong to this machine."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(_BACKLOG)  # clients that connect before the server starts wait instead of being refused
    except OSError as error:
        listening.close()
        where = f"--host {settings.host} --port {settings.port}"
        raise UserError(f"{where}: {describe_os_error(error)}; choose another, or --port 0 for a free one") from None
    return listening


def model_names(paths: Sequence[str]) -> list[str]:
    """The shortest path endings that are unique: a/hf and b/hf, but x and y. Raises UserError for a repeated model."""
    parts = [Path(path).absolute().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError("a model is named twice; name each model once")
    names = []
    for one in parts:
        length = 1
        while sum(other[-length:] == one[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(one[-length:]))
    return names
