"""A model's path: a local folder, or a repository of the Hugging Face hub.

`OWNER/NAME` or `OWNER/NAME@REVISION` is a repository if no such folder exists. Only configs, tokenizers and safetensors
are downloaded, into the hub's own cache; interrupted downloads are resumed. Code is downloaded only by
`pretrained_folder`, whose caller has passed trust_remote_code.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vesselseg.errors import WeightsError

logger = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*?)(?:@([\w./-]+))?")
# Folders of a checkout; a path below them that does not exist is a mistake, not a repository.
LOCAL = ("weights", "work_dirs", "data", "configs", "models", "checkpoints", "outputs", "tmp")
FETCHED = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt", "*.jinja")
NEVER = ("*.py", "*.pt", "*.bin")


def hub_name(path: str | Path) -> tuple[str, str | None] | None:
    """(repository, revision or None) if a path is a name on the hub, else None."""
    match = _REPOSITORY.fullmatch(str(path))
    if match is None or Path(path).exists() or match.group(1) in LOCAL or Path(match.group(1)).is_dir():
        return None
    if Path(str(path)).suffix in (".pth", ".pt", ".safetensors", ".json", ".py"):
        return None
    return f"{match.group(1)}/{match.group(2)}", match.group(3)


def local_folder(path: str | Path) -> Path:
    """The folder of a path, downloaded if it is a name on the hub; raises WeightsError if that fails."""
    named = hub_name(path)
    if named is None:
        return Path(path)
    repository, revision = named
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import HfHubHTTPError

    try:
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(FETCHED), ignore_patterns=list(NEVER))
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as error:
        raise WeightsError(_what_to_do(repository, revision, error)) from None
    if revision is None:
        logger.info("%s: using revision %s; pin it with %s@%s", repository, folder.name, repository, folder.name)
    return folder


def cached_folder(name: str, where: str) -> str:
    """The path that a file means by the name of a folder. One of the hub is taken from the cache and never fetched:
    no user named it. where: the file that holds the name. Raises WeightsError.
    """
    named = hub_name(name)
    if named is None:
        return name
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(named[0], revision=named[1], allow_patterns=list(FETCHED), local_files_only=True)
    except (OSError, ValueError):  # not there, or no name that the hub's library accepts
        raise WeightsError(
            f"{where} names {name} as its base folder, a repository of the hub that is not in the cache. Nothing is "
            f"downloaded because a file says so; if you trust it: hf download {named[0]}"
            f"{f' --revision {named[1]}' if named[1] else ''} --exclude '*.py', or name it in vesselseg convert --base"
        ) from None


def pretrained_folder(path: str | Path, arguments: Mapping[str, Any]) -> Path:
    """The folder of transformers' `from_pretrained`, downloaded with its code if it is a name on the hub.

    arguments: of that call, of which revision, cache_dir, token and local_files_only are used.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    names = ("revision", "cache_dir", "token", "local_files_only")
    return Path(snapshot_download(str(path), **{name: arguments[name] for name in names if name in arguments}))


def _what_to_do(repository: str, revision: str | None, error: Exception) -> str:
    name = repository.split("/")[1]
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    pinned = f" --revision {revision}" if revision else ""
    return (
        f"{repository}{'@' + revision if revision else ''} is neither a local folder nor in the hub's cache, and "
        f"cannot be downloaded now ({reason[:200]}); on a machine with internet access run: hf download "
        f"{repository}{pinned} --exclude '*.py' --local-dir weights/{name}, copy the folder to this machine and set "
        f"the path to weights/{name}"
    )
