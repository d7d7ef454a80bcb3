"""Errors for silent mistakes of inherited configs: bases that disagree, assignments that drop a base's keys."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from mmengine.config import Config


def base_problems(path: Path) -> list[str]:
    """Problems of a config file and of all its bases, one sentence each."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bases = _base_files(path, tree)
    problems = [problem for base in bases for problem in base_problems(base)]
    values = {base: _values(base) for base in bases}
    problems += _conflicts(path, values)
    if values:
        problems += _dropped_keys(path, tree, values)
    return list(dict.fromkeys(problems))


def _values(path: Path) -> dict[str, Any]:
    values = Config.fromfile(path, lazy_import=True).to_dict()
    return {key: value for key, value in values.items() if not key.startswith("_")}


def _base_files(path: Path, tree: ast.Module) -> list[Path]:
    """Files named by ``from .x import *`` inside ``with read_base():``."""
    files = []
    for block in (node for node in tree.body if isinstance(node, ast.With)):
        for statement in block.body:
            if isinstance(statement, ast.ImportFrom) and statement.level:
                folder = path.parents[statement.level - 1]
                files.append(folder / f"{(statement.module or '').replace('.', '/')}.py")
    return files


def _conflicts(path: Path, values: dict[Path, dict[str, Any]]) -> list[str]:
    problems = []
    seen: dict[str, Path] = {}
    for base, keys in values.items():
        for key, value in keys.items():
            if key in seen and values[seen[key]][key] != value:
                problems.append(
                    f"{path.name}: the bases {_short(seen[key])} and {_short(base)} both define {key!r}, with "
                    "different values; keep one of the two bases"
                )
            seen.setdefault(key, base)
    return problems


def _dropped_keys(path: Path, tree: ast.Module, values: dict[Path, dict[str, Any]]) -> list[str]:
    """``strategy = dict(...)`` in a leaf replaces the base's whole dict; keys that it does not repeat are lost."""
    inherited = {key: (base, value) for base, keys in values.items() for key, value in keys.items()}
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    own = _values(path) if assigned & set(inherited) else {}
    problems = []
    for key in sorted(assigned & set(inherited)):
        base, value = inherited[key]
        if isinstance(value, dict) and isinstance(own[key], dict):
            lost = [name for name in value if name not in own[key]]
            if lost:
                problems.append(
                    f"{path.name}: `{key} = dict(...)` drops {', '.join(lost)} of {_short(base)}; write "
                    f"{key}.update(...) to change single values"
                )
    return problems


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
