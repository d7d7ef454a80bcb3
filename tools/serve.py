"""Serve trained models over HTTP, with a page to try them: drop an image, see the vessels, correct them, save them.

    python tools/serve.py MODEL [MODEL ...] --port 8000

Listens on 127.0.0.1 only: open http://127.0.0.1:8000/, on another machine after ssh -L 8000:127.0.0.1:8000 MACHINE.
With another --host a token is needed, and every client has to show it. Nothing is stored unless --keep is given.
docs/service.md describes the API and the limits. SIGTERM or Ctrl-C: running requests end, new ones get 503.
"""

from __future__ import annotations

import argparse
import logging
from importlib.util import find_spec
from pathlib import Path

from vesselseg.errors import UserError, describe_os_error
from vesselseg.inference.flips import FLIPS
from vesselseg.inference.model_arguments import add_model_arguments, add_tta_argument, load_chosen
from vesselseg.run_tool import run_tool
from vesselseg.service.settings import ServiceSettings

PACKAGES = ("fastapi", "starlette", "pydantic", "uvicorn", "python_multipart", "prometheus_client")


def main() -> None:
    """Parse, check, load, serve."""
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"not installed: {', '.join(missing)}; pip install 'vesselseg[serve]'")
    settings = ServiceSettings(
        host=arguments.host,
        port=arguments.port,
        token=_token(arguments),
        keep=arguments.keep,
        max_megabytes=arguments.max_megabytes,
        rate=arguments.rate,
        queue=arguments.queue,
        batch=arguments.batch,
        wait_ms=arguments.wait_ms,
        flips=arguments.tta == FLIPS,
    )
    # The model's libraries take many seconds to import: --help and wrong arguments are answered without them.
    from vesselseg.service.app import create_app
    from vesselseg.service.run import model_names, serve

    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    names = model_names(arguments.model)
    predictors = {name: load_chosen(model, arguments) for name, model in zip(names, arguments.model)}
    serve(create_app(predictors, settings), settings)


def _arguments() -> argparse.Namespace:
    usual = ServiceSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+", help="exported model folders, models of the hub, or checkpoints (.pth)")
    parser.add_argument("--host", default=usual.host, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=usual.port, help="0 takes a free one (default: %(default)s)")
    token = parser.add_mutually_exclusive_group()
    token.add_argument("--token", help="what clients have to show; others on this machine can read it in its process "
                       "list, so rather:")  # fmt: skip
    token.add_argument("--token-file", type=Path, metavar="FILE", help="file whose only line is the token")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="store images and results, a folder per request")
    parser.add_argument(
        "--max-megabytes", type=float, default=usual.max_megabytes, help="largest upload (default: %(default)g)"
    )
    parser.add_argument("--rate", type=float, default=usual.rate, help="requests per second and client address, "
                        "the page's files not counted; 0 for any number (default: %(default)g)")  # fmt: skip
    parser.add_argument(
        "--queue", type=int, default=usual.queue, help="requests accepted at once (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=usual.batch, help="images given to the model at once (default: %(default)s)"
    )
    parser.add_argument("--wait-ms", type=float, default=usual.wait_ms, help="longest wait for others to share a batch "
                        "with (default: %(default)g)")  # fmt: skip
    add_tta_argument(parser)
    add_model_arguments(parser)
    return parser.parse_args()


def _token(arguments: argparse.Namespace) -> str | None:
    if arguments.token_file is None:
        return arguments.token
    try:
        return arguments.token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else "expected text in UTF-8"
        raise UserError(f"--token-file: {reason}") from None


if __name__ == "__main__":
    run_tool(main)
