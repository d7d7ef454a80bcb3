"""vesselseg predict when memory runs out, on a GPU or CPU: single images, then alone, then the file is listed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.imaging.dicom_files import frames, write_dicom
from tests.predict.predict_calls import call, entries
from tests.tiny import picture
from vesselseg.inference.predictor import Predictor, Request
from vesselseg.predict import worker as module
from vesselseg.predict.result_files import ResultWriter

TOO_LARGE = "does not fit into memory, not even alone"
LARGEST = "二/x.tif"


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def in_torch() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def in_numpy() -> None:
    np.empty(2**60, np.uint8)


@pytest.mark.parametrize("allocate", [on_a_gpu, in_torch])
def test_a_batch_too_large_is_split(
    allocate: Callable[[], None], model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess, run = Predictor.preprocess, Predictor.run
    batches, preprocessed = list[int](), list[tuple[int, int]]()

    def recorded(self: Predictor, images: list[Image.Image], *arguments: Any) -> Request:
        preprocessed.extend(image.size for image in images)
        return preprocess(self, images, *arguments)

    def limited(self: Predictor, requests: list[Request], *arguments: Any) -> Any:
        batches.append(len(requests))
        if len(requests) > 1 or requests[0].sizes[0][0] > 180:
            allocate()
        return run(self, requests, *arguments)

    monkeypatch.setattr(Predictor, "preprocess", recorded)
    monkeypatch.setattr(Predictor, "run", limited)
    assert call(model, images, tmp_path / "out", "--batch", 4) == 1
    failed = {name: entry["error"] for name, entry in entries(tmp_path / "out").items() if "error" in entry}
    assert failed == {LARGEST: TOO_LARGE} and batches == [4, 1, 1, 1, 1, 2, 1, 1, 1]
    assert len(set(preprocessed)) == 6, "images are preprocessed once, also those of a batch that did not fit"
    assert preprocessed[6:] == [(190, 95)], "except the one that is tried again at the end"


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("owner", "step"), [(Predictor, "preprocess"), (ResultWriter, "write")])
def test_main_memory_that_runs_out_next_to_other_work(
    owner: type, step: str, times: int, model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a file is read or written: once, next to others; twice, alone as well."""
    made, tried = getattr(owner, step), itertools.count(1)

    def crowded(self: Any, *arguments: Any) -> Any:
        given = [arguments[1]] if step == "write" else arguments[0]
        if given[0].width > 180 and next(tried) <= times:
            in_numpy()
        return made(self, *arguments)

    monkeypatch.setattr(owner, step, crowded)
    assert call(model, images, tmp_path / "out", "--batch", 2) == times - 1
    failed = {name: entry["error"] for name, entry in entries(tmp_path / "out").items() if "error" in entry}
    assert failed == ({} if times == 1 else {LARGEST: TOO_LARGE})
    assert len(entries(tmp_path / "out")) == 6


def test_a_clip_that_does_not_fit_is_listed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dicom(tmp_path / "in/run.dcm", frames(3))
    picture(0).save(tmp_path / "in/z.png")
    tried, stream = list[int](), module.segment_cine

    def full(*arguments: Any) -> Any:
        tried.append(arguments[6])
        if len(tried) < 5:
            in_torch()
        return stream(*arguments)

    monkeypatch.setattr(module, "segment_cine", full)
    assert call(model, tmp_path / "in", tmp_path / "out", "--batch", 2) == 1
    assert f"run.dcm: {TOO_LARGE}" in capsys.readouterr().err and tried == [2, 1, 2, 1]
    assert call(model, tmp_path / "in", tmp_path / "out", "--batch", 2) == 0
    assert len(list((tmp_path / "out/masks/run").glob("*.png"))) == 3


def test_defects_are_not_taken_for_lack_of_memory(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(ResultWriter, "write", broken)
    with pytest.raises(RuntimeError, match="do not match"):
        call(model, images, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("phrases", "expected"), [(1, [2, 2, 2, 1]), (2, [1] * 7)])
def test_a_batch_holds_no_more_than_its_pixels(
    phrases: int, expected: list[int], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory stays constant: large images are predicted one by one, and each phrase counts as a map."""
    (tmp_path / "in").mkdir()
    for number in range(7):
        picture(number).save(tmp_path / f"in/{number}.png")
    sizes: list[int] = []
    run = Predictor.run

    def counted(self: Predictor, requests: list[Request], *arguments: Any) -> Any:
        sizes.append(len(requests))
        return run(self, requests, *arguments)

    monkeypatch.setattr(Predictor, "run", counted)
    words = [word for number in range(phrases) for word in ("--phrase", f"vessel {number}")]
    assert call(model, tmp_path / "in", tmp_path / "out", "--batch", 3, *words) == 0
    assert sizes == [3, 3, 1]
    monkeypatch.setattr(module, "BATCH_PIXELS", 2 * 150 * 120)
    sizes.clear()
    assert call(model, tmp_path / "in", tmp_path / "other", "--batch", 3, *words) == 0
    assert sizes == expected
