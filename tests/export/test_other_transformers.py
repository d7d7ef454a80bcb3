"""Exported folders under transformers 5, in an environment of its own, and folders that an earlier version exported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.tiny import SAM2
from vesselseg.cli.main import main
from vesselseg.distill.student_folder import write_model
from vesselseg.export.refresh_code import refresh_code
from vesselseg.models.prompted_config import PromptedSAM2Config
from vesselseg.models.prompted_sam2 import build_prompted

# Made by `make env-transformers-5`: this environment with another transformers in front.
OTHERS = sorted(REPOSITORY.glob(".venv-transformers-*/bin/python"))
SCRIPT = Path(__file__).with_name("loaded_elsewhere.py")


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fixed phrase."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("student")
    write_model(build_prompted(PromptedSAM2Config(phrases=["blood vessel"], grounding_config=SAM2)).eval(), folder)
    return folder


def run(python: str | Path, folders: list[Path], cache: Path) -> dict[str, Any]:
    environment = {**os.environ, "HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    command = [str(python), str(SCRIPT), *map(str, folders)]
    done = subprocess.run(command, text=True, capture_output=True, env=environment, cwd=cache, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="session")
def here(exported: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What this environment finds."""
    return run(sys.executable, [exported, student], tmp_path_factory.mktemp("code"))


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(not OTHERS, reason="no .venv-transformers-5; make env-transformers-5 makes it")
@pytest.mark.parametrize("python", OTHERS, ids=lambda path: path.parents[1].name)
def test_masks_losses_and_gradients_are_the_same_bit_by_bit(
    python: Path, here: dict[str, Any], exported: Path, student: Path, tmp_path: Path
) -> None:
    there = run(python, [exported, student], tmp_path)
    assert there.pop("transformers").split(".")[0] == "5" and here["transformers"].startswith("4.57")
    expected = {name: found for name, found in here.items() if name != "transformers"}
    assert there == expected
    sa2va = there[str(exported)]
    assert sa2va["loaded"] == sa2va["device_map"] == sa2va["saved"] != sa2va["8 bits"]


def test_the_code_of_an_older_folder_is_replaced(
    exported: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, original in enumerate((exported, student)):
        folder = tmp_path / str(number)
        shutil.copytree(original, folder)
        (folder / "rgb.py").unlink()
        (folder / "sam2_grounding.py").write_text("raise ImportError('written long ago')\n")
        before = {path.name: path.read_bytes() for path in original.iterdir() if path.is_file()}
        assert main(["weights", "refresh", str(folder)]) == 0
        assert f"{folder}: 2 files of code replaced" in capsys.readouterr().out
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
        assert refresh_code(folder) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "not readable as the config.json of a model folder"),
        ("[]", "not readable as the config.json of a model folder"),
        ("{}", "names None as the model's code; expected hf_model.VesselSegModel or hf_prompted_model"),
        ('{"auto_map": {"AutoModel": "modeling_internvl.InternVL"}}', "names 'modeling_internvl.InternVL'"),
    ],
)
def test_other_folders_are_refused(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert main(["weights", "refresh", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == (["config.json"] if content is not None else [])
