"""Synthetic angiograms: reproducible, valid LabelMe files, dark tapering vessels at the labels."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vesselseg.errors import UserError
from vesselseg.imaging.labelme import read_labelme
from vesselseg.imaging.rasterise import rasterise
from vesselseg.prepare.options import PrepareOptions
from vesselseg.prepare.prepare_dataset import prepare_dataset
from vesselseg.synthetic.angiograms import draw_angiogram, write_synthetic

COUNT = 12


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_synthetic(folder, COUNT, size=128, seed=7)
    return folder


def truth(path: Path) -> np.ndarray:
    labels = read_labelme(path)
    assert labels.size is not None
    return rasterise([shape.points.reshape(-1).tolist() for shape in labels.shapes], *labels.size) > 0


def test_the_same_seed_gives_the_same_files(drawn: Path, tmp_path: Path) -> None:
    write_synthetic(tmp_path / "again", COUNT, size=128, seed=7)
    write_synthetic(tmp_path / "other", COUNT, size=128, seed=8)
    for path in drawn.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert (drawn / "p000_f1.png").read_bytes() != (tmp_path / "other" / "p000_f1.png").read_bytes()


def test_a_longer_set_begins_with_the_shorter_one(drawn: Path, tmp_path: Path) -> None:
    write_synthetic(tmp_path, 4, size=128, seed=7)
    assert all(path.read_bytes() == (drawn / path.name).read_bytes() for path in tmp_path.iterdir())


def test_preparation_has_no_findings(drawn: Path, tmp_path: Path) -> None:
    options = PrepareOptions(group_regex=r"(p\d+)_", strict=True, quiet=True, workers=1)
    report = prepare_dataset(drawn, tmp_path / "o", options)
    assert report["counts"]["images"] == COUNT
    assert report["counts"]["groups"] == COUNT // 3
    assert report["sizes"] == {"128x128": COUNT}


def test_labelled_pixels_are_darker_than_their_surroundings(drawn: Path) -> None:
    for path in drawn.glob("*.json"):
        image = np.array(Image.open(path.with_suffix(".png"))).astype(float)
        mask = truth(path)
        near = rasterise([], 128, 128) > 0
        for shift in (-6, 6):
            near |= np.roll(mask, shift, 0) | np.roll(mask, shift, 1)
        assert image[mask].mean() < image[near & ~mask].mean() - 8, path.name
        assert 0.01 < mask.mean() < 0.12


def test_trees_branch_and_vessels_taper() -> None:
    for patient in range(5):
        _, tubes = draw_angiogram(256, 0, patient, 0)
        assert 3 <= len(tubes) <= 6
        assert tubes[0].width[:20].mean() > 1.8 * tubes[0].width[-20:].mean()
        assert 6 <= tubes[0].width.max() <= 13
        assert min(tube.width.min() for tube in tubes) >= 2.4


def test_frames_of_a_patient_are_similar_but_not_identical() -> None:
    first, second, other = (draw_angiogram(128, 0, patient, frame)[1] for patient, frame in ((0, 0), (0, 1), (1, 0)))
    moved = np.abs(first[0].centre - second[0].centre).max()
    assert 0.3 < moved < 128 * 0.1
    assert len(first[0].centre) != len(other[0].centre) or np.abs(first[0].centre - other[0].centre).max() > 5


def test_catheter_is_drawn_and_not_labelled(drawn: Path) -> None:
    """An unlabelled dark structure leads from an edge of the image to the tree."""
    unlabelled = 0
    for path in drawn.glob("*.json"):
        image = np.array(Image.open(path.with_suffix(".png"))).astype(float)
        vessels = image[truth(path)]
        unlabelled += int(((image < np.median(vessels)) & ~truth(path)).sum() > 20)
    assert unlabelled >= COUNT // 2


def test_files_have_the_fields_of_labelme_5(drawn: Path) -> None:
    content = json.loads((drawn / "p000_f1.json").read_text(encoding="utf-8"))
    assert set(content) == {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"}
    assert content["imagePath"] == "p000_f1.png"
    assert set(content["shapes"][0]) == {"label", "points", "group_id", "description", "shape_type", "flags", "mask"}


def noise_smoothed_and_written() -> None:
    """A reference workload similar to drawing one image, to normalise for the speed of the CPU."""
    noise = np.random.default_rng(0).normal(size=(256, 256))
    for _ in range(8):
        noise = np.exp(-np.abs(cv2.GaussianBlur(noise, (0, 0), 3)))
    cv2.imencode(".png", (255 * noise).astype(np.uint8))
    json.dumps([[round(float(value), 2) for value in row] for row in noise[::8]])


def seconds_of(work: Callable[[], object]) -> float:
    """CPU time of this thread only, independent of other load."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def test_fast_enough_for_a_demo(tmp_path: Path) -> None:
    """300 images in seconds: one takes 1.3 times the reference workload; the fastest of three rounds counts."""
    drawing, other = [], []
    for number in range(3):
        drawing.append(seconds_of(lambda folder=tmp_path / str(number): write_synthetic(folder, 5, size=256)))
        other.append(seconds_of(lambda: [noise_smoothed_and_written() for _ in range(5)]))
    assert min(drawing) < 6 * min(other)


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": 1, "size": 8}, {"count": 1, "frames": 0}])
def test_invalid_sets(tmp_path: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least"):
        write_synthetic(tmp_path, **arguments)
