"""`vesselseg configs`: list, show and new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from vesselseg.cli.parameters import AboveZero, CfgOptions, Whole
from vesselseg.config.files import Recipe, configs_folder, find_config, measured_file, recipes
from vesselseg.config.overrides import read_overrides

app = App(name="configs", help="List the recipes, show a config with all its settings, or write a new one.")


@app.default
def list_recipes() -> None:
    """List the recipes: GPUs, memory of each, and what was measured on them.

    vesselseg configs

    Peak: memory that torch reserved on each GPU. s per image: of one GPU. Both of
    a training with the recipe as it is on H200s, see docs/results.md.
    """
    measured = measurements()
    rows: list[tuple[str, ...]] = [("recipe", "GPUs", "GiB", "peak GiB", "s per image", "")]
    rows += [_row(recipe, measured.get(recipe.name, {})) for recipe in recipes()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for name, *figures, title in rows:
        cells = [name.ljust(widths[0]), *(text.rjust(width) for text, width in zip(figures, widths[1:]))]
        print("  ".join([*cells, title]).rstrip())


def measurements() -> dict[str, dict[str, float]]:
    """Recipe -> the measured row without overrides: its figures by the names of benchmarks/train_step.py."""
    rows = json.loads(measured_file().read_text(encoding="utf-8"))
    plain = [row for row in rows if row["status"] == "ok" and not row["overrides"]]
    # of several measurements of a recipe the first one in the file counts, as in docs/results.md
    return {row["config"].removeprefix("configs/").removesuffix(".py"): row for row in reversed(plain)}


def _row(recipe: Recipe, measured: dict[str, float]) -> tuple[str, ...]:
    peak, seconds = measured.get("peak_reserved_gib"), measured.get("s_per_image")
    return (
        recipe.name,
        str(recipe.gpus) if recipe.gpus else "CPU",
        str(recipe.gpu_gib or "any") if recipe.gpus else "-",
        f"{peak:.1f}" if peak else "-",
        f"{seconds:.3f}" if seconds else "-",
        recipe.title,
    )


@app.command
def show(config: str, *, cfg_options: CfgOptions = ()) -> None:
    """Print a config as it runs: all bases and overrides in one file, every setting with its value.

    vesselseg configs show internvl3_8b_1x24gb

    docs/configuration.md explains every setting.

    Args:
        config: a recipe's name, or a config file
    """
    path = find_config(config)
    overrides = read_overrides(path, cfg_options)
    from vesselseg.training.console import muted, quieten_imports

    quieten_imports()
    with muted():  # packages that a config names are imported while it is checked, and some of them print
        from vesselseg.config.load import config_text, load_config

        text = config_text(load_config(path, overrides))
    print(text, end="")


@app.command
def new(
    *,
    base: str,
    data: Path,
    gpus: Whole,
    out: Annotated[Path, Parameter(help="file to write, e.g. configs/mine.py")],
    gpu_gib: AboveZero = 24.0,
    sam2: str = "weights/sam2_hiera_large.pt",
    force: Annotated[bool, Parameter(help="replace an existing file")] = False,
) -> None:
    """Write a config for weights, data and GPUs at hand: ZeRO-2, with offload, or ZeRO-3, by size and memory.

    vesselseg configs new --base PATH --data data/NAME --gpus 4 --gpu-gib 24 --out configs/mine.py

    A config starts from the files of the folder _base_ next to it; where there is
    none, it is copied there.

    Args:
        base: model folder, or OWNER/NAME@REVISION of the hub
        data: dataset folder made by vesselseg prepare
        gpus: GPUs of this machine; 0: the CPU
        gpu_gib: memory of each in GiB
        sam2: SAM2's file; none: random weights
    """
    from vesselseg.training.console import muted, quieten_imports

    quieten_imports()
    with muted():
        from vesselseg.training.recipe import RecipeRequest, write_leaf
    bases = out.parent / "_base_"
    if not bases.exists():
        shutil.copytree(configs_folder() / "_base_", bases, ignore=shutil.ignore_patterns("__pycache__"))
    chosen = None if sam2 == "none" else sam2
    reason = write_leaf(RecipeRequest(base, data, gpus, gpu_gib, chosen), out, force)
    print(f"{out}: {reason}")
    print(f"start it with: vesselseg train {out} {gpus}, or bash tools/dist.sh train {out} {gpus}")


@app.command
def reference() -> None:
    """Print the reference of all settings as Markdown, as docs/configuration.md holds it.

    vesselseg configs reference > docs/configuration.md
    """
    from vesselseg.training.console import muted, quieten_imports

    quieten_imports()
    with muted():
        from vesselseg.config.reference import reference_page

        page = reference_page()
    print(page, end="")
