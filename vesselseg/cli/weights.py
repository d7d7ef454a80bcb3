"""`vesselseg weights`: inspect, refresh and tiny."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from vesselseg.models.checkpoints.inspection import Inspection

app = App(
    name="weights",
    help="Inspect weights, refresh the code of exported folders, and write a tiny base model.",
)


@app.command
def inspect(path: str, *, json: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Show what a weight file or folder is, how large its parts are, and what vesselseg does with it.

    vesselseg weights inspect PATH [--json]

    PATH: a model folder, a repository of the hub (OWNER/NAME@REVISION), a SAM2 file
    or a training checkpoint. Exit status 1: it can be read, but does not hold the
    model that its config describes.

    Args:
        path: folder, OWNER/NAME@REVISION of the hub, .pt or .pth file
        json: print one JSON object instead of a table
    """
    from vesselseg.models.checkpoints.inspection import inspect as inspect_weights

    found = inspect_weights(path)
    print(as_json(found) if json else table(found))
    return 1 if found.problem else 0


def as_json(found: Inspection) -> str:
    """All facts as one object."""
    return json.dumps({**asdict(found), "total": found.total}, indent=1)


def table(found: Inspection) -> str:
    """One line per fact, then parameters by part."""
    types = ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in found.dtypes.items())
    details = {name: value for name, value in found.details.items() if value not in (None, {})}
    rows = {
        "path": found.path,
        "what": found.kind,
        "family": found.family,
        "size": f"{found.size / 2**30:,.2f} GiB in {found.files} file(s)",
        "types": types,
        "five tokens": found.new_tokens,
        **{name.replace("_", " "): str(value) for name, value in details.items()},
        "vesselseg": "refuses it, see below" if found.problem else found.use,
    }
    lines = [f"{name:<20}{value}" for name, value in rows.items()]
    lines += ["", f"{'part':<20}{'parameters':>14}"]
    lines += [f"{part:<20}{count / 1e6:>12,.2f} M" for part, count in found.parameters.items()]
    lines += [f"{'all':<20}{found.total / 1e6:>12,.2f} M"]
    return "\n".join([*lines, *(["", found.problem] if found.problem else [])])


@app.command
def refresh(folders: list[Path]) -> None:
    """Replace the model code in exported folders by this version's, so that they load under today's transformers.

    vesselseg weights refresh work_dirs/*/hf

    Weights, config and tokenizer are not changed.

    Args:
        folders: written by vesselseg convert or vesselseg distill
    """
    from vesselseg.export.refresh_code import refresh_code

    for folder in folders:
        changed = refresh_code(folder)
        print(f"{folder}: " + (f"{len(changed)} files of code replaced" if changed else "its code is up to date"))


@app.command
def tiny(out: Path, *, hidden_size: int = 64, layers: int = 2, tile_size: int = 112, seed: int = 0) -> None:
    """Write a small InternVL folder with random weights, to try everything without downloads.

    vesselseg weights tiny weights/tiny_base

    Args:
        out: folder to write
        hidden_size: width of vision tower and language model
        layers: layers of each
        tile_size: side of an image tile in pixels, a multiple of 28
        seed: of the weights
    """
    from vesselseg.models.tiny_base import write_tiny_base

    config = write_tiny_base(out, hidden_size=hidden_size, layers=layers, tile_size=tile_size, seed=seed)
    vocabulary = config.llm_config["vocab_size"]
    print(f"{out}: InternVL folder, {config.tokens_per_tile} tokens per tile, vocabulary {vocabulary}")
