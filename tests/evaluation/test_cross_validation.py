"""Results of all folds as one: the means of all images, refused where they are not of one cross-validation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command_line import call_command
from tests.evaluation.drawn_data import Drawn
from vesselseg.dataset.manifest import FOLDS, fingerprint, read_fold, read_manifest
from vesselseg.evaluation.comparison import compare, read_results
from vesselseg.evaluation.cross_validation import pool_folds
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.evaluator import evaluate
from vesselseg.evaluation.options import EvaluationOptions
from vesselseg.evaluation.prediction_sources import FolderSource
from vesselseg.evaluation.results_file import write_json
from vesselseg.inference.post_processing import PostProcessing
from vesselseg.prepare.folds import make_folds

COUNT = 3


@pytest.fixture
def masks(drawn: Drawn, tmp_path: Path) -> Path:
    """The true masks of all images, shifted by one to three pixels."""
    folder = tmp_path / "masks"
    for number, record in enumerate(read_manifest(drawn.folder)):
        path = folder / record.image
        path.parent.mkdir(parents=True, exist_ok=True)
        shifted = np.roll(drawn.truth(record), 1 + number % 3, axis=0)
        Image.fromarray(shifted.astype(np.uint8) * 255).save(path)
    return folder


def score(masks: Path, data: Path, out: Path, split: str = "test", holes: int = 0) -> Path:
    """results.json as vesselseg eval writes it, without its page."""
    options = EvaluationOptions(post_processing=PostProcessing(0, holes))
    out.mkdir()
    write_json(evaluate(data, split, FolderSource(masks, read_manifest(data)), options=options), out)
    return out


@pytest.fixture
def folds(drawn: Drawn, masks: Path, tmp_path: Path) -> list[Path]:
    """Results of three folds."""
    make_folds(drawn.folder, COUNT)
    found = [tmp_path / f"fold{number}" for number in range(1, COUNT + 1)]
    return [score(masks, drawn.folder / FOLDS / str(number), out) for number, out in enumerate(found, start=1)]


def test_results_say_which_fold_they_are_of(drawn: Drawn, folds: list[Path]) -> None:
    fold = drawn.folder / FOLDS / "2"
    data = json.loads((folds[1] / "results.json").read_text())["data"]
    known = read_fold(fold)
    assert known is not None
    assert data["fold"] == {"number": 2, "of": COUNT, "fingerprint": known.fingerprint}
    assert data["fingerprint"] == fingerprint(fold)


def test_the_mean_is_that_of_all_images(drawn: Drawn, folds: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "pooled"
    assert call_command("folds", "pool", *reversed(folds), "--out", out) == 0
    content = json.loads((out / "results.json").read_text())
    items = [item for fold in folds for item in json.loads((fold / "results.json").read_text())["items"]]
    assert {item["image"] for item in content["items"]} == {record.image for record in read_manifest(drawn.folder)}
    dice = [item["metrics"]["dice"] for item in items]
    row = content["summary"]["dice"]
    assert row["mean"] == pytest.approx(np.mean(dice)) and row["items"] == 12
    assert row["low"] < row["mean"] < row["high"]
    groups = {item["group"] for item in items}
    assert content["data"]["groups"] == len(groups) and content["bootstrap"]["unit"] == "group"
    assert [fold["number"] for fold in content["folds"]] == [1, 2, 3]
    of_groups = [np.mean([i["metrics"]["dice"] for i in items if i["group"] == group]) for group in groups]
    assert content["group_summary"]["dice"]["mean"] == pytest.approx(np.mean(of_groups))
    assert len((out / "results.csv").read_text().splitlines()) == 13


def test_pooled_results_are_compared(folds: list[Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert call_command("folds", "pool", *folds, "--out", tmp_path / name) == 0
    comparison = compare([read_results(tmp_path / "a"), read_results(tmp_path / "b")], "dice")
    assert len(comparison.keys) == 12 and comparison.grouped


def test_what_does_not_belong_together_is_refused_at_once(
    drawn: Drawn, masks: Path, folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = score(masks, drawn.folder, tmp_path / "plain")
    with pytest.raises(EvaluationError, match="not of a fold"):
        pool_folds([*folds, plain])
    with pytest.raises(EvaluationError, match="missing: 2"):
        pool_folds([folds[0], folds[2]])
    with pytest.raises(EvaluationError, match="fold 1 is given 2 times"):
        pool_folds([folds[0], *folds])
    make_folds(drawn.folder, COUNT, seed=1, force=True)
    fold = drawn.folder / FOLDS / "3"
    other = score(masks, fold, tmp_path / "other", holes=9)
    validation = score(masks, fold, tmp_path / "validation", split="val")
    assert call_command("folds", "pool", folds[0], folds[1], other, validation, "--out", tmp_path / "no") == 2
    told = capsys.readouterr().err
    assert all(text in told for text in ("folds ", "of split val", "post_processing", "fold 3 is given 2 times"))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("content", "says"), [("{", "not a results file"), ("[]", "not a results file"), ('{"data": {}}', "items")]
)
def test_files_that_are_no_results(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(EvaluationError, match=says):
        pool_folds([tmp_path])
    with pytest.raises(EvaluationError, match="does not exist"):
        pool_folds([tmp_path / "nowhere"])
