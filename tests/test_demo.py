"""The demo's own promises: it stops at a failed step, replaces only its own folder, and fails when the model loses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from vesselseg.cli import demo
from vesselseg.errors import UserError


def write_dice(out: Path, filter_dice: float, model_dice: float) -> None:
    for name, dice in (("eval_frangi", filter_dice), ("eval_model", model_dice)):
        (out / name).mkdir()
        (out / name / "results.json").write_text(json.dumps({"summary": {"dice": {"mean": dice}}}))


@pytest.mark.parametrize(("model_dice", "status"), [(0.61, 0), (0.59, 1), (0.6, 1)])
def test_the_model_must_beat_the_filter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_dice: float, status: int
) -> None:
    write_dice(tmp_path, 0.6, model_dice)
    assert demo.report(tmp_path) == status
    printed = capsys.readouterr().out
    assert "0.600" in printed and f"{model_dice:.3f}" in printed and "report.html" in printed


@pytest.mark.process
def test_a_failed_step_ends_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reached = tmp_path / "reached"
    steps = [
        ("draw", ["prepare", str(tmp_path / "missing"), "--out", str(tmp_path / "data")]),
        ("prepare", ["synthetic", "--out", str(reached), "--count", "1", "--size", "64"]),
    ]
    monkeypatch.setattr(demo, "demo_steps", lambda *_: steps)
    assert demo.demo(out=tmp_path / "demo") == 1
    errors = capsys.readouterr().err
    assert "status 2" in errors and "missing does not exist" in errors
    assert not reached.exists()


@pytest.mark.process
def test_steps_see_no_gpu_and_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    package = tmp_path / "vesselseg"
    package.mkdir()
    code = (
        "import os, sys; print(repr(os.environ['CUDA_VISIBLE_DEVICES']), os.environ['HF_HUB_OFFLINE'], sys.executable)"
    )
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert demo.run_step("look", ["anything"], tmp_path / "log")
    assert (tmp_path / "log").read_text().splitlines()[-1] == f"'' 1 {sys.executable}"


def test_only_a_demo_folder_is_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no earlier demo"):
        demo.clear(mine)
    assert (mine / "thesis.txt").exists()
    demo.clear(tmp_path / "demo")
    (tmp_path / "demo" / "old").touch()
    demo.clear(tmp_path / "demo")
    assert not (tmp_path / "demo" / "old").exists()
