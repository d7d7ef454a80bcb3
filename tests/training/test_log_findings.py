"""Values of training logs that are not finite are findings, whichever column holds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shared_cases import case
from vesselseg.training.logs.analysis import findings
from vesselseg.training.logs.find_logs import read_log
from vesselseg.training.logs.training_log import TrainingLog

ROW = "{stamp} - mmengine - {level} - Iter(train) [{number:4}/1000]  lr: 1e-4  loss: {loss}  grad_norm: {norm}"


def lines(*values: tuple[str, str], stamp: str = "2026/09/01 10:15:00", level: str = "INFO") -> str:
    rows = (
        ROW.format(stamp=stamp, level=level, number=10 * n, loss=loss, norm=norm)
        for n, (loss, norm) in enumerate(values, 1)
    )
    return "\n".join(rows) + "\n"


BROKEN = {
    "gradient norm": ([("2.5", "nan"), ("2.4", "1.0")], "1 of 2 logged gradient norm(s) are nan or inf: iteration 10"),
    "infinite norm": ([("2.5", "1.0"), ("2.4", "inf")], "1 of 2 logged gradient norm(s) are nan or inf: iteration 20"),
    "loss": ([("nan", "1.0"), ("2.4", "1.0")], "1 of 2 logged loss(es) are nan or inf: iteration 10"),
    "zero": ([("2.5", "1.0"), ("0.0000", "1.0")], "the loss falls to exactly 0 in 1 row(s), as which xtuner logs nan"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_values_that_are_not_finite(tmp_path: Path, name: str) -> None:
    values, sentence = BROKEN[name]
    (tmp_path / "a.log").write_text(lines(*values))
    assert any(sentence in one for one in findings(read_log(tmp_path)))


def test_sound_values_are_no_findings(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(lines(("2.5", "1.0"), ("2.4", "0.9")))
    assert findings(read_log(tmp_path)) == []


def test_any_column_of_any_rows() -> None:
    log = TrainingLog("vesselseg", [{"iter": 1, "loss_dice": float("inf")}], [{"iter": 1, "dice": float("nan")}])
    assert findings(log) == [
        "1 of 1 logged value(s) of loss_dice are nan or inf: iteration 1",
        "1 of 1 validation value(s) of dice are nan or inf: iteration 1",
    ]


@pytest.mark.parametrize("name", ["train.log", "nohup.out"])
def test_the_output_of_a_console(tmp_path: Path, name: str) -> None:
    """Without year, with colours and with the carriage returns of a progress bar."""
    text = lines(("2.5", "1.0"), ("2.4", "nan"), stamp="09/01 10:15:00", level="\x1b[4m\x1b[97mINFO\x1b[0m")
    (tmp_path / name).write_text("loading: 10 %\rloading: 100 %\r" + text)
    log = read_log(tmp_path)
    assert [row["iter"] for row in log.train] == [10, 20]
    assert len(findings(log)) == 1
    assert read_log(tmp_path / name).train[0]["loss"] == 2.5


CASES = {
    "a2_zero": ["gradient norm(s) are nan or inf", "the loss falls to exactly 0"],
    "a3_gradnan": ["36 of 60 logged gradient norm(s) are nan or inf"],
    "a4_console": [],
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    log = read_log(case("training_log_nan_hidden") / name)
    found = findings(log)
    assert len(log.train) >= 40 and len(found) == len(CASES[name])
    assert all(any(part in one for one in found) for part in CASES[name])
