"""`vesselseg serve`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token

from vesselseg.cli.parameters import Flat, Loading
from vesselseg.errors import UserError, describe_os_error
from vesselseg.inference.options import DEFAULT_LOADING, LoadOptions
from vesselseg.service.settings import ServiceSettings

PACKAGES = ("fastapi", "starlette", "pydantic", "uvicorn", "python_multipart", "prometheus_client")


def token_of(_: type, tokens: Sequence[Token]) -> str:
    """The token itself, or the only line of a file."""
    text, option = tokens[-1].value, tokens[-1].keyword
    if option != "--token-file":
        return text
    try:
        return Path(text).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else "expected text in UTF-8"
        raise UserError(f"--token-file: {reason}") from None


@dataclass(frozen=True)
class Settings(ServiceSettings):
    """`ServiceSettings`, by the names of the command line."""

    token: Annotated[
        str | None,
        Parameter(name=("--token", "--token-file"), converter=token_of, n_tokens=1, allow_repeating=False),
    ] = ServiceSettings.token


def serve(
    model: list[str],
    *,
    settings: Annotated[Settings, Flat] = Settings(),
    loading: Annotated[LoadOptions, Loading] = DEFAULT_LOADING,
) -> None:
    """Serve trained models over HTTP, with a page to try them: drop an image, see the vessels, correct them, save them.

    vesselseg serve MODEL [MODEL ...] --port 8000

    Listens on 127.0.0.1 only: open http://127.0.0.1:8000/, on another machine after ssh -L 8000:127.0.0.1:8000 MACHINE.
    With another --host a token is needed, and every client has to show it. Nothing is stored unless --keep is given.
    docs/service.md describes the API and the limits. SIGTERM or Ctrl-C: running requests end, new ones get 503.

    Args:
        model: exported model folders, models of the hub, or checkpoints (.pth)
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"not installed: {', '.join(missing)}; pip install 'vesselseg[serve]'")
    from vesselseg.service.app import create_app
    from vesselseg.service.run import model_names
    from vesselseg.service.run import serve as listen

    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    predictors = {name: loading.predictor(path) for name, path in zip(model_names(model), model)}
    listen(create_app(predictors, settings), settings)
