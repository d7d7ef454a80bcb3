"""`vesselseg report training`: console, page and JSON, several runs, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.command_line import call_command
from tests.training.test_analyze_run import ARCHIVE, XTUNER, write_mmengine
from vesselseg.errors import UserError
from vesselseg.training.logs.find_logs import read_log


def test_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_command("report", "training", ARCHIVE, "--out", tmp_path / "out") == 0
    console = capsys.readouterr().out
    assert "finished, iteration 2,300 of 2,300" in console
    assert "best validation Dice 0.6740 at threshold 0.22, iteration 2,000; last 0.6735" in console
    report = json.loads((tmp_path / "out" / "report.json").read_text())["runs"][0]
    assert report["table"][-1]["losses"]["loss"] == pytest.approx(0.2094, abs=1e-4)
    assert len(report["train"]) == 23 and len(report["validations"]) == 6
    page = (tmp_path / "out" / "analysis.html").read_text()
    assert re.findall(r"""(?:src|href|url\()\s*=?\s*["'](?!data:|#)""", page) == []
    headings = ("Table per epoch", "Checkpoints", "learning rate", "gradient norm", "loss_lm", "Dice")
    assert [heading for heading in headings if heading not in page] == []


@pytest.mark.slow
def test_several_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mmengine(tmp_path / "other", "20250701_120000", XTUNER)
    report_training = ("report", "training", ARCHIVE, tmp_path / "other")
    assert call_command(*report_training) == 2
    assert "--out" in capsys.readouterr().err
    for _ in range(2):  # a second time replaces the first
        assert call_command(*report_training, "--out", tmp_path / "out") == 0
    page = (tmp_path / "out" / "analysis.html").read_text()
    assert "2 trainings</title>" in page and "#2563a8" in page and "#d55e00" in page
    assert "<strong>other</strong> stopped early at iteration 20 of 3,672" in page
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [run["state"] for run in report["runs"]] == ["finished", "stopped"]
    assert report["runs"][1]["train"][1]["loss"] is None  # nan is no JSON


def test_bad_input_ends_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    write_mmengine(tmp_path / "early", "20250701_120000", XTUNER.split("2025/07/01 12:00:00")[0])
    (tmp_path / "notes.log").write_text("hello\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/log.jsonl").write_text("not json\n")
    for name, expected in (
        ("missing", "does not exist"),
        ("empty", "no log of a training"),
        ("early", "no training row"),
        ("notes.log", "not a text log of mmengine"),
        ("broken", "no row of a vesselseg log"),
    ):
        with pytest.raises(UserError, match=expected):
            read_log(tmp_path / name)
    assert call_command("report", "training", tmp_path / "empty") == 2
    runs = tmp_path / "missing", tmp_path / "empty"
    assert call_command("report", "training", *runs, "--out", tmp_path / "out") == 2
    assert "unreadable runs: 2" in capsys.readouterr().err
    assert not (tmp_path / "empty/analysis").exists()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/report.json").write_text("{}")
    assert call_command("report", "training", ARCHIVE, "--out", tmp_path / "precious") == 2
    assert "no earlier output" in capsys.readouterr().err
    assert (tmp_path / "precious/report.json").exists()
