"""Identify the weights in a model's files without loading them."""

from __future__ import annotations

import hashlib
from pathlib import Path


def weights_digest(path: Path) -> str | None:
    """SHA-256 (first 16 hex digits) over a folder's weight files with their names, or over a checkpoint's bytes.

    The threshold is stored in config.json, so changing it does not change the digest. None if there are no weights.
    """
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin")) if path.is_dir() else [path]
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        if path.is_dir():
            digest.update(file.name.encode())
        with file.open("rb") as opened:
            while piece := opened.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()[:16]
