"""pyproject.toml is the only list of dependencies: what is imported is declared, what is declared is used."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parent.parent
IMPORT_NAMES = {
    "opencv_python": "cv2",
    "pillow": "PIL",
    "scikit_image": "skimage",
    "scikit_learn": "sklearn",
    "pyyaml": "yaml",
}
# Declared, not imported by name: who needs it.
USED_BY_OTHERS = {
    "torchvision": "sam2 imports it for its transforms",
    "tensorboard": "torch.utils.tensorboard writes through it",
    "datasets": "xtuner 0.2.0 imports it, and is installed without its own pins",
    "einops": "xtuner 0.2.0 imports it",
    "loguru": "xtuner 0.2.0 imports it",
    "requests": "xtuner 0.2.0 imports it; huggingface-hub brings it before version 1 only",
    "python_multipart": "starlette reads forms with it",
    "setuptools": "deepspeed compiles its CPU operators with it",
    "python_gdcm": "pydicom decodes through it",
}
# Imported where they are asked for; predicting does without.
ONLY_TO_TRAIN = {
    "bitsandbytes": "model.sa2va.quantise",
    "liger_kernel": "model.sa2va.fused, on a GPU",
    "highdicom": "vesselseg predict --save dicom-seg",
    "onnx": "vesselseg distill",
    "onnxruntime": "vesselseg distill",
}


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def import_name(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert name, requirement
    plain = name.group().lower().replace("-", "_")
    return IMPORT_NAMES.get(plain, plain)


def imported(*folders: str) -> Iterator[str]:
    """Top-level names of every third-party import below the folders."""
    for folder in folders:
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    yield from (alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield node.module.split(".")[0]


def third_party(*folders: str) -> set[str]:
    return set(imported(*folders)) - set(sys.stdlib_module_names) - {"vesselseg", "tools", "configs", "tests"}


def declared() -> tuple[set[str], set[str]]:
    """Import names of (what predicting needs, what training needs besides)."""
    content = project()
    base = content["project"]["dependencies"]
    extras = content["project"]["optional-dependencies"]
    optional = [item for name in ("train", "serve", "dicom", "distill") for item in extras[name]]
    train = optional + content["dependency-groups"]["xtuner"]
    return {import_name(item) for item in base}, {import_name(item) for item in train}


def test_every_import_is_declared() -> None:
    base, train = declared()
    assert third_party("vesselseg", "tools", "configs") - base - train == set()


@pytest.mark.parametrize("room", ["data", "models", "losses", "inference", "evaluation", "html"])
def test_predicting_imports_only_the_base_dependencies(room: str) -> None:
    base, _ = declared()
    assert third_party(f"vesselseg/{room}") - base - set(ONLY_TO_TRAIN) == set()


def test_every_dependency_is_used() -> None:
    base, train = declared()
    assert (base | train) - third_party("vesselseg", "tools", "configs") - set(USED_BY_OTHERS) == set()


def test_the_version_stands_in_one_form_everywhere() -> None:
    import vesselseg

    version = project()["project"]["version"]
    assert vesselseg.__version__ == version
    assert f"## {version}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
