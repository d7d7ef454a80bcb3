"""Who may import whom, as data, and the functions that read imports; docs/architecture.md explains the table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TOPS = ("vesselseg", "tools", "examples", "configs", "benchmarks")
TRAINING_ONLY = ("mmengine", "xtuner", "deepspeed")
# Modules that every room may import.
LEAVES = (
    "vesselseg.errors",
    "vesselseg.machine",
    "vesselseg.output_folder",
    "vesselseg.progress",
    "vesselseg.run_tool",
    "vesselseg.suggest",
    "vesselseg.web_pages",
    "vesselseg.reports.html",
)
NO_TORCH = ("torch", *TRAINING_ONLY)
DATASET_FILES = ("vesselseg.dataset.manifest", "vesselseg.dataset.record_masks", "vesselseg.dataset.prompts")


@dataclass(frozen=True)
class Rule:
    """What a room may import of the package, and what it may not import from outside."""

    may: tuple[str, ...]
    may_not: tuple[str, ...] = ()


def rooms(*names: str) -> tuple[str, ...]:
    return tuple(f"vesselseg.{name}" for name in names)


# In the order in which data walks through the rooms. The longest name that a module starts with decides; a room may
# always import itself.
RULES = {
    "vesselseg": Rule(()),
    "vesselseg.errors": Rule((), NO_TORCH),
    "vesselseg.machine": Rule((), NO_TORCH),
    "vesselseg.progress": Rule((), NO_TORCH),
    "vesselseg.suggest": Rule((), NO_TORCH),
    "vesselseg.output_folder": Rule(rooms("errors"), NO_TORCH),
    "vesselseg.run_tool": Rule(rooms("errors"), NO_TORCH),
    "vesselseg.utf8_mode": Rule((), NO_TORCH),
    "vesselseg.web_pages": Rule((), NO_TORCH),
    "vesselseg.reports.html": Rule((), NO_TORCH),
    "vesselseg.registry": Rule((), ("torch",)),
    "vesselseg.config": Rule((*LEAVES, *rooms("registry")), ("torch", "xtuner", "deepspeed")),
    "vesselseg.imaging": Rule(LEAVES, NO_TORCH),
    "vesselseg.dataset.batch": Rule((), TRAINING_ONLY),
    "vesselseg.dataset.prompts": Rule((), NO_TORCH),
    "vesselseg.dataset.manifest": Rule(rooms("errors", "imaging.regions"), NO_TORCH),
    "vesselseg.dataset.record_masks": Rule(rooms("dataset.manifest", "imaging.rasterise", "imaging.regions"), NO_TORCH),
    "vesselseg.prepare": Rule((*LEAVES, *DATASET_FILES, *rooms("imaging")), NO_TORCH),
    "vesselseg.inspect.checks": Rule((*LEAVES, *DATASET_FILES, *rooms("imaging", "prepare")), NO_TORCH),
    "vesselseg.synthetic": Rule((*LEAVES, *rooms("imaging")), NO_TORCH),
    "vesselseg.dataset": Rule((*LEAVES, *rooms("imaging")), TRAINING_ONLY),
    "vesselseg.inspect": Rule((*LEAVES, *rooms("imaging", "prepare", "dataset")), TRAINING_ONLY),
    "vesselseg.losses": Rule((*LEAVES, *rooms("dataset.batch")), TRAINING_ONLY),
    "vesselseg.models": Rule(
        (*LEAVES, *rooms("registry", "dataset.batch", "dataset.prompts", "losses")),
        ("mmengine.runner", "xtuner", "deepspeed"),
    ),
    "vesselseg.inference": Rule((*LEAVES, *rooms("models", "dataset", "imaging")), TRAINING_ONLY),
    "vesselseg.predict": Rule((*LEAVES, *rooms("inference", "dataset", "imaging")), TRAINING_ONLY),
    "vesselseg.service": Rule((*LEAVES, *rooms("predict", "inference", "dataset", "imaging")), TRAINING_ONLY),
    "vesselseg.evaluation.metrics": Rule((), NO_TORCH),
    "vesselseg.evaluation": Rule((*LEAVES, *rooms("inference", "dataset", "imaging")), TRAINING_ONLY),
    "vesselseg.reports": Rule((*LEAVES, *rooms("evaluation")), TRAINING_ONLY),
    "vesselseg.baselines": Rule(
        (*LEAVES, *rooms("reports", "evaluation", "inference", "dataset", "imaging")), TRAINING_ONLY
    ),
    "vesselseg.training.logs": Rule((*LEAVES, *rooms("evaluation")), NO_TORCH),
    "vesselseg.training": Rule(
        (*LEAVES, *rooms("registry", "config", "dataset", "models", "losses", "inference", "evaluation"))
    ),
    "vesselseg.export": Rule(
        (*LEAVES, *rooms("config", "dataset", "imaging", "models", "losses", "inference")), ("xtuner", "deepspeed")
    ),
    "vesselseg.distill": Rule(
        (
            *LEAVES,
            *rooms("dataset", "imaging", "models", "losses", "inference", "predict", "evaluation", "reports"),
            "vesselseg.export.remote_code",
        ),
        TRAINING_ONLY,
    ),
    "vesselseg.cli": Rule(("vesselseg",)),
    "vesselseg.__main__": Rule(rooms("cli")),
    "tools": Rule(("vesselseg",)),
    "examples": Rule(("vesselseg",), TRAINING_ONLY),
    "examples.custom_loss_config": Rule(("configs",)),
    "configs": Rule(("vesselseg", "configs")),  # configs read their bases
    "benchmarks": Rule(("vesselseg", "benchmarks")),
}


def python_files(root: Path) -> Iterator[Path]:
    for top in TOPS:
        yield from sorted((root / top).rglob("*.py"))


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(root: Path, dotted: str) -> bool:
    path = root.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports_of(root: Path, path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, module, imported name or "") for each import in the file, also inside functions."""
    name = module_name(root, path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (node.lineno, inner, "") if is_module(root, inner) else (node.lineno, base, alias.name)
        elif isinstance(node, ast.Call) and called_name(node) in ("import_module", "__import__"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield node.lineno, str(argument.value), ""


def called_name(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def starts_with(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def rule_of(module: str) -> tuple[str, Rule]:
    room = max((room for room in RULES if starts_with(module, (room,))), key=len)
    return room, RULES[room]


def is_private(module: str, name: str) -> bool:
    allowed = ("__init__", "_base_")
    words = [word for word in (*module.split("."), name) if word not in allowed]
    return any(word.startswith("_") and not word.endswith("__") for word in words)


def violations(root: Path) -> list[str]:
    """Every import in the tree that the table does not allow, as "file:line: ..."."""
    found = []
    for path in python_files(root):
        module = module_name(root, path)
        room, rule = rule_of(module)
        itself = (room,) if room.startswith("vesselseg.") else ()
        for line, target, name in imports_of(root, path):
            where = f"{path.relative_to(root).as_posix()}:{line}"
            inside = starts_with(target, TOPS)
            if inside and target != "vesselseg" and not starts_with(target, (*rule.may, *itself)):
                found.append(f"{where}: {room} may not import {target}")
            if inside and is_private(target, name):
                found.append(f"{where}: {target} {name} is private to its module")
            if starts_with(target if not name else f"{target}.{name}", rule.may_not):
                found.append(f"{where}: {room} may not import {target}")
    return list(dict.fromkeys(found))


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach each other; every path through `edges` ends where there is none."""
    reach = {name: set(targets) for name, targets in edges.items()}
    for middle in reach:  # Warshall's transitive closure
        for name in reach:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    rings = {frozenset({name, *(other for other in reach[name] if name in reach.get(other, ()))}) for name in reach}
    return sorted(sorted(ring) for ring in rings if len(ring) > 1)


def package_imports(root: Path) -> dict[str, set[str]]:
    """Module of the package -> the package's modules that it imports, also inside functions."""
    found: dict[str, set[str]] = {}
    for path in sorted((root / "vesselseg").rglob("*.py")):
        module = module_name(root, path)
        named = {target for _, target, _ in imports_of(root, path)}
        found[module] = {name for name in named if name.startswith("vesselseg.") and name != module}
    return found


def room_of(module: str) -> str:
    """The leaf modules are rooms of their own."""
    return module if module in LEAVES else ".".join(module.split(".")[:2])


def room_imports(modules: dict[str, set[str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for module, targets in modules.items():
        room = room_of(module)
        found.setdefault(room, set()).update({room_of(target) for target in targets} - {room})
    return found
