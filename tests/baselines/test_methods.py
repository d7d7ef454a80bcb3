"""vesselseg baselines compare: both baselines and anyone's predictions in one table, from drawn images to the page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import call_command
from tests.evaluation.drawn_data import Drawn
from vesselseg.baselines import frangi_search
from vesselseg.baselines.methods import Method, check_methods, parse_method
from vesselseg.dataset.manifest import read_manifest
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.evaluator import evaluate
from vesselseg.evaluation.prediction_sources import open_predictions

SHORT = ("--epochs", 1, "--size", 64, "--width", 4, "--steps", 1, "--device", "cpu")


@pytest.fixture(autouse=True)
def quick_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few scales and one setting: the search itself is tested elsewhere."""
    monkeypatch.setattr(frangi_search, "_SIGMAS", (2.0, 4.0))
    monkeypatch.setattr(frangi_search, "_GRID", {"gamma": (0.5, 1.0)})


@pytest.mark.slow
def test_one_call_makes_one_table(
    drawn: Drawn,
    mask_folder: Path,
    probability_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.rmtree(mask_folder / "val")  # a person's masks of the test split alone
    out = tmp_path / "out"
    arguments = (drawn.folder, f"a person={mask_folder}", probability_folder, "--out", out, *SHORT)
    assert call_command("baselines", "compare", *arguments) == 0
    console = capsys.readouterr().out
    assert re.search(r"Frangi - U-Net .*\n(.*\n)*a person - probabilities", console)

    direct = evaluate(drawn.folder, "test", open_predictions(probability_folder, read_manifest(drawn.folder)), "auto")
    lines = (out / "methods.md").read_text().splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if re.search(r"\| (0\.\d\d, best|masks) ", line)}
    assert list(rows) == ["Frangi", "U-Net", "a person", "probabilities"]
    assert f"{direct.threshold.value:.2f}, best mean Dice on the val split" in rows["probabilities"]
    summary = direct.summary["dice"]
    assert f"{summary.mean:.3f}** ({summary.low:.3f} to {summary.high:.3f})" in rows["probabilities"]
    assert "| masks |" in rows["a person"]
    assert sum("a person -" in line or "- a person" in line for line in lines) == 3

    page = (out / "methods.html").read_text()
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == 5 and all((out / link).is_file() for link in links)
    assert "http" not in page.replace("http://www.w3.org", "")

    before = {path: path.stat().st_mtime_ns for path in (out / "baselines").rglob("*.*")}
    caplog.clear()
    assert (
        call_command("baselines", "compare", drawn.folder, f"old={out / 'evaluations/a person'}", "--out", out, *SHORT)
        == 0
    )
    assert caplog.text.count("finished, used again") == 2
    assert {path: path.stat().st_mtime_ns for path in (out / "baselines").rglob("*.*")} == before
    assert "U-Net - old" in capsys.readouterr().out


@pytest.mark.slow
def test_baselines_of_other_options_are_made_anew(drawn: Drawn, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call_command("baselines", "compare", drawn.folder, "--out", out, *SHORT) == 0
    assert call_command("baselines", "compare", drawn.folder, "--out", out, *SHORT, "--minutes", 3) == 0
    settings = json.loads((out / "baselines/unet/predictions.json").read_text())
    assert settings["params"]["minutes"] == 3
    assert "stopped after" not in (out / "methods.md").read_text()
    stopped = ["--epochs", 9, "--minutes", 1e-6]
    assert call_command("baselines", "compare", drawn.folder, "--out", out, *SHORT, *stopped) == 0
    for name in ("methods.md", "methods.html"):
        assert "U-Net was stopped after 1e-06 minutes, in epoch 1 of 9 (best: 1)" in (out / name).read_text()


def test_wrong_predictions_are_listed_before_anything_is_trained(
    drawn: Drawn, probability_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(probability_folder / "test/case0.npy", np.zeros((3, 3), np.float32))
    np.save(probability_folder / "val/case1.npy", np.full((72, 96), 7.0, np.float32))
    out = tmp_path / "out"
    assert call_command("baselines", "compare", drawn.folder, probability_folder, "--out", out, *SHORT) == 2
    message = capsys.readouterr().err
    assert "test/case0.npy: 3 x 3" in message and "val/case1.npy: values 7 to 7" in message
    assert not (out / "baselines").exists()


def test_what_cannot_be_compared_is_refused_at_once(drawn: Drawn, mask_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "evaluation"
    assert call_command("eval", mask_folder, "--data", drawn.folder, "--split", "val", "--out", other) == 0
    with pytest.raises(EvaluationError) as caught:
        check_methods(drawn.folder, [Method("Frangi", mask_folder), Method("eval", other)], "diceness")
    message = str(caught.value)
    assert "--metric diceness: expected one of dice" in message
    assert "Frangi: the name of more than one method" in message
    assert f"{other}: of split val" in message


def test_names_and_paths(tmp_path: Path) -> None:
    (tmp_path / "model=2").mkdir()
    assert parse_method(str(tmp_path)) == Method(tmp_path.name, tmp_path)
    assert parse_method(f"mine={tmp_path}") == Method("mine", tmp_path)
    for text, reason in (("mine=nowhere", "nowhere does not exist"), (f"../x={tmp_path}", "expected NAME=PATH")):
        with pytest.raises(EvaluationError, match=reason):
            parse_method(text)
    with pytest.raises(EvaluationError, match="expected NAME=PATH, with a name"):
        parse_method(str(tmp_path / "model=2"))


def test_a_folder_that_holds_other_things_is_left_alone(
    drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.txt").write_text("")
    assert call_command("baselines", "compare", drawn.folder, "--out", tmp_path / "thesis", *SHORT) == 2
    assert "holds no baselines" in capsys.readouterr().err
