"""Leaf through a dataset folder in the browser: images, masks, findings, and what the model gets in any epoch.

    python tools/browse_data.py data/mine
    python tools/browse_data.py data/mine --config configs/scratch_1gpu.py

The page is served to this machine only (127.0.0.1) and loads nothing from elsewhere; nothing is written. On another
machine: ssh -L 8000:127.0.0.1:8000 MACHINE, there with --port 8000 --no-open. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from vesselseg.errors import UserError
from vesselseg.inspect.browse.catalogue import Catalogue, group_count
from vesselseg.run_tool import run_tool

if TYPE_CHECKING:
    from vesselseg.inspect.browse.model_views import ModelViews

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "internvl3_8b_4x24gb.py"


def main() -> None:
    """Parse, read the folder, serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="dataset folder made by tools/prepare_data.py")
    parser.add_argument("--config", type=Path, help="take sizes and augmentation from this config (default: those of "
                        "configs/internvl3_8b_4x24gb.py)")  # fmt: skip
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--no-open", action="store_true", help="do not open the browser")
    arguments = parser.parse_args()
    if not 0 <= arguments.port < 65536:
        raise UserError(f"--port {arguments.port}: expected a number from 1 to 65535")
    if arguments.config and not arguments.config.is_file():
        raise UserError(f"--config {arguments.config} does not exist; configs are in the folder configs/")
    catalogue = Catalogue(arguments.data)
    print(f"{arguments.data}: {len(catalogue.entries)} images of {group_count(catalogue.entries)} groups", flush=True)
    serve(catalogue, arguments)


def serve(catalogue: Catalogue, arguments: argparse.Namespace) -> None:
    """Show the page, then read the config, which takes ten seconds: what the model gets follows on the page.

    A config that the user named and that cannot be read ends the tool; without the usual one the page goes on.
    """
    from vesselseg.inspect.browse.server import BrowseServer

    try:
        server = BrowseServer(catalogue, arguments.port)
    except OSError as error:
        raise UserError(f"--port {arguments.port}: {error.strerror}; choose another, or none for a free one") from None
    serving = server.start()
    print(f"open {server.url}  (Ctrl-C ends it)", flush=True)
    if not arguments.no_open:
        webbrowser.open(server.url)
    try:
        server.views = open_views(arguments.config or DEFAULT_CONFIG, arguments.data)
    except (UserError, ValueError) as error:
        if arguments.config:
            raise
        server.views = str(error)
    serving.join()


def open_views(config: Path, data: Path) -> ModelViews:
    """What the model gets by a config; the tokenizer is left out where the config's base folder is not there."""
    try:
        from vesselseg.training.console import muted, quieten_imports
    except ModuleNotFoundError as error:
        raise UserError(f"{config}: reading a config needs the training packages ({error}); see README.md") from None
    quieten_imports()
    with muted():
        try:
            from vesselseg.config.load import expand, load_config
            from vesselseg.inspect.browse.model_views import ModelViews
            from vesselseg.registry import build
        except ModuleNotFoundError as error:
            raise UserError(f"{config}: reading a config needs the training packages ({error})") from None

        settings = expand(load_config(config, {"data_root": str(data)}))["train_dataset"]
        base = settings.pop("model_base")
        there = Path(base).is_dir()
        note = "" if there else f"{base} is not here: tokens are not counted, and tiles have the published size."
        return ModelViews(build({**settings, "model_base": base if there else None}), config.name, note)


if __name__ == "__main__":
    run_tool(main)
