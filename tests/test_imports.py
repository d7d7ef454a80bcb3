"""Who may import whom, and what importing may do. docs/architecture.md explains the table that stands here as data."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.forked_imports import BLOCK, Import, Outcome, run_imports
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


@pytest.mark.slow
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
    for path in set((REPOSITORY / "vesselseg").rglob("*.py")) - set((REPOSITORY / "vesselseg/cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                printing.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}")
    assert printing == []


def package_modules() -> list[str]:
    return [module_name(REPOSITORY, path) for path in sorted((REPOSITORY / "vesselseg").rglob("*.py"))]


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


# The block comes first: what is imported after it does not find the training packages.
WITHOUT_TRAINING = f"""
{BLOCK}
import importlib
for name in sys.argv[1:]: importlib.import_module(name)
"""
NOTHING_LATE = """
late = [name for name in ("peft", "bitsandbytes") if sys.modules.get(name)]
if late: raise SystemExit(f"{late}: a start takes seconds longer for all who need no adapters")
"""
# On CPUs that compute in bf16 bitsandbytes asks for a package when it is imported; the code says it again for others.
QUIET = """
import logging
from vesselseg.models.quantised import require_quantising
require_quantising("cpu")
logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
logger.warning("Failed to load: %s. Please make sure you already `pip install kernels`", "no module")
logger.warning("something else")
"""
# With the package `kernels` installed, bitsandbytes fetches code of the hub when it is imported.
KERNELS = """
import sys, tempfile
from pathlib import Path
folder = Path(tempfile.mkdtemp())
(folder / "kernels.py").write_text("def get_kernel(*_, **__): raise SystemExit('code was fetched')")
sys.path.insert(0, str(folder))
"""
KERNELS_STAY_OUT = f"""{KERNELS}
from vesselseg.models.quantised import require_quantising
require_quantising("cpu")
import kernels  # somebody else's again
import vesselseg.training, importlib.util
assert importlib.util.find_spec("kernels") is None
try: import kernels
except ImportError: pass
else: raise SystemExit("kernels can be imported while training")
"""
PREDICTING = (
    *rooms("inference", "predict", "service", "evaluation", "reports", "baselines", "models", "losses"),
    *rooms("dataset", "imaging", "prepare", "inspect", "synthetic", "training.logs", "errors", "run_tool"),
)
SCORING = rooms(
    "evaluation.evaluator", "reports.evaluation_report", "baselines.frangi_baseline", "evaluation.cross_validation"
)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    without, modules = "without training packages", package_modules()
    predicting = tuple(name for name in modules if starts_with(name, PREDICTING))
    scoring = f"{WITHOUT_TRAINING}{NOTHING_LATE}raise SystemExit('torch' in sys.modules)"
    imports = {
        "everything": Import("everything", WATCHED_IMPORT, tuple(modules)),
        "predicting": Import(without, WITHOUT_TRAINING + NOTHING_LATE, predicting),
        "transformers' Trainer": Import(without, WITHOUT_TRAINING, ("examples.hf_trainer",)),
        "bitsandbytes": Import(without, QUIET),
        "kernels": Import(without, KERNELS_STAY_OUT),
        "scoring": Import("nothing", scoring, SCORING),
        **{name: Import("nothing", WITHOUT_TRAINING, (f"{name}.version",)) for name in TRAINING_ONLY},
    }
    return run_imports(imports)


@pytest.mark.process
def test_importing_defines_and_does_nothing_else(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["everything"].status == 0, outcomes["everything"].stderr[-3000:]


@pytest.mark.process
def test_importing_that_prints_or_writes_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("print('hello')")
    (tmp_path / "writing.py").write_text(f"open({str(tmp_path / 'x')!r}, 'w').close()")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{WATCHED_IMPORT}"
    (outcome,) = run_imports({"both": Import("nothing", code, ("loud", "writing"))}).values()
    assert outcome.status == 1
    assert "loud printed" in outcome.stderr and "writing wrote" in outcome.stderr


@pytest.mark.process
def test_predicting_needs_no_training_package(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["predicting"].status == 0, outcomes["predicting"].stderr[-3000:]


@pytest.mark.process
def test_training_with_transformers_needs_no_training_package(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["transformers' Trainer"]
    assert outcome.status == 0, outcome.stderr[-3000:]


@pytest.mark.process
def test_scoring_masks_loads_no_torch(outcomes: dict[str, Outcome]) -> None:
    """It would take 400 MiB and seconds in every process that measures."""
    assert outcomes["scoring"].status == 0, outcomes["scoring"].stderr[-3000:]


@pytest.mark.process
@pytest.mark.parametrize("name", TRAINING_ONLY)
def test_the_block_on_training_packages_works(name: str, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[name].status == 1 and "ModuleNotFoundError" in outcomes[name].stderr


@pytest.mark.process
def test_bitsandbytes_does_not_ask_for_a_package_that_is_of_no_use(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["bitsandbytes"]
    assert outcome.status == 0, outcome.stderr[-3000:]
    assert "kernels" not in outcome.stdout + outcome.stderr and "something else" in outcome.stderr


@pytest.mark.process
def test_no_library_reaches_the_package_that_fetches_code(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["kernels"].status == 0, outcomes["kernels"].stderr[-3000:]
