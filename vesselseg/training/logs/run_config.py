"""Values of a run's config that its report needs, parsed from the file's text without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ConfigFacts:
    """dice_weight: of the Dice loss. data_root: the dataset folder. max_epochs: passes over all images."""

    dice_weight: float | None = None
    data_root: str | None = None
    max_epochs: int | None = None


def read_config_facts(path: Path) -> ConfigFacts:
    """Facts of a config of vesselseg or xtuner; None for what the config does not contain, or if there is no file."""
    if not path.is_file():
        return ConfigFacts()
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    except (SyntaxError, ValueError):
        return ConfigFacts()
    named = dict(_entries(tree))
    own = dict(_entries(named["loss"])) if "loss" in named else {}
    published = dict(_entries(named["loss_dice"])) if "loss_dice" in named else {}
    weight = _number(own.get("dice")) or _number(published.get("loss_weight"))
    root, epochs = _constant(named.get("data_root")), _number(named.get("max_epochs"))
    return ConfigFacts(weight, root if isinstance(root, str) else None, int(epochs) if epochs else None)


def _entries(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(name, value) of assignments, keyword arguments and dict items, the outermost last."""
    for part in reversed(list(ast.walk(node))):
        if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
            yield part.targets[0].id, part.value
        elif isinstance(part, ast.keyword) and part.arg:
            yield part.arg, part.value
        elif isinstance(part, ast.Dict):
            for key, value in zip(part.keys, part.values):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.value, value


def _constant(node: ast.AST | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _number(node: ast.AST | None) -> float | None:
    value = _constant(node)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
