"""Settings of the service, validated together before a model is loaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vesselseg.errors import UserError
from vesselseg.web_pages import LOCAL_HOSTS

MIN_TOKEN_LENGTH = 16  # characters
MAX_PHRASES = 16  # per request
MAX_CLIP_FRAMES = 512  # per request: half a minute at 15 frames per second


@dataclass(frozen=True)
class ServiceSettings:
    """How a service runs; UserError for settings that make no sense."""

    host: str = "127.0.0.1"
    """address to listen on"""
    port: int = 8000
    """0 takes a free one"""
    token: str | None = None
    """what clients have to show; a file (its only line) keeps it out of the process list"""
    keep: Path | None = None
    """store images and results, a folder per request"""
    max_megabytes: float = 64.0
    """largest upload, 1 MB = 10^6 bytes"""
    # On average, ten seconds' worth at once; /health and /openapi.json do not count either.
    rate: float = 10.0
    """requests per second and client address, the page's files not counted; 0 for any number"""
    queue: int = 256
    """requests accepted at once, waiting ones included"""
    batch: int = 64
    """images given to the model at once"""
    wait_ms: float = 20.0
    """longest wait of a request for others to share a batch with, in milliseconds"""
    tta: Literal["flips"] | None = None
    """average the predictions over the mirrored images, at 4 x the time"""

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise UserError("; ".join(problems))

    @property
    def flips(self) -> bool:
        """Whether predictions are averaged over mirrored images."""
        return self.tta is not None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the service."""
        return self.host in LOCAL_HOSTS

    @property
    def max_bytes(self) -> int:
        """Limit for the body of a request."""
        return int(self.max_megabytes * 1_000_000)

    def _problems(self) -> Iterator[str]:
        if not 0 <= self.port < 65536:
            yield f"--port {self.port}: expected a number from 1 to 65535, or 0 for a free port"
        if self.token is None and not self.is_local:
            yield (
                f"--host {self.host} accepts other machines, and no token is set; add --token-file FILE (one line, at "
                f"least {MIN_TOKEN_LENGTH} characters), or omit --host and connect through ssh -L"
            )
        if self.token is not None and not (len(self.token) >= MIN_TOKEN_LENGTH and self.token.isascii()
                                           and self.token.isprintable() and " " not in self.token):  # fmt: skip
            yield (
                f"the token: expected at least {MIN_TOKEN_LENGTH} printable ASCII characters without blanks, e.g. from "
                "openssl rand -hex 24"
            )
        for name, least in (("max_megabytes", 0.001), ("rate", 0), ("queue", 1), ("batch", 1), ("wait_ms", 0)):
            if not least <= getattr(self, name) < float("inf"):
                yield f"--{name.replace('_', '-')} {getattr(self, name)}: expected {least} or more, and finite"
        if self.keep is not None and self.keep.exists() and not self.keep.is_dir():
            yield f"--keep {self.keep} is a file; name a folder"
