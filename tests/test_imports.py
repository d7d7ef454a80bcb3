"""Who may import whom, and what importing may do. docs/architecture.md explains the table that stands here as data."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TOPS = ("vesselseg", "tools", "examples", "configs", "benchmarks")
TRAINING_ONLY = ("mmengine", "xtuner", "deepspeed")
# Rooms that anyone may import.
LEAVES = ("vesselseg.errors", "vesselseg.html", "vesselseg.cli", "vesselseg.output_folder")
PURE = (
    "vesselseg.data.batch",
    "vesselseg.data.manifest",
    "vesselseg.data.prompts",
    "vesselseg.data.label_shapes",
    "vesselseg.evaluation.metrics",
)
EVERYTHING_BUT_EXPORT = (
    "vesselseg.config",
    "vesselseg.registry",
    "vesselseg.engine",
    "vesselseg.evaluation",
    "vesselseg.inference",
    "vesselseg.models",
    "vesselseg.losses",
    "vesselseg.data",
)


@dataclass(frozen=True)
class Rule:
    """What a room may import of the package, and what it may not import from outside."""

    may: tuple[str, ...]
    may_not: tuple[str, ...] = ()


# The longest name that a module starts with decides. A room may always import itself.
RULES = {
    "vesselseg": Rule(()),
    "vesselseg.errors": Rule((), ("torch", *TRAINING_ONLY)),
    "vesselseg.cli": Rule(("vesselseg.data.manifest", "vesselseg.errors"), ("torch", *TRAINING_ONLY)),
    "vesselseg.html": Rule((), ("torch", *TRAINING_ONLY)),
    "vesselseg.output_folder": Rule(("vesselseg.errors",), ("torch", *TRAINING_ONLY)),
    "vesselseg.registry": Rule((), ("torch",)),
    **{name: Rule((), TRAINING_ONLY if name.endswith("batch") else ("torch", *TRAINING_ONLY)) for name in PURE},
    "vesselseg.data": Rule((*LEAVES, *PURE), TRAINING_ONLY),
    "vesselseg.losses": Rule((*LEAVES, *PURE), TRAINING_ONLY),
    "vesselseg.models": Rule(
        (*LEAVES, "vesselseg.registry", "vesselseg.data.batch", "vesselseg.data.prompts", "vesselseg.losses"),
        ("mmengine.runner", "xtuner", "deepspeed"),
    ),
    "vesselseg.inference": Rule((*LEAVES, "vesselseg.models", "vesselseg.data", "vesselseg.losses"), TRAINING_ONLY),
    "vesselseg.service": Rule((*LEAVES, "vesselseg.inference", "vesselseg.models", "vesselseg.data"), TRAINING_ONLY),
    "vesselseg.evaluation": Rule((*LEAVES, "vesselseg.inference", "vesselseg.data"), TRAINING_ONLY),
    "vesselseg.engine": Rule((*LEAVES, *EVERYTHING_BUT_EXPORT)),
    "vesselseg.config": Rule((*LEAVES, *EVERYTHING_BUT_EXPORT)),
    "vesselseg.export": Rule(
        (*LEAVES, "vesselseg.models", "vesselseg.inference", "vesselseg.config", "vesselseg.data.manifest"),
        ("xtuner", "deepspeed"),
    ),
    "vesselseg.distill": Rule(
        (
            *LEAVES,
            "vesselseg.models",
            "vesselseg.inference",
            "vesselseg.evaluation",
            "vesselseg.data",
            "vesselseg.losses",
            "vesselseg.export.remote_code",
        ),
        TRAINING_ONLY,
    ),
    "tools": Rule(("vesselseg",)),
    "examples": Rule(("vesselseg",), TRAINING_ONLY),
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


def test_import_rules_hold() -> None:
    assert violations(REPOSITORY) == []


@pytest.mark.parametrize(
    ("file", "code", "expected"),
    [
        (
            "vesselseg/models/a.py",
            "from vesselseg.data.manifest import Record",
            "may not import vesselseg.data.manifest",
        ),
        ("vesselseg/models/a.py", "from ..data import manifest", "may not import vesselseg.data.manifest"),
        ("vesselseg/models/a.py", "from mmengine import runner", "may not import mmengine"),
        ("vesselseg/models/checkpoints/a.py", "import deepspeed.ops", "may not import deepspeed.ops"),
        (
            "vesselseg/inference/a.py",
            "def f():\n    from vesselseg.engine import loop",
            "may not import vesselseg.engine",
        ),
        ("vesselseg/inference/a.py", "import mmengine", "may not import mmengine"),
        ("vesselseg/evaluation/metrics.py", "import torch.nn", "may not import torch.nn"),
        ("vesselseg/evaluation/metrics.py", "from vesselseg.evaluation import errors", "may not import"),
        ("vesselseg/data/manifest.py", "from .batch import Batch", "may not import vesselseg.data.batch"),
        ("vesselseg/data/a.py", "import vesselseg.models.sa2va", "may not import vesselseg.models.sa2va"),
        ("vesselseg/engine/a.py", "from vesselseg import export", "may not import vesselseg.export"),
        ("vesselseg/export/a.py", "import importlib\nimportlib.import_module('vesselseg.engine')", "vesselseg.engine"),
        ("tools/a.py", "from tools import b", "may not import tools"),
        ("tools/a.py", "from vesselseg.data.manifest import _read_json", "private"),
        ("configs/a.py", "from tools.b import main", "may not import tools"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, file: str, code: str, expected: str) -> None:
    for name in ("data/manifest", "data/batch", "models/sa2va", "engine/loop", "export/x", "evaluation/errors"):
        (tmp_path / "vesselseg" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "vesselseg" / f"{name}.py").touch()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(code)
    found = violations(tmp_path)
    assert len(found) == 1, found
    assert found[0].startswith(f"{file}:") and expected in found[0]


def test_allowed_imports_are_not_reported(tmp_path: Path) -> None:
    allowed = {
        "vesselseg/data/batch.py": "import torch",
        "vesselseg/data/prepare.py": "from vesselseg.data.batch import Batch\nfrom vesselseg.cli import UserError",
        "vesselseg/models/a.py": "from vesselseg.data.batch import Batch\nfrom vesselseg.models import b\nimport torch",
        "vesselseg/engine/a.py": "import mmengine.runner\nfrom vesselseg.evaluation.metrics import image_metrics",
        "configs/a.py": "from ._base_.models.tiny import model",
        "tools/a.py": "from vesselseg.cli import run_tool",
        "vesselseg/export/a.py": "from vesselseg import __version__",
    }
    for file, code in allowed.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(code)
    assert violations(tmp_path) == []


def test_files_stay_short() -> None:
    files = [*python_files(REPOSITORY), *(REPOSITORY / "tests").rglob("*.py"), *(REPOSITORY / "tools").glob("*.sh")]
    lengths = {path.relative_to(REPOSITORY).as_posix(): len(path.read_text().splitlines()) for path in files}
    assert {name: lines for name, lines in lengths.items() if lines >= 400} == {}


def test_the_package_does_not_print() -> None:
    printing = []
    for path in sorted((REPOSITORY / "vesselseg").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                printing.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}")
    assert printing == []


def package_modules() -> list[str]:
    return [module_name(REPOSITORY, path) for path in sorted((REPOSITORY / "vesselseg").rglob("*.py"))]


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
    )


# Third-party packages print and write while they are imported; they are imported first and not looked at.
THIRD_PARTY = """
import torch, transformers, peft, mmengine.runner, deepspeed, xtuner.engine._strategy, sam2.build_sam
import matplotlib.figure, skimage.filters, scipy.ndimage, sklearn.metrics, cv2, torchvision, pycocotools.mask
import jinja2, yaml, fastapi, uvicorn, prometheus_client
"""
WATCHED_IMPORT = """
import importlib, os, sys, tempfile
written, complaints = [], []
def uses_cuda(): return "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized()
cuda_before = uses_cuda()  # bitsandbytes, which peft imports, asks the GPUs what they are
def watch(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        written.append(arguments[0])
sys.addaudithook(watch)
with tempfile.TemporaryFile() as file:
    sys.stdout.flush(); sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    written.clear()
    os.dup2(file.fileno(), 1); os.dup2(file.fileno(), 2)
    for name in sys.argv[1:]:
        start = file.seek(0, 2)
        importlib.import_module(name)
        sys.stdout.flush(); sys.stderr.flush()
        file.seek(start)
        text = file.read().decode()
        if text: complaints.append(f"{name} printed {text!r}")
        if written: complaints.append(f"{name} wrote {written}")
        written.clear()
    os.dup2(kept[0], 1); os.dup2(kept[1], 2)
if uses_cuda() and not cuda_before: complaints.append("CUDA was initialised")
raise SystemExit("\\n".join(complaints) or 0)
"""


def test_importing_defines_and_does_nothing_else() -> None:
    outcome = run_python(THIRD_PARTY + WATCHED_IMPORT, *package_modules())
    assert outcome.returncode == 0, outcome.stderr[-3000:]


def test_importing_that_prints_or_writes_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("print('hello')")
    (tmp_path / "writing.py").write_text(f"open({str(tmp_path / 'x')!r}, 'w').close()")
    outcome = run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{WATCHED_IMPORT}", "loud", "writing")
    assert outcome.returncode == 1
    assert "loud printed" in outcome.stderr and "writing wrote" in outcome.stderr


# None in sys.modules makes an import fail and find_spec say that the package is not there.
WITHOUT_TRAINING = f"""
import importlib, sys
for name in {TRAINING_ONLY!r}: sys.modules[name] = None
for name in sys.argv[1:]: importlib.import_module(name)
late = [name for name in ("peft", "bitsandbytes") if sys.modules.get(name)]
if late: raise SystemExit(f"{{late}}: a start takes seconds longer for all who need no adapters")
"""


def test_predicting_needs_no_training_package() -> None:
    rooms = tuple(
        f"vesselseg.{room}"
        for room in ("inference", "service", "evaluation", "models", "losses", "data", "html", "cli", "errors")
    )
    outcome = run_python(WITHOUT_TRAINING, *[name for name in package_modules() if starts_with(name, rooms)])
    assert outcome.returncode == 0, outcome.stderr[-3000:]


def test_training_with_transformers_needs_no_training_package() -> None:
    outcome = run_python(WITHOUT_TRAINING.split("late =")[0], "examples.hf_trainer")
    assert outcome.returncode == 0, outcome.stderr[-3000:]


def test_scoring_masks_loads_no_torch() -> None:
    """It would take 400 MiB and seconds in every process that measures."""
    code = WITHOUT_TRAINING + "raise SystemExit('torch' in sys.modules)"
    names = [f"vesselseg.evaluation.{name}" for name in ("evaluator", "report", "frangi_baseline", "pooled_folds")]
    outcome = run_python(code, *names)
    assert outcome.returncode == 0, outcome.stderr[-3000:]


@pytest.mark.parametrize("name", TRAINING_ONLY)
def test_the_block_on_training_packages_works(name: str) -> None:
    outcome = run_python(WITHOUT_TRAINING, f"{name}.version")
    assert outcome.returncode == 1 and "ModuleNotFoundError" in outcome.stderr
