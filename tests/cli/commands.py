"""All commands, and what the scripts that they replaced were called with."""

from __future__ import annotations

from collections.abc import Iterator

from cyclopts import App
from cyclopts.argument import Argument

from vesselseg.cli.main import STAGES, create_app

LOADING = ("--device", "--dtype", "--quantise", "--base")
REFINING = ("--tta", "--min-component", "--fill-holes")
# Options of the scripts at 0.1.0, by the command that took their place.
OLD_OPTIONS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("report", "training"): ("--out",),
    ("baselines", "frangi"): ("--force", "--images", "--out", "--seed", "--split"),
    ("baselines", "unet"): (
        *("--batch", "--device", "--epochs", "--force", "--minutes", "--out", "--seed", "--size", "--split"),
    ),
    ("browse",): ("--config", "--no-open", "--port"),
    ("check",): ("--fix", "--force", "--out", "--quiet", "--workers"),
    ("compare",): ("--common", "--force", "--metric", "--out", "--seed"),
    ("baselines", "compare"): (
        *("--batch", "--device", "--epochs", "--metric", "--minutes", "--out", "--seed", "--size"),
    ),
    ("convert",): ("--base", "--check", "--dtype", "--force", "--images", "--save-path"),
    ("demo",): ("--images", "--out"),
    ("distill",): ("--batch", "--data", "--force", "--minutes", "--out", "--phrase", "--seed", *LOADING),
    ("eval",): (
        *("--batch", "--calibrate", "--data", "--force", "--out", "--seed", "--split", "--store-threshold"),
        *("--subgroups", "--threshold", "--threshold-metric", *REFINING, *LOADING),
    ),
    ("weights", "inspect"): ("--json",),
    ("folds", "make"): ("--folds", "--force", "--seed", "--val"),
    ("synthetic",): ("--cine", "--count", "--force", "--frames", "--out", "--quiet", "--seed", "--size"),
    ("weights", "tiny"): ("--hidden-size", "--layers", "--seed", "--tile-size"),
    ("report", "card"): ("--other-data",),
    ("configs", "new"): ("--base", "--data", "--force", "--gpu-gib", "--gpus", "--out", "--sam2"),
    ("plan",): ("--card", "--cfg-options", "--gpu-gib", "--gpus", "--images", "--json"),
    ("folds", "pool"): ("--force", "--out", "--seed"),
    ("predict",): (
        *("--batch", "--cine", "--keyframes", "--out", "--phrase", "--save", "--threshold", *REFINING, *LOADING),
    ),
    ("prepare",): (
        *("--first-frame", "--force", "--format", "--group-regex", "--key-table", "--labels", "--line-width"),
        *("--masks", "--max-files", "--max-gib", "--out", "--per-shape", "--pseudonymise", "--quiet", "--salt"),
        *("--seed", "--split", "--strict", "--test-regex", "--text", "--val-regex", "--workers"),
    ),
    ("serve",): (
        *("--batch", "--host", "--keep", "--max-megabytes", "--port", "--queue", "--rate", "--token", "--token-file"),
        *("--wait-ms", "--tta", *LOADING),
    ),
    ("train",): (
        *("--cfg-options", "--find-micro-batch", "--force", "--profile", "--resume", "--skip-plan", "--work-dir"),
    ),
}
NEW = (("configs",), ("configs", "show"), ("configs", "reference"), ("completion",), ("curve",), ("weights", "refresh"))


def all_commands() -> Iterator[tuple[tuple[str, ...], App]]:
    """(words, app) of every command that does something."""
    top = create_app()
    for name in (name for commands in STAGES.values() for name in commands):
        app = top[name]
        if app.default_command is not None:
            yield (name,), app
        for inner in (word for word in app if not word.startswith("-")):
            yield (name, inner), app[inner]


def arguments_of(app: App) -> list[Argument]:
    """What a command takes, without groups of options."""
    arguments = app.assemble_argument_collection(parse_docstring=True)
    return [argument for argument in arguments if argument.parse and not argument.children]


def names_of(app: App) -> set[str]:
    """Every way to name a parameter of a command."""
    return {name for argument in arguments_of(app) for name in argument.names}
