"""vesselseg eval as the user runs it: exit status, files, console, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command_line import call_command, completed_command
from tests.evaluation.drawn_data import Drawn
from vesselseg.evaluation.metrics import EMPTY_MASK_RULE, METRICS, image_metrics


@pytest.fixture
def finished(drawn: Drawn, probability_folder: Path, tmp_path: Path) -> tuple[Path, str]:
    """The output folder of a whole run with a searched threshold, and its console output."""
    out = tmp_path / "out"
    done = completed_command("eval", probability_folder, "--data", drawn.folder, "--threshold", "auto", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.mark.slow
def test_everything_is_written(finished: tuple[Path, str], drawn: Drawn) -> None:
    out, console = finished
    assert f"report: {out / 'report.html'}" in console
    assert re.search(r"Dice\s+1\.0000", console)
    _check_results(json.loads((out / "results.json").read_text()), drawn)
    _check_panels(out, json.loads((out / "results.json").read_text()))
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert len(rows) == 5
    assert {*METRICS, "image", "group", "truth_pixels"} <= set(rows[0])
    with Image.open(out / "threshold_curve.png") as curve:
        assert min(curve.size) > 400
    _check_page((out / "report.html").read_text(encoding="utf-8"))
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def _check_results(results: dict, drawn: Drawn) -> None:
    assert 0.27 < results["threshold"]["value"] < 0.35
    assert results["threshold"]["search"]["split"] == "val"
    assert len(results["threshold"]["search"]["dice"]) == 99
    assert results["data"]["images"] == 5
    assert results["data"]["groups"] == 3
    assert results["bootstrap"]["unit"] == "group"
    assert results["empty_mask_rule"] == EMPTY_MASK_RULE
    assert re.fullmatch("[0-9a-f]{16}", results["data"]["fingerprint"])
    assert results["versions"]["numpy"] == np.__version__
    assert [item["image"] for item in results["items"]] == [record.image for record in drawn.records("test")]
    assert all(item["metrics"]["dice"] == 1.0 for item in results["items"])


def _check_panels(out: Path, results: dict) -> None:
    panels = sorted((out / "panels").glob("*.png"))
    assert len(panels) >= 3
    assert {path.name.split("_")[0] for path in panels} == {"worst", "median", "best"}
    for path in panels:
        with Image.open(path) as panel:
            assert 1000 < panel.width < 2000
            assert 600 < panel.height < 2000
            assert np.asarray(panel).std() > 20


def _check_page(page: str) -> None:
    assert "<script src" not in page
    assert "<link" not in page
    assert re.findall(r"""(?:src|href|url\()\s*=?\s*["'](?!data:|#)""", page) == []
    assert "http://" not in page
    assert "https://" not in page
    assert EMPTY_MASK_RULE.split(".")[0] in page
    assert page.count("data:image/") >= 4
    for heading in ("All metrics", "Worst cases", "Median cases", "Best cases", "Every image"):
        assert heading in page


def test_a_mask_folder_is_scored_as_its_masks(
    drawn: Drawn, mask_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_command("eval", mask_folder, "--data", drawn.folder, "--out", tmp_path / "out") == 0
    assert "the source contains masks" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not (tmp_path / "out" / "threshold_curve.png").exists()
    for item, record in zip(results["items"], drawn.records("test")):
        expected = image_metrics(np.asarray(Image.open(mask_folder / record.image)) > 0, drawn.truth(record))
        found = {name: math.nan if value is None else value for name, value in item["metrics"].items()}
        assert found == pytest.approx(expected, nan_ok=True)
        assert 0.6 < item["metrics"]["dice"] < 1


@pytest.mark.slow
def test_what_was_searched_and_switched_is_written(
    drawn: Drawn, probability_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--threshold", "auto", "--calibrate", "--min-component", 5, "--fill-holes", 3]
    assert call_command("eval", probability_folder, "--data", drawn.folder, "--out", tmp_path / "out", *options) == 0
    console = capsys.readouterr().out
    assert "min_component + fill_holes: Dice" in console
    assert "fitted on val" in console
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["format"] == 2
    assert results["post_processing"] == {"min_component": 5, "fill_holes": 3}
    dice = results["thresholds"][0]
    assert (dice["metric"], dice["threshold"]) == ("dice", results["threshold"]["value"])
    assert [len(dice[name]) for name in ("grid", "searched", "reported")] == [99, 99, 99]
    assert dice["loss"] == pytest.approx(dice["reported_best"] - dice["reported_value"])
    reliability = results["calibration"]["everywhere"]
    assert len(reliability["edges"]) == 16
    assert sum(reliability["counts"]) == 5 * 72 * 96
    assert [count == 0 for count in reliability["counts"]] == [value is None for value in reliability["frequency"]]
    effects = {(one["switch"], one["metric"]): one for one in results["switches"]}
    assert effects["fill_holes", "dice"]["items"] == 5
    assert results["summary"]["recall_wide"]["mean"] is None
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert rows[0]["recall_wide"] == ""


def test_missing_predictions_are_listed_and_nothing_is_written(drawn: Drawn, mask_folder: Path, tmp_path: Path) -> None:
    (mask_folder / "test/case1.png").unlink()
    (mask_folder / "test/case3.png").unlink()
    done = completed_command("eval", mask_folder, "--data", drawn.folder, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "images without a prediction: 2" in done.stderr
    assert "test/case1.png" in done.stderr
    assert "test/case3.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_output_is_not_overwritten_without_force(
    drawn: Drawn, mask_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", mask_folder, "--data", drawn.folder, "--out", tmp_path / "out"]
    assert call_command(*arguments) == 0
    before = (tmp_path / "out" / "results.json").read_bytes()
    assert call_command(*arguments, "--seed", 1) == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    assert call_command(*arguments, "--seed", 1, "--force") == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["bootstrap"]["seed"] == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--split", "val", "--threshold", "auto"], "tuned on themselves"),
        (["--threshold", "1.5"], "from 0 to below 1"),
        (["--batch", "0"], "whole number"),
        (["--data", "{predictions}"], "annotations.json does not exist"),
        (["--out", "{predictions}/out"], "is input"),
        (["--out", "{predictions}/..", "--force"], "no earlier output"),
    ],
)
def test_wrong_arguments_end_in_one_message(
    drawn: Drawn,
    probability_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    filled = [argument.replace("{predictions}", str(probability_folder)) for argument in arguments]
    status = call_command("eval", probability_folder, "--data", drawn.folder, "--out", tmp_path / "out", *filled)
    assert status == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
