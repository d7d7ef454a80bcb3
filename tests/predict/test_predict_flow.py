"""vesselseg predict across calls and batches: resuming, kills, concurrent calls, overlap of reading and predicting."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from tests.machine_speed import patience
from tests.predict.predict_calls import ALL, call, entries, forked, pixels, summary
from tests.tiny import model_arguments, picture, save_checkpoint, shaken_model
from vesselseg.inference.predictor import Predictor, Request
from vesselseg.predict import worker as module


def times(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (out / "masks").rglob("*.png")}


@pytest.mark.slow
def test_finished_files_are_skipped(
    model: Path, middle: float, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (images / "二/x.tif").write_bytes(b"")
    assert call(model, images, out, "--save", "masks,coco") == 1
    before, masks = times(out), len(COCO(out / "coco.json").imgs)
    assert call(model, images, out, "--save", "masks,coco") == 1
    assert "0 predicted, 5 finished before, 1 failed" in capsys.readouterr().out
    assert times(out) == before and len(COCO(out / "coco.json").imgs) == masks == 5
    picture(50).save(images / "二/x.tif")  # repaired
    picture(51).save(images / "frame 1.png")  # changed
    (out / "masks/patient ä/x.png").unlink()  # lost
    assert call(model, images, out, "--save", "masks,coco") == 0
    assert "3 predicted, 3 finished before, 0 failed" in capsys.readouterr().out
    assert call(model, images, out, "--save", "masks,coco", "--threshold", middle) == 0
    assert "6 predicted, 0 failed" in capsys.readouterr().out
    assert call(model, images, out, "--phrase", "catheter", "--phrase", "vessel") == 0
    assert len(times(out)) == 12 and not (out / "coco.json").exists()  # results of the earlier phrase are gone
    assert call(model, images, out, "--phrase", "catheter", "--phrase", "vessel", "--save", "overlay") == 0
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"overlays"}
    assert call(model, images, out, "--phrase", "catheter", "--phrase", "vessel", "--save", "masks") == 0
    assert "are not in this input" not in capsys.readouterr().out
    assert call(model, images / "frame 1.png", out, "--phrase", "catheter", "--phrase", "vessel") == 0
    assert "for 5 files that are not in this input" in capsys.readouterr().out and len(times(out)) == 12


@pytest.mark.slow
def test_another_model_predicts_again(model: Path, tiny_base: Path, images: Path, tmp_path: Path) -> None:
    other = save_checkpoint(shaken_model(tiny_base, seed=1), tmp_path / "other.pth", model_arguments(tiny_base))
    assert call(model, images / "x.jpg", tmp_path / "out") == 0
    first = entries(tmp_path / "out")["x.jpg"]
    assert call(other, images / "x.jpg", tmp_path / "out", "--base", tiny_base) == 0
    second = entries(tmp_path / "out")["x.jpg"]
    assert first["model"] != second["model"] and first["sha256"] == second["sha256"]


def test_an_interrupted_run_continues(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []
    run = Predictor.run

    def interrupted(self: Predictor, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, *arguments)

    monkeypatch.setattr(Predictor, "run", interrupted)
    assert call(model, images, tmp_path / "out", "--batch", 2) == 130
    assert summary(tmp_path / "out")["counts"] == {"done": 4, "failed": 0}
    assert call(model, images, tmp_path / "out", "--batch", 2) == 0
    assert "2 predicted, 4 finished before" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_run_continues(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    for number in range(20):
        picture(number % 3).save(source / f"{number:02}.png")
    process, state = forked(model, source, out, "--batch", 1, "--save", ALL, ends_at=8), out / "predictions.jsonl"
    process.join()
    assert process.exitcode == -signal.SIGKILL
    state.write_bytes(state.read_bytes()[:-20])  # a kill in the middle of a line
    (out / "masks/19.png.part").write_bytes(b"half")  # and in the middle of a result
    assert call(model, source, out, "--save", ALL) == 0
    assert "13 predicted, 7 finished before, 0 failed" in capsys.readouterr().out
    assert summary(out)["counts"] == {"done": 20, "failed": 0}
    assert len(COCO(out / "coco.json").imgs) == 20
    assert [path for path in out.rglob("*") if path.suffix == ".part"] == []


def test_two_calls_at_once(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(model, images / "x.jpg", tmp_path / "out") == 0
    held = os.open(tmp_path / "out", os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert call(model, images, tmp_path / "out") == 2
    finally:
        os.close(held)
    assert "another call is writing to it" in capsys.readouterr().err


def test_images_are_preprocessed_while_the_model_runs(
    model: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch returns only once the second one is preprocessed; results equal those of single images.

    The clock advances only while the first batch is in the model, by half a second.
    """
    (tmp_path / "in").mkdir()
    for number in range(6):
        picture(number).save(tmp_path / f"in/{number}.png")
    run, preprocessed = Predictor.run, module._PreprocessedImage
    ready, in_model, now = threading.Semaphore(0), list[int](), [0.0]

    class Counted(preprocessed):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            ready.release()

    def slow(self: Predictor, requests: list[Request], *arguments: Any) -> Any:
        in_model.append(len(requests))
        if len(in_model) == 1:
            assert all(ready.acquire(timeout=patience(60)) for _ in range(6))
            now[0] += 0.5
        return run(self, requests, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_PreprocessedImage", Counted)
        patched.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        patched.setattr(Predictor, "run", slow)
        assert call(model, tmp_path / "in", tmp_path / "out", "--batch", 3, "--save", "probs") == 0
    assert in_model == [3, 3]
    found = entries(tmp_path / "out")
    for number in range(6):
        expected = predictor.predict([picture(number)], [["blood vessel"]])[0].probabilities[0]
        np.testing.assert_allclose(pixels(tmp_path / f"out/probabilities/{number}.png") / 65535, expected, atol=1e-4)
    seconds = [found[f"{number}.png"]["seconds"] for number in range(6)]
    assert seconds == [pytest.approx(0.5 / 3, abs=1e-4)] * 3 + [0] * 3, "each image counts its share of its own batch"
