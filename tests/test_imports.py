"""Who may import whom, and what importing may do. docs/architecture.md explains the table that stands here as data."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_rules import (
    REPOSITORY,
    TRAINING_ONLY,
    circles,
    module_name,
    package_imports,
    python_files,
    room_imports,
    rooms,
    starts_with,
    violations,
)


def test_import_rules_hold() -> None:
    assert violations(REPOSITORY) == []


def test_no_import_circle_between_modules_or_rooms() -> None:
    modules = package_imports(REPOSITORY)
    assert circles(modules) == []
    assert circles(room_imports(modules)) == []


def test_a_circle_inside_functions_is_found(tmp_path: Path) -> None:
    for name, code in {
        "models/a": "def f():\n    from vesselseg.models import b",
        "models/b": "from vesselseg.losses.c import x",
        "losses/c": "from vesselseg.models.a import f",
        "losses/d": "from vesselseg.losses.c import x",
    }.items():
        (tmp_path / "vesselseg" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "vesselseg" / f"{name}.py").write_text(code)
    modules = package_imports(tmp_path)
    assert circles(modules) == [["vesselseg.losses.c", "vesselseg.models.a", "vesselseg.models.b"]]
    assert circles(room_imports(modules)) == [["vesselseg.losses", "vesselseg.models"]]


@pytest.mark.parametrize(
    ("file", "code", "expected"),
    [
        (
            "vesselseg/models/a.py",
            "from vesselseg.dataset.manifest import Record",
            "may not import vesselseg.dataset.manifest",
        ),
        ("vesselseg/models/a.py", "from ..dataset import manifest", "may not import vesselseg.dataset.manifest"),
        ("vesselseg/models/a.py", "from mmengine import runner", "may not import mmengine"),
        ("vesselseg/models/checkpoints/a.py", "import deepspeed.ops", "may not import deepspeed.ops"),
        (
            "vesselseg/inference/a.py",
            "def f():\n    from vesselseg.training import loop",
            "may not import vesselseg.training",
        ),
        ("vesselseg/inference/a.py", "import mmengine", "may not import mmengine"),
        ("vesselseg/evaluation/metrics.py", "import torch.nn", "may not import torch.nn"),
        ("vesselseg/evaluation/metrics.py", "from vesselseg.evaluation import errors", "may not import"),
        ("vesselseg/dataset/manifest.py", "from .batch import Batch", "may not import vesselseg.dataset.batch"),
        ("vesselseg/dataset/a.py", "import vesselseg.models.sa2va", "may not import vesselseg.models.sa2va"),
        ("vesselseg/prepare/a.py", "import torch", "may not import torch"),
        ("vesselseg/training/a.py", "from vesselseg import export", "may not import vesselseg.export"),
        ("vesselseg/inference/a.py", "from vesselseg.cli import main", "may not import vesselseg.cli"),
        (
            "vesselseg/export/a.py",
            "import importlib\nimportlib.import_module('vesselseg.training')",
            "vesselseg.training",
        ),
        ("tools/a.py", "from tools import b", "may not import tools"),
        ("tools/a.py", "from vesselseg.dataset.manifest import _read_json", "private"),
        ("configs/a.py", "from tools.b import main", "may not import tools"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, file: str, code: str, expected: str) -> None:
    names = ("dataset/manifest", "dataset/batch", "models/sa2va", "training/loop", "export/x", "evaluation/errors")
    for name in names:
        (tmp_path / "vesselseg" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "vesselseg" / f"{name}.py").touch()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(code)
    found = violations(tmp_path)
    assert len(found) == 1, found
    assert found[0].startswith(f"{file}:") and expected in found[0]


def test_allowed_imports_are_not_reported(tmp_path: Path) -> None:
    allowed = {
        "vesselseg/dataset/batch.py": "import torch",
        "vesselseg/prepare/a.py": "from vesselseg.imaging.decode import x\nfrom vesselseg.errors import UserError",
        "vesselseg/models/a.py": "from vesselseg.dataset.batch import Batch\nimport torch",
        "vesselseg/training/a.py": "import mmengine.runner\nfrom vesselseg.evaluation.metrics import image_metrics",
        "configs/a.py": "from ._base_.models.tiny import model",
        "tools/a.py": "from vesselseg.run_tool import run_tool",
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
    names = (
        *rooms("inference", "predict", "service", "evaluation", "reports", "baselines", "models", "losses"),
        *rooms("dataset", "imaging", "prepare", "inspect", "synthetic", "training.logs", "errors", "run_tool"),
    )
    outcome = run_python(WITHOUT_TRAINING, *[name for name in package_modules() if starts_with(name, names)])
    assert outcome.returncode == 0, outcome.stderr[-3000:]


def test_training_with_transformers_needs_no_training_package() -> None:
    outcome = run_python(WITHOUT_TRAINING.split("late =")[0], "examples.hf_trainer")
    assert outcome.returncode == 0, outcome.stderr[-3000:]


def test_scoring_masks_loads_no_torch() -> None:
    """It would take 400 MiB and seconds in every process that measures."""
    code = WITHOUT_TRAINING + "raise SystemExit('torch' in sys.modules)"
    names = rooms(
        "evaluation.evaluator", "reports.evaluation_report", "baselines.frangi_baseline", "evaluation.pooled_folds"
    )
    outcome = run_python(code, *names)
    assert outcome.returncode == 0, outcome.stderr[-3000:]


@pytest.mark.parametrize("name", TRAINING_ONLY)
def test_the_block_on_training_packages_works(name: str) -> None:
    outcome = run_python(WITHOUT_TRAINING, f"{name}.version")
    assert outcome.returncode == 1 and "ModuleNotFoundError" in outcome.stderr
