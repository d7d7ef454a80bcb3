"""`vesselseg browse`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from vesselseg.config.files import find_config
from vesselseg.errors import UserError

if TYPE_CHECKING:
    from vesselseg.inspect.browse.catalogue import Catalogue
    from vesselseg.inspect.browse.model_views import ModelViews

DEFAULT_CONFIG = "internvl3_8b_4x24gb"


def browse(data: Path, *, config: str | None = None, port: int = 0, no_open: bool = False) -> None:
    """Browse a dataset folder: images, masks, findings, and what the model gets in any epoch.

    vesselseg browse data/mine
    vesselseg browse data/mine --config scratch_1gpu

    The page is served to this machine only (127.0.0.1) and loads nothing from
    elsewhere; nothing is written. On another machine:
    ssh -L 8000:127.0.0.1:8000 MACHINE, there with --port 8000 --no-open. Ctrl-C
    ends it.

    Args:
        data: dataset folder made by vesselseg prepare
        config: take sizes and augmentation from this config (default: those of internvl3_8b_4x24gb)
        port: port on 127.0.0.1 (0: a free one)
        no_open: do not open the browser
    """
    if not 0 <= port < 65536:
        raise UserError(f"--port {port}: expected a number from 1 to 65535")
    named = find_config(config, "--config") if config else None
    from vesselseg.inspect.browse.catalogue import Catalogue, group_count

    catalogue = Catalogue(data)
    print(f"{data}: {len(catalogue.entries)} images of {group_count(catalogue.entries)} groups", flush=True)
    serve(catalogue, data, named, port, not no_open)


def serve(catalogue: Catalogue, data: Path, config: Path | None, port: int, show: bool) -> None:
    """Show the page, then read the config, which takes ten seconds: what the model gets follows on the page.

    A config that the user named and that cannot be read ends the command; without the default one the page goes on.
    """
    from vesselseg.inspect.browse.server import BrowseServer

    try:
        server = BrowseServer(catalogue, port)
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror}; choose another, or none for a free one") from None
    serving = server.start()
    print(f"open {server.url}  (Ctrl-C ends it)", flush=True)
    if show:
        webbrowser.open(server.url)
    try:
        server.views = open_views(config or find_config(DEFAULT_CONFIG), data)
    except (UserError, ValueError) as error:
        if config:
            raise
        server.views = str(error)
    serving.join()


def open_views(config: Path, data: Path) -> ModelViews:
    """What the model gets by a config; the tokenizer is left out where the config's base folder does not exist."""
    try:
        from vesselseg.training.console import muted, quieten_imports
    except ModuleNotFoundError as error:
        raise UserError(f"{config}: reading a config needs the training packages ({error}); see README.md") from None
    quieten_imports()
    with muted():
        try:
            from vesselseg.config.load import expand, load_config
            from vesselseg.inspect.browse.model_views import ModelViews
            from vesselseg.training.launch import build
        except ModuleNotFoundError as error:
            raise UserError(f"{config}: reading a config needs the training packages ({error})") from None

        settings = expand(load_config(config, {"data_root": str(data)}))["train_dataset"]
        base = settings.pop("model_base")
        exists = Path(base).is_dir()
        note = "" if exists else f"{base} is not here: tokens are not counted, and tiles have the published size."
        return ModelViews(build({**settings, "model_base": base if exists else None}), config.name, note)
