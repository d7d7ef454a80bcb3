"""The worked changes of docs/extending.md still apply to the source code, and their own tests pass with them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fork_server import python

REPOSITORY = Path(__file__).resolve().parent.parent
DIFFS = {"loss": 2, "label_format": 3, "base_model": 4}  # name: how many concepts it may take
COPIED = ("vesselseg", "tests", "configs", "examples")
# The fork server has imported this checkout's package; what it has imported of other packages saves half a minute.
RUN = """
import sys
from mmengine import registry
for parent in vars(registry).values():
    if isinstance(parent, registry.Registry):
        parent.children.pop("vesselseg", None)
for name in [name for name in sys.modules if name.partition(".")[0] in ("vesselseg", "tests")]:
    del sys.modules[name]
import pytest, vesselseg
assert vesselseg.__file__ == sys.argv[1] + "/vesselseg/__init__.py", vesselseg.__file__
raise SystemExit(pytest.main(["-p", "no:cacheprovider", *sys.argv[2:]]))
"""


def path_of(name: str) -> Path:
    return REPOSITORY / "docs" / "diffs" / f"{name}.diff"


def added_tests(name: str) -> list[str]:
    return re.findall(r"^\+\+\+ b/(tests/.*/test_\w+\.py)$", path_of(name).read_text(), re.MULTILINE)


@pytest.mark.process
def test_each_diff_applies_and_its_tests_pass(tmp_path: Path) -> None:
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    tests = []
    for name in DIFFS:
        applied = subprocess.run(
            ["git", "apply", path_of(name)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert applied.returncode == 0, f"{path_of(name)} no longer applies:\n{applied.stderr}"
        assert added_tests(name), f"{path_of(name)} has no test"
        tests += added_tests(name)
    done = subprocess.run(
        [python(), "-c", RUN, str(tmp_path), *tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.parametrize("name", DIFFS)
def test_the_page_links_each_diff_and_lists_its_concepts(name: str) -> None:
    page = (REPOSITORY / "docs" / "extending.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith("|") and f"(diffs/{name}.diff)" in line)
    _, number, concepts = (cell.strip() for cell in row.strip("|").split("|"))
    assert int(number) == len(concepts.split(";")) <= DIFFS[name]
