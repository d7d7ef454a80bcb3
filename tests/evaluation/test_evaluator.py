"""The evaluator: splits that choose thresholds, phrases, empty truths, memory, and cases for panels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.evaluation.drawn_data import Drawn
from vesselseg.dataset.manifest import Record, image_path, read_manifest, write_manifest
from vesselseg.errors import UserError
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.evaluator import evaluate, predict_cases
from vesselseg.evaluation.metrics import image_metrics
from vesselseg.evaluation.options import EvaluationOptions
from vesselseg.evaluation.prediction_sources import FolderSource, ModelSource, PredictionSource, open_predictions
from vesselseg.evaluation.result_types import ItemResult
from vesselseg.evaluation.results_file import as_dict
from vesselseg.inference.load import load_predictor
from vesselseg.inference.options import LoadOptions
from vesselseg.output_folder import whole_folder
from vesselseg.reports.evaluation_report import write_evaluation
from vesselseg.reports.panels import FALSE_NEGATIVE, FALSE_POSITIVE, TRUE_POSITIVE, difference, select_cases


def _open(drawn: Drawn, folder: Path) -> PredictionSource:
    return open_predictions(folder, read_manifest(drawn.folder))


def test_the_threshold_is_searched_on_val_alone(drawn: Drawn, probability_folder: Path) -> None:
    """On val the best threshold is near 0.3; the reported split is shifted so that its own best is elsewhere."""
    for record in drawn.records("test"):
        path = (probability_folder / record.image).with_suffix(".npy")
        np.save(path, np.clip(np.load(path) + 0.3, 0, 1).astype(np.float32))
    found = evaluate(drawn.folder, "test", _open(drawn, probability_folder), "auto")
    assert 0.27 < found.threshold.value < 0.35
    assert found.threshold.searched is not None
    assert found.threshold.searched.split == "val"
    assert found.threshold.searched.items == 3
    assert found.curve is not None
    assert found.curve.dice.argmax() > 54
    assert found.summary["dice"].mean < 0.7


def test_another_fill_changes_the_truth_alone(drawn: Drawn, probability_folder: Path) -> None:
    own, other = (
        evaluate(drawn.folder, "test", _open(drawn, probability_folder), 0.5, options=EvaluationOptions(fill=fill))
        for fill in (None, "coco")
    )
    assert (own.fill, other.fill) == ("labelme", "coco")
    expected = [replace(record, fill="coco") for record in drawn.records("test")]
    assert [item.truth_pixels for item in other.items] == [int(drawn.truth(record).sum()) for record in expected]
    assert sum(item.truth_pixels for item in own.items) > sum(item.truth_pixels for item in other.items)
    assert as_dict(other)["data"]["fill"] == "coco"


def test_each_metric_has_its_own_threshold(drawn: Drawn, probability_folder: Path) -> None:
    source = _open(drawn, probability_folder)
    found = evaluate(drawn.folder, "test", source, "auto")
    assert [one.metric for one in found.thresholds] == ["dice", "iou", "accuracy", "balanced_accuracy", "mcc"]
    dice = found.thresholds[0]
    assert dice.threshold == found.threshold.value
    assert dice.reported_value == pytest.approx(found.summary["dice"].mean)
    assert found.curve is not None
    assert dice.reported_best == pytest.approx(found.curve.dice.max())
    assert evaluate(drawn.folder, "test", source, 0.3).thresholds == ()


def test_auto_for_another_metric(drawn: Drawn, probability_folder: Path) -> None:
    """A false speck of high probability: unmatched components are fewest above it, Dice is best below."""
    for split in ("val", "test"):
        for record in drawn.records(split):
            path = (probability_folder / record.image).with_suffix(".npy")
            values, truth = np.load(path), drawn.truth(record)
            values[truth] = np.maximum(values[truth], 0.34) * 0.5 + 0.4
            values[truth & (np.arange(96) % 7 < 3)] = 0.34
            values[:2, :2] = 0.5
            np.save(path, values)
    source = _open(drawn, probability_folder)
    assert evaluate(drawn.folder, "test", source, "auto").threshold.value < 0.34
    found = evaluate(drawn.folder, "test", source, "auto", options=EvaluationOptions(metric="components_error"))
    assert found.threshold.value >= 0.5
    assert found.threshold.origin == "best mean Unmatched components on the val split"
    chosen = next(one for one in found.thresholds if one.metric == "components_error")
    assert chosen.threshold == found.threshold.value
    assert chosen.reported_value == pytest.approx(found.summary["components_error"].mean)
    assert len(found.thresholds) == 13


@pytest.mark.parametrize(("metric", "threshold"), [("roc_auc", "auto"), ("recall", "auto"), ("iou", 0.4)])
def test_metrics_that_choose_no_threshold(
    drawn: Drawn, probability_folder: Path, metric: str, threshold: float | str
) -> None:
    with pytest.raises(EvaluationError, match=f"--threshold-metric {metric}"):
        evaluate(
            drawn.folder, "test", _open(drawn, probability_folder), threshold, options=EvaluationOptions(metric=metric)
        )


def test_a_temperature_is_fitted_on_val_and_measured_on_test(drawn: Drawn, probability_folder: Path) -> None:
    found = evaluate(
        drawn.folder, "test", _open(drawn, probability_folder), 0.3, options=EvaluationOptions(calibrate=True)
    )
    plain = evaluate(drawn.folder, "test", _open(drawn, probability_folder), 0.3).calibration
    calibration = found.calibration
    assert calibration is not None and plain is not None
    assert plain.temperature is None
    assert calibration.everywhere.nll == plain.everywhere.nll
    assert (calibration.split, calibration.fitted_on) == ("test", "val")
    assert calibration.temperature is not None and calibration.temperature < 1  # all vessel is at 0.34 to 0.6
    assert calibration.calibrated_everywhere is not None
    assert calibration.calibrated_everywhere.nll < calibration.everywhere.nll
    assert calibration.threshold == pytest.approx(1 / (1 + (0.7 / 0.3) ** (1 / calibration.temperature)))
    assert found.items == evaluate(drawn.folder, "test", _open(drawn, probability_folder), 0.3).items


def test_masks_are_not_calibrated(drawn: Drawn, mask_folder: Path) -> None:
    assert evaluate(drawn.folder, "test", _open(drawn, mask_folder)).calibration is None
    with pytest.raises(EvaluationError, match=r"--threshold auto[\s\S]*--calibrate"):
        evaluate(drawn.folder, "test", _open(drawn, mask_folder), "auto", options=EvaluationOptions(calibrate=True))


def test_lengths_are_in_millimetres_where_every_image_has_a_spacing(drawn: Drawn, mask_folder: Path) -> None:
    pixels = evaluate(drawn.folder, "test", _open(drawn, mask_folder))
    records = [replace(r, spacing=(0.2, 0.2), spacing_at="detector") for r in read_manifest(drawn.folder)]
    write_manifest(drawn.folder, records)
    found = evaluate(drawn.folder, "test", _open(drawn, mask_folder))
    assert (pixels.length_unit, found.length_unit) == ("px", "mm")
    assert found.summary["hd95"].mean == pytest.approx(0.2 * pixels.summary["hd95"].mean)
    assert any("5 of 5 images have the spacing at the detector" in warning for warning in found.warnings)
    some = [replace(r, spacing=None) if r.image == "test/case1.png" else r for r in read_manifest(drawn.folder)]
    write_manifest(drawn.folder, some)
    found = evaluate(drawn.folder, "test", _open(drawn, mask_folder))
    assert found.summary["hd95"] == pixels.summary["hd95"]
    assert any("1 of 5 images have no pixel spacing" in warning for warning in found.warnings)


def test_auto_refuses_the_split_it_searches(drawn: Drawn, probability_folder: Path) -> None:
    with pytest.raises(EvaluationError, match="tuned on themselves"):
        evaluate(drawn.folder, "val", _open(drawn, probability_folder), "auto")


def test_auto_needs_validation_images(drawn: Drawn, probability_folder: Path) -> None:
    drawn.resplit(val=[])
    with pytest.raises(EvaluationError, match=r"val split, which is empty[\s\S]*--split 0\.8"):
        evaluate(drawn.folder, "test", _open(drawn, probability_folder), "auto")


def test_auto_refuses_an_image_that_is_in_both_splits(drawn: Drawn, probability_folder: Path) -> None:
    drawn.resplit(val=["val/case0.png", "test/case2.png"])
    with pytest.raises(EvaluationError, match=r"test/case2\.png"):
        evaluate(drawn.folder, "test", _open(drawn, probability_folder), "auto")


def test_auto_refuses_masks(drawn: Drawn, mask_folder: Path) -> None:
    with pytest.raises(EvaluationError, match="holds masks"):
        evaluate(drawn.folder, "test", _open(drawn, mask_folder), "auto")


def test_an_empty_split_is_an_error(drawn: Drawn, mask_folder: Path) -> None:
    drawn.resplit(test=[])
    with pytest.raises(EvaluationError, match="is empty"):
        evaluate(drawn.folder, "test", _open(drawn, mask_folder))


def test_a_given_threshold_is_applied(drawn: Drawn, probability_folder: Path) -> None:
    source = _open(drawn, probability_folder)
    found = evaluate(drawn.folder, "test", source, 0.1)
    for item, record in zip(found.items, drawn.records("test")):
        values = np.load((probability_folder / record.image).with_suffix(".npy"))
        expected = image_metrics(values > np.float32(0.1), drawn.truth(record), values)
        assert item.metrics == pytest.approx(expected, nan_ok=True)
    assert found.summary["recall"].mean == 1.0
    assert found.summary["precision"].mean < 0.5


def test_batches_do_not_change_the_figures(drawn: Drawn, probability_folder: Path) -> None:
    source = _open(drawn, probability_folder)
    one, five = (evaluate(drawn.folder, "test", source, 0.4, batch=size) for size in (1, 5))
    assert one.items == five.items
    assert one.summary == five.summary


def test_empty_truth_and_empty_prediction(drawn: Drawn, mask_folder: Path) -> None:
    records = read_manifest(drawn.folder)
    empty = {"test/case0.png", "test/case1.png"}
    write_manifest(drawn.folder, [replace(r, regions=((),)) if r.image in empty else r for r in records])
    for name in ("test/case0.png", "test/case2.png"):
        Image.fromarray(np.zeros((72, 96), np.uint8)).save(mask_folder / name)
    found = evaluate(drawn.folder, "test", _open(drawn, mask_folder))
    dice = [item.metrics["dice"] for item in found.items]
    assert dice[:3] == [1.0, 0.0, 0.0]
    assert all(value > 0.6 for value in dice[3:])


def test_groups_shared_between_splits_are_reported(drawn: Drawn, mask_folder: Path) -> None:
    records = [replace(r, group="shared") if r.image.endswith("case0.png") else r for r in read_manifest(drawn.folder)]
    write_manifest(drawn.folder, records)
    warnings = evaluate(drawn.folder, "test", _open(drawn, mask_folder)).warnings
    assert any("are in both test and train" in warning for warning in warnings)
    assert any("are in both test and val" in warning for warning in warnings)


class _TwoPhrases:
    """Answers as a Predictor does: 0.9 in the left half for "left", in the right half for anything else."""

    threshold = 0.25

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def predict(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[object]:
        answers = []
        for image, listed in zip(images, phrases):
            self.asked.append(tuple(listed))
            values = np.zeros((len(listed), image.height, image.width), np.float32)
            for number, phrase in enumerate(listed):
                half = slice(0, image.width // 2) if phrase == "left" else slice(image.width // 2, None)
                values[number, :, half] = 0.9
            answers.append(type("Answer", (), {"probabilities": values}))
        return answers


def test_every_distinct_phrase_of_an_image_is_an_item(drawn: Drawn) -> None:
    left, right = [0.0, 0, 47, 0, 47, 71, 0, 71], [48.0, 0, 95, 0, 95, 71, 48, 71]
    objects = Record("test/case0.png", ((left,), (right,), (right,)), ("left", "right", "right"))
    nothing = Record("test/case1.png", (), ())
    others = [r for r in read_manifest(drawn.folder) if r.image not in (objects.image, nothing.image)]
    write_manifest(drawn.folder, [objects, nothing, *others])
    drawn.resplit(test=["test/case0.png", "test/case1.png"])
    predictor = _TwoPhrases()
    source = ModelSource(Path("model"), predictor, read_manifest(drawn.folder))  # type: ignore[arg-type]
    found = evaluate(drawn.folder, "test", source)
    assert predictor.asked == [("left", "right"), ("blood vessel",)]
    assert [(item.phrase, item.metrics["dice"]) for item in found.items] == [
        ("left", 1.0),
        ("right", 1.0),
        ("blood vessel", 0.0),
    ]
    assert found.threshold.value == 0.25
    assert found.threshold.origin == "stored with the model"
    case = next(predict_cases(found, source, [found.items[1]]))
    assert (case.truth == case.prediction).all()
    assert not case.truth[:, :48].any()


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="does not exist"):
        open_predictions(tmp_path / "nothing", [])
    (tmp_path / "weights.zip").write_bytes(b"")
    with pytest.raises(EvaluationError, match=r"ending in \.pth"):
        open_predictions(tmp_path / "weights.zip", [])


def _scored(name: str, dice: float) -> ItemResult:
    return ItemResult(name, "", name, 4, 4, 1, 1, {"dice": dice})


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 9, 20])
def test_cases_are_worst_median_best_and_never_twice(count: int) -> None:
    chosen = select_cases([_scored(f"{number:02}", number / 20) for number in reversed(range(count))])
    names = [item.image for items in chosen.values() for item in items]
    assert len(names) == len(set(names))
    assert chosen["worst"][0].image == "00"
    if count > 1:
        assert chosen["best"][0].image == f"{count - 1:02}"
    if count == 20:
        assert [item.image for item in chosen["median"]] == ["08", "09", "10"]
        assert [item.image for item in chosen["best"]] == ["19", "18", "17"]


def test_difference_colours() -> None:
    image = np.full((1, 4, 3), 200, np.uint8)
    prediction, truth = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    picture = difference(image, prediction, truth)
    assert picture[0].tolist() == [list(TRUE_POSITIVE), list(FALSE_POSITIVE), list(FALSE_NEGATIVE), [70, 70, 70]]


def test_output_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="half way"), whole_folder(out, False, "marker") as folder:
        (folder / "marker").write_text("new")
        raise RuntimeError("half way")
    assert list(tmp_path.iterdir()) == []
    with whole_folder(out, False, "marker") as folder:
        (folder / "marker").write_text("first")
    with pytest.raises(RuntimeError, match="half way"), whole_folder(out, True, "marker"):
        raise RuntimeError("half way")
    assert (out / "marker").read_text() == "first"
    with whole_folder(out, True, "marker") as folder:
        (folder / "marker").write_text("second")
    assert (out / "marker").read_text() == "second"
    assert list(tmp_path.iterdir()) == [out]


def test_force_never_deletes_a_folder_that_is_no_earlier_output(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="no earlier output"), whole_folder(tmp_path / "out", True, "marker"):
        pass
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_folder_source_counts_only_the_images_it_needs(drawn: Drawn, mask_folder: Path) -> None:
    """A folder that holds the test split alone is enough to report it."""
    for path in (mask_folder / "val").iterdir():
        path.unlink()
    source = FolderSource(mask_folder, read_manifest(drawn.folder))
    assert len(evaluate(drawn.folder, "test", source).items) == 5
    assert json.loads((drawn.folder / "splits.json").read_text())["val"]


@pytest.fixture
def checkpoint(tiny_base: Path, tmp_path: Path) -> Path:
    """A training checkpoint of the real classes, a megabyte, with random weights."""
    arguments = tiny.model_arguments(tiny_base)
    return tiny.save_checkpoint(tiny.shaken_model(tiny_base), tmp_path / "tiny.pth", arguments)


def test_the_base_of_a_checkpoint_may_have_moved(drawn: Drawn, tiny_base: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(tiny_base, here)
    path = tiny.save_checkpoint(tiny.shaken_model(here), tmp_path / "tiny.pth", tiny.model_arguments(here))
    here.rename(there)
    with pytest.raises(UserError, match="--base"):
        open_predictions(path, read_manifest(drawn.folder), LoadOptions("cpu"))
    source = open_predictions(path, read_manifest(drawn.folder), LoadOptions("cpu", base=str(there)))
    assert evaluate(drawn.folder, "test", source).items


@pytest.mark.slow
def test_a_checkpoint_goes_through_the_one_inference_path(drawn: Drawn, checkpoint: Path, tmp_path: Path) -> None:
    records = read_manifest(drawn.folder)
    source = open_predictions(checkpoint, records, LoadOptions("cpu"))
    found = evaluate(drawn.folder, "test", source, batch=2)
    assert found.kind == "model"
    assert found.threshold.value == 0.4
    assert found.curve is not None
    predictor = load_predictor(checkpoint, device="cpu")
    for item, record in zip(found.items, drawn.records("test")):
        with Image.open(image_path(drawn.folder, record)) as image:
            mask = predictor.predict([image], [["blood vessel"]])[0].masks[0]
        assert item.predicted_pixels == pytest.approx(mask.sum(), abs=2)
        assert item.phrase == "blood vessel"
    report = write_evaluation(found, source, tmp_path / "out")
    assert "one phrase of one image" in report.read_text(encoding="utf-8")
