"""Replace the model code of folders that an earlier version exported, which a newer transformers may not load."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from vesselseg.errors import UserError
from vesselseg.export.remote_code import AUTO_MAP, ENTRY, PROMPTED_AUTO_MAP, PROMPTED_ENTRY, write_remote_code
from vesselseg.output_folder import replace_text

ENTRIES = {AUTO_MAP["AutoModel"]: ENTRY, PROMPTED_AUTO_MAP["AutoModel"]: PROMPTED_ENTRY}


def refresh_code(folder: Path) -> list[str]:
    """Write the code of this version into an exported folder; returns the names of files that changed.

    config.json, weights and tokenizer stay as they are. The model class comes last, so that a folder whose refresh was
    interrupted can be refreshed again. Raises UserError for a folder that vesselseg did not export.
    """
    config = folder / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        named = content.get("auto_map", {}).get("AutoModel")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{config}: not readable as the config.json of a model folder: {error}") from None
    if named not in ENTRIES:
        raise UserError(
            f"{config} names {named!r} as the model's code; expected {' or '.join(ENTRIES)}, as in folders that "
            "vesselseg convert or distill wrote"
        )
    entry = f"{ENTRIES[named].rsplit('.', 1)[1]}.py"
    with tempfile.TemporaryDirectory() as scratch:
        names = write_remote_code(Path(scratch), ENTRIES[named])
        written = {name: (Path(scratch) / name).read_text(encoding="utf-8") for name in names}
    changed = [name for name in names if _text(folder / name) != written[name]]
    for name in sorted(changed, key=lambda name: name == entry):
        replace_text(folder / name, written[name])
    return changed


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
