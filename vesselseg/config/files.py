"""Where configs are, in a checkout and in an installed package, and which file a name means; light to import."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import vesselseg
from vesselseg.errors import UserError
from vesselseg.suggest import did_you_mean

_PACKAGE = Path(vesselseg.__file__).resolve().parent
_INSTALLED = _PACKAGE / "_configs"  # a wheel holds the folder configs/ under this name
_MEASURED = "docs/results/train_step/rows.json"  # in a wheel: _configs/measured.json


@dataclass(frozen=True)
class Recipe:
    """A config of the project, by what its name and its first line say."""

    name: str
    """as `find_config` takes it: without .py"""
    path: Path
    """the file"""
    gpus: int
    """GPUs that it is written for, 0: the CPU"""
    gpu_gib: int | None
    """memory of each GPU in GiB, None where any GPU will do"""
    title: str
    """first line of its docstring"""


def configs_folder() -> Path:
    """The folder of all recipes and their bases."""
    return _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"


def measured_file() -> Path:
    """The measured trainings, as benchmarks/train_step.py writes them."""
    return _INSTALLED / "measured.json" if _INSTALLED.is_dir() else _PACKAGE.parent / _MEASURED


def recipes() -> list[Recipe]:
    """All leaves below `configs_folder`, by name."""
    folder = configs_folder()
    files = sorted(path for path in folder.rglob("*.py") if "_base_" not in path.relative_to(folder).parts)
    return [_recipe(path, path.relative_to(folder).with_suffix("").as_posix()) for path in files]


def find_config(text: str, option: str = "") -> Path:
    """The file that a path, or the name of a recipe, means; raises UserError with the nearest name.

    option: the command line's name for it, for the message.
    `configs/NAME.py` means the recipe also where the working folder has no configs/.
    """
    path = Path(text)
    if path.is_file():
        return path
    name = text.removesuffix(".py")
    inside = configs_folder() / f"{name.removeprefix('configs/')}.py"
    if inside.is_file() and "_base_" not in inside.parts:
        return inside
    known = [recipe.name for recipe in recipes()]
    hint = did_you_mean(name.rpartition("/")[2], known)
    named = f"{option} {text}".strip()
    raise UserError(f"{named} does not exist; configs are in the folder configs/, vesselseg configs lists them{hint}")


def gpus_of(path: Path) -> int | None:
    """The GPUs that a recipe of the project is written for; None for other configs."""
    return next((recipe.gpus for recipe in recipes() if recipe.path == path.resolve()), None)


def _recipe(path: Path, name: str) -> Recipe:
    found = re.search(r"_(\d+)x(\d+)gb|_(\d+)gpu", name)
    gpus = int(found[1] or found[3]) if found else 0
    title = path.read_text(encoding="utf-8").split('"""')[1].splitlines()[0]
    return Recipe(name, path.resolve(), gpus, int(found[2]) if found and found[2] else None, title)
