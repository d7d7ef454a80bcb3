"""Reading masks and probabilities from files: every accepted form, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.prediction_folder import PredictionFolder

TRUTH = np.eye(6, 8, dtype=bool)
SIZE = {"a/one.jpg": (6, 8)}


def _png(folder: Path, image: Image.Image, name: str = "a/one.png") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return folder


def _npy(folder: Path, values: np.ndarray) -> Path:
    (folder / "a").mkdir(parents=True, exist_ok=True)
    np.save(folder / "a/one.npy", values)
    return folder


def _read(folder: Path) -> PredictionFolder:
    predictions = PredictionFolder(folder, SIZE)
    predictions.check(SIZE)
    return predictions


def _palette() -> Image.Image:
    palette = Image.frombytes("P", (8, 6), (TRUTH * np.uint8(3)).tobytes())
    palette.putpalette([0, 0, 0, 9, 9, 9, 8, 8, 8, 255, 0, 0])
    return palette


MASKS = {
    "1-bit": lambda f: _png(f, Image.fromarray(TRUTH)),
    "0 and 1": lambda f: _png(f, Image.fromarray(TRUTH.astype(np.uint8))),
    "0 and 255": lambda f: _png(f, Image.fromarray(TRUTH.astype(np.uint8) * 255)),
    "palette": lambda f: _png(f, _palette()),
    "grey RGB": lambda f: _png(f, Image.fromarray(TRUTH.astype(np.uint8) * 255).convert("RGB")),
    "bool npy": lambda f: _npy(f, TRUTH),
    "integer npy": lambda f: _npy(f, TRUTH.astype(np.int64)),
}


@pytest.mark.parametrize("form", MASKS)
def test_masks(tmp_path: Path, form: str) -> None:
    predictions = _read(MASKS[form](tmp_path))
    values = predictions.probabilities("a/one.jpg", (6, 8))
    assert values.dtype == np.float32
    assert not predictions.holds_probabilities
    assert (values == TRUTH.astype(np.float32)).all()


PROBABILITIES = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
MAPS = {
    "8-bit": (lambda f: _png(f, Image.fromarray((PROBABILITIES * 255).round().astype(np.uint8))), 1 / 255),
    "16-bit": (lambda f: _png(f, Image.fromarray((PROBABILITIES * 65535).round().astype(np.uint16))), 1 / 65535),
    "float32 npy": (lambda f: _npy(f, PROBABILITIES), 1e-7),
    "float64 npy": (lambda f: _npy(f, PROBABILITIES.astype(np.float64)), 1e-7),
    "float16 npy": (lambda f: _npy(f, PROBABILITIES.astype(np.float16)), 1e-3),
}


@pytest.mark.parametrize("form", MAPS)
def test_probabilities(tmp_path: Path, form: str) -> None:
    write, tolerance = MAPS[form]
    predictions = _read(write(tmp_path))
    assert predictions.holds_probabilities
    values = predictions.probabilities("a/one.jpg", (6, 8))
    assert values.dtype == np.float32
    assert np.abs(values - PROBABILITIES).max() <= tolerance


def test_a_dark_probability_map_is_no_mask_where_other_files_show_it(tmp_path: Path) -> None:
    """Values 0 and 1 of 255: alone a mask, beside a real probability map almost no probability."""
    dark = Image.fromarray(TRUTH.astype(np.uint8))
    _png(tmp_path, dark)
    _png(tmp_path, Image.fromarray((PROBABILITIES * 255).astype(np.uint8)), "a/two.png")
    sizes = {**SIZE, "a/two.jpg": (6, 8)}
    predictions = PredictionFolder(tmp_path, sizes)
    predictions.check(sizes)
    assert predictions.probabilities("a/one.jpg", (6, 8)).max() == pytest.approx(1 / 255)


def _problems(folder: Path, sizes: dict[str, tuple[int, int]]) -> str:
    with pytest.raises(EvaluationError) as caught:
        PredictionFolder(folder, sizes).check(sizes)
    return str(caught.value)


def test_missing_ones_are_all_counted_and_twenty_listed(tmp_path: Path) -> None:
    _png(tmp_path, Image.fromarray(TRUTH))
    message = _problems(tmp_path, {**SIZE, **{f"b/{number:02}.png": (6, 8) for number in range(25)}})
    assert "without a prediction: 25" in message
    assert "b/19.png: expected b/19 with a suffix of .png, .npy, .npz, .nii, .nii.gz, .tif, .tiff" in message
    assert "b/20.png" not in message
    assert "and 5 more" in message


def test_wrong_sizes_and_unreadable_files_are_listed_together(tmp_path: Path) -> None:
    _png(tmp_path, Image.fromarray(TRUTH.T.copy()))
    (tmp_path / "a/two.png").write_bytes(b"no image")
    (tmp_path / "a/three.npy").write_bytes(b"no array")
    np.save(tmp_path / "a/four.npy", np.full((6, 8), 7.5, np.float32))
    np.save(tmp_path / "a/five.npy", np.full((6, 8), np.nan, np.float32))
    colour = np.zeros((6, 8, 3), np.uint8)
    colour[0, 0] = (255, 0, 0)
    _png(tmp_path, Image.fromarray(colour), "a/six.png")
    names = ("one", "two", "three", "four", "five", "six")
    message = _problems(tmp_path, {f"a/{name}.jpg": (6, 8) for name in names})
    assert "unusable predictions: 6" in message
    assert "a/one.png: 8 x 6 (height x width), but a/one.jpg is 6 x 8" in message
    assert "a/two.png: not readable" in message
    assert "a/three.npy: not readable" in message
    assert "a/four.npy: values 7.5 to 7.5" in message
    assert "a/five.npy: values nan" in message
    assert "a/six.png: a colour image" in message


def test_files_that_match_no_single_image_are_refused(tmp_path: Path) -> None:
    _png(tmp_path, Image.fromarray(TRUTH))
    _npy(tmp_path, TRUTH)
    _png(tmp_path, Image.fromarray(TRUTH), "a/one_overlay.png")
    message = _problems(tmp_path, {**SIZE, "b/x.png": (6, 8), "b/x.jpg": (6, 8)})
    assert "a/one: two predictions, one.npy, one.png" in message
    assert "a/one_overlay.png: matches no image" in message
    assert "b/x: one prediction matches b/x.jpg, b/x.png" in message


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="contains no prediction"):
        PredictionFolder(tmp_path, SIZE)


def test_the_stored_threshold(tmp_path: Path) -> None:
    _npy(tmp_path, PROBABILITIES)
    assert _read(tmp_path).threshold == 0.5
    settings = tmp_path / "predictions.json"
    settings.write_text(json.dumps({"threshold": 0.35}))
    assert _read(tmp_path).threshold == 0.35
    for broken in ("{", '{"threshold": "high"}', "{}", "[]", '{"threshold": 7}'):
        settings.write_text(broken)
        with pytest.raises(EvaluationError, match="threshold"):
            _read(tmp_path)
