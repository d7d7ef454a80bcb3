"""Flips and post-processing give the same masks in the API, for files and for clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from PIL import Image

from tests.imaging.dicom_files import frames, write_dicom
from tests.predict.predict_calls import call, entries, pixels
from tests.tiny import picture
from vesselseg.errors import UserError
from vesselseg.inference.cine import segment_cine
from vesselseg.inference.post_processing import PostProcessing, fill_small_holes, remove_small_components
from vesselseg.inference.predictor import Predictor
from vesselseg.predict.options import PredictOptions

VESSEL = ["blood vessel"]
STEPS = PostProcessing(min_component=30, fill_holes=20)


def _mask(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def test_small_components_are_removed_and_corners_connect() -> None:
    mask = _mask("##...", "..#..", ".....", "#...#", "....#")
    assert (remove_small_components(mask, 3) == _mask("##...", "..#..", ".....", ".....", ".....")).all()
    assert (remove_small_components(mask, 2) == _mask("##...", "..#..", ".....", "....#", "....#")).all()
    assert not remove_small_components(mask, 9).any()
    full = np.ones((3, 3), bool)
    assert remove_small_components(full, 9).all()
    assert not remove_small_components(~full, 1).any()


def test_holes_are_enclosed_by_edges_and_not_by_the_border() -> None:
    mask = _mask(".#...", "#.###", "##.#.", "#####", "..#..")
    filled = fill_small_holes(mask, 1)
    assert (filled == _mask(".#...", "#####", "####.", "#####", "..#..")).all()
    ring = np.pad(np.pad(np.zeros((2, 3), bool), 1, constant_values=True), 2)
    assert (fill_small_holes(ring, 5) == ring).all()
    assert fill_small_holes(ring, 6).sum() == 20
    assert fill_small_holes(np.ones((2, 2), bool), 4).all()
    assert not fill_small_holes(np.zeros((2, 2), bool), 4).any()


def flipped_mean(predictor: Predictor, image: Image.Image, phrases: list[str]) -> np.ndarray:
    """The same mean, computed flip by flip with numpy."""
    pixels_of = np.asarray(image)
    total = np.zeros((len(phrases), image.height, image.width), np.float64)
    for axes in ((), (1,), (0,), (0, 1)):
        copy = Image.fromarray(np.ascontiguousarray(np.flip(pixels_of, axes)))
        found = predictor.predict([copy], [phrases])[0].probabilities
        total += np.flip(found, [1 + axis for axis in axes])
    return total / 4


def test_flips_are_the_mean_over_flipped_copies(predictor: Predictor) -> None:
    images = [picture(1), picture(2, 40, 90), picture(3, 64, 64)]
    phrases = [["blood vessel", "catheter"], [], VESSEL]
    found = predictor.predict(images, phrases, 0.45, flips=True)
    assert found[1].masks.shape == (0, 90, 40)
    for number in (0, 2):
        expected = flipped_mean(predictor, images[number], phrases[number])
        np.testing.assert_allclose(found[number].probabilities, expected, atol=1e-5)
        np.testing.assert_array_equal(found[number].masks, found[number].probabilities > 0.45)
        plain = predictor.predict([images[number]], [phrases[number]])[0].probabilities
        assert np.abs(plain - expected).max() > 1e-3, "flips change nothing here, so the test would prove nothing"


def test_requests_of_one_call_agree_on_flips(predictor: Predictor) -> None:
    requests = [predictor.preprocess([picture(1)], [VESSEL], flips) for flips in (True, False)]
    with pytest.raises(ValueError, match="some do not; run them in separate calls"):
        predictor.run(requests)


def test_steps_change_masks_and_keep_probabilities(predictor: Predictor, middle: float) -> None:
    prediction = predictor.predict([picture(0)], [["blood vessel", "catheter"]], middle)[0]
    refined = STEPS.apply_to(prediction)
    assert (refined.masks != prediction.masks).any() and refined.probabilities is prediction.probabilities
    for mask, before in zip(refined.masks, prediction.masks):
        np.testing.assert_array_equal(mask, STEPS.apply(before))
    assert PostProcessing().apply_to(prediction) is prediction
    nothing = predictor.predict([picture(0)], [[]])[0]
    assert STEPS.apply_to(nothing).masks.shape == (0, 120, 150)


def in_a_gap(values: np.ndarray) -> float:
    """A threshold in the widest gap of the middle values: a value that rounding moves across it may join components."""
    ordered = np.sort(values)[values.size // 4 : -values.size // 4]
    widest = int(np.argmax(np.diff(ordered)))
    assert ordered[widest + 1] - ordered[widest] > 2e-5, "rounding is about 1e-6"
    return float(ordered[widest] + ordered[widest + 1]) / 2


@pytest.mark.slow
def test_the_tool_writes_post_processed_masks_and_predicts_again_when_steps_change(
    model: Path, predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        picture(number, 90 + number, 70).save(tmp_path / f"in/{number}.png")
    expected = [flipped_mean(predictor, picture(number, 90 + number, 70), VESSEL)[0] for number in range(3)]
    middle = in_a_gap(np.concatenate(list(map(np.ravel, expected))))
    every = ("--threshold", middle, "--save", "masks,probs,labelme", "--batch", 2)
    steps = ("--min-component", 30, "--fill-holes", 20)
    for more, options, done in (
        ((), {}, "3 predicted,"),
        (("--tta", "flips", *steps), {"tta": "flips", "min_component": 30, "fill_holes": 20}, "3 predicted,"),
        (("--tta", "flips", *steps), {"tta": "flips", "min_component": 30, "fill_holes": 20}, "3 finished before"),
    ):
        assert call(model, tmp_path / "in", tmp_path / "out", *every, *more) == 0
        assert done in capsys.readouterr().out
        kept = entries(tmp_path / "out")["1.png"]["options"]
        assert {name: kept[name] for name in kept if name in ("tta", "min_component", "fill_holes")} == options
    for number in range(3):
        found = pixels(tmp_path / f"out/probabilities/{number}.png") / 65535
        np.testing.assert_allclose(found, expected[number], atol=1e-4)
        mask = pixels(tmp_path / f"out/masks/{number}.png") > 0
        np.testing.assert_array_equal(mask, STEPS.apply(expected[number] > middle))


@pytest.mark.slow
def test_frames_of_a_clip_are_post_processed_like_images(model: Path, middle: float, tmp_path: Path) -> None:
    uids = {"StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.9.1", "SOPInstanceUID": "1.2.9.1.1"}
    write_dicom(tmp_path / "in/clip.dcm", frames(3), **uids)
    common = ("--threshold", middle, "--save", "masks,dicom-seg")
    assert call(model, tmp_path / "in", tmp_path / "plain", *common) == 0
    assert call(model, tmp_path / "in", tmp_path / "out", *common, "--min-component", 30, "--fill-holes", 20) == 0
    changed = 0
    segmented = highdicom.seg.segread(tmp_path / "out/dicom-seg/clip.dcm").pixel_array.astype(bool)
    described = entries(tmp_path / "out")["clip.dcm"]["frames"]
    for number in range(3):
        before = pixels(tmp_path / f"plain/masks/clip/{number:05d}.png") > 0
        mask = pixels(tmp_path / f"out/masks/clip/{number:05d}.png") > 0
        np.testing.assert_array_equal(mask, STEPS.apply(before))
        np.testing.assert_array_equal(mask, segmented[number])
        assert described[number]["objects"][0]["pixels"] == mask.sum()
        changed += (mask != before).sum()
    assert changed > 0, "post-processing changes nothing here"


def test_frames_of_a_clip_and_flips(predictor: Predictor) -> None:
    pictures = [picture(number) for number in range(3)]
    found = list(segment_cine(predictor, pictures, VESSEL, batch=2, flips=True))
    for frame, prediction in zip(pictures, found):
        expected = predictor.predict([frame], [VESSEL], flips=True)[0]
        np.testing.assert_allclose(prediction.probabilities, expected.probabilities, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [lambda _: PredictOptions(("a",), cine="memory", tta="flips"), lambda p: memory_run(p)],
    ids=["tool", "API"],
)
def test_memory_and_flips_do_not_go_together(wrong: Any, predictor: Predictor) -> None:
    with pytest.raises(UserError, match="memory does not support flips"):
        wrong(predictor)


def memory_run(predictor: Predictor) -> Any:
    return segment_cine(predictor, [picture(0)], VESSEL, mode="memory", flips=True)
