"""Scoring a model on its training images is reported clearly, and such results are not pooled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import call_command
from tests.evaluation.drawn_data import Drawn
from tests.tiny import model_arguments, save_checkpoint, shaken_model
from vesselseg.dataset.manifest import FOLDS, image_digests, read_split
from vesselseg.evaluation.cross_validation import pool_folds
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.export.convert import convert
from vesselseg.inference.load import load_predictor
from vesselseg.prepare.folds import make_folds

Score = Callable[[Path, Path], dict]


def digests(data: Path, split: str) -> set[str]:
    return set(image_digests(data, read_split(data, split)).values())


@pytest.fixture
def folds(drawn: Drawn) -> list[Path]:
    make_folds(drawn.folder, 2)
    return [drawn.folder / FOLDS / number for number in ("1", "2")]


@pytest.fixture
def checkpoint(tiny_base: Path, folds: list[Path], tmp_path: Path) -> Path:
    """Of fold 1, as training writes it."""
    seen = " ".join(digests(folds[0], "train"))
    arguments = model_arguments(tiny_base)
    return save_checkpoint(shaken_model(tiny_base), tmp_path / "best.pth", arguments, training_images=seen)


@pytest.fixture
def score(tmp_path: Path) -> Score:
    """vesselseg eval on the test split: results.json's content."""

    def run(model: Path, data: Path) -> dict:
        out = tmp_path / f"eval_{model.stem}_{data.name}"
        assert call_command("eval", model, "--data", data, "--device", "cpu", "--out", out) == 0
        return json.loads((out / "results.json").read_text())

    return run


@pytest.mark.slow
def test_test_images_of_another_fold_are_reported(
    checkpoint: Path, folds: list[Path], score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = score(checkpoint, folds[0])
    assert own["data"]["seen_in_training"] == [] and "trained on" not in " ".join(own["warnings"])
    assert "WARNING" not in capsys.readouterr().out
    images = folds[0].parents[1] / "images"
    convert(checkpoint, tmp_path / "hf", [images / read_split(folds[0], "test")[0].image])
    for model in (checkpoint, tmp_path / "hf"):
        found = score(model, folds[1])
        tested, trained = (read_split(folds[number], split) for number, split in ((1, "test"), (0, "train")))
        seen = [record.image for record in tested if record in trained]
        assert len(seen) > 3 and found["data"]["seen_in_training"] == seen
        says = f"the model was trained on {len(seen)} of the {len(tested)} scored images ({', '.join(seen[:3])} and "
        console = capsys.readouterr().out
        assert console.count(f"WARNING: {says}") == 2 and found["warnings"][0].startswith(says)
        page = (tmp_path / f"eval_{model.stem}_2" / "report.html").read_text()
        assert f'<div class="message bad">{says}' in page
    with pytest.raises(EvaluationError, match=f"eval_hf_2/results.json: the model was trained on {len(seen)} of"):
        pool_folds([tmp_path / "eval_best_1", tmp_path / "eval_hf_2"])


@pytest.mark.slow
def test_a_copied_picture_under_another_name_is_found(checkpoint: Path, folds: list[Path], score: Score) -> None:
    home = folds[0].parents[1]
    trained, tested = read_split(folds[0], "train")[0], read_split(folds[0], "test")[0]
    shutil.copyfile(home / "images" / trained.image, home / "images" / tested.image)
    assert score(checkpoint, folds[0])["data"]["seen_in_training"] == [tested.image]


@pytest.mark.slow
def test_training_images_of_an_exported_base_are_kept(
    checkpoint: Path,
    folds: list[Path],
    drawn: Drawn,
    tmp_path: Path,
) -> None:
    images = [drawn.folder / "images" / drawn.records("val")[0].image]
    convert(checkpoint, tmp_path / "first", images)
    further = save_checkpoint(
        shaken_model(tmp_path / "first", sam2={}),
        tmp_path / "further.pth",
        model_arguments(tmp_path / "first", sam2={}),
        training_images="0123456789ab",
    )
    convert(further, tmp_path / "second", images)
    expected = {"0123456789ab", *digests(folds[0], "train")}
    for path in (further, tmp_path / "second"):
        assert set(load_predictor(path, "cpu").model.config.training_images.split()) == expected


@pytest.mark.slow
def test_a_model_without_training_images_is_not_checked(tiny_base: Path, folds: list[Path], score: Score) -> None:
    path = save_checkpoint(shaken_model(tiny_base), folds[0] / "old.pth", model_arguments(tiny_base))
    assert score(path, folds[0])["data"]["seen_in_training"] is None
