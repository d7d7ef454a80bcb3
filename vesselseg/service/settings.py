"""How a service runs, checked as a whole before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vesselseg.errors import UserError
from vesselseg.web_pages import LOCAL_HOSTS

LEAST_TOKEN = 16  # characters
MOST_PHRASES = 16  # of one request


@dataclass(frozen=True)
class ServiceSettings:
    """host, port: where it listens. token: what clients have to show, None for no one; needed off this machine.

    keep: folder for images and results, None stores nothing. max_megabytes: of one upload, 1 MB = 10^6 bytes.
    rate: requests per second that one client address may make on average, 0 for any number; ten seconds' worth at once.
    The page, its files, /health and /openapi.json do not count.
    queue: requests accepted at once, waiting ones included. batch: images that the model gets at once.
    wait_ms: milliseconds that a request waits for others to share its batch, at most.
    flips: probabilities are the mean over the image and its mirrored copies.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    keep: Path | None = None
    max_megabytes: float = 64.0
    rate: float = 10.0
    queue: int = 256
    batch: int = 64
    wait_ms: float = 20.0
    flips: bool = False

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise UserError("; ".join(problems))

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the service."""
        return self.host in LOCAL_HOSTS

    @property
    def max_bytes(self) -> int:
        """Of a request's body."""
        return int(self.max_megabytes * 1_000_000)

    def _problems(self) -> Iterator[str]:
        if not 0 <= self.port < 65536:
            yield f"--port {self.port}: expected a number from 1 to 65535, or 0 for a free one"
        if self.token is None and not self.is_local:
            yield (
                f"--host {self.host} lets other machines in, and no token is set; add --token-file FILE (a line of at "
                f"least {LEAST_TOKEN} characters), or leave --host away and reach the service through ssh -L"
            )
        if self.token is not None and not (len(self.token) >= LEAST_TOKEN and self.token.isascii()
                                           and self.token.isprintable() and " " not in self.token):  # fmt: skip
            yield (
                f"the token: expected at least {LEAST_TOKEN} letters, digits or signs without blanks, e.g. from "
                "openssl rand -hex 24"
            )
        for name, least in (("max_megabytes", 0.001), ("rate", 0), ("queue", 1), ("batch", 1), ("wait_ms", 0)):
            if not least <= getattr(self, name) < float("inf"):
                yield f"--{name.replace('_', '-')} {getattr(self, name)}: expected {least} or more, and finite"
        if self.keep is not None and self.keep.exists() and not self.keep.is_dir():
            yield f"--keep {self.keep} is a file; name a folder"
