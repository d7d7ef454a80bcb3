"""Every benchmark script runs at tiny shapes on the CPU; predict.py and train_step.py have files of their own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    cine,
    cine_memory_training,
    evaluate,
    load_memory,
    machine,
    plans,
    plot_training,
    serve,
    small_models,
    trainer_curves,
    vessel_head,
)
from benchmarks.shapes import SAM2_FILE, TINY, write_base
from tests import fork_server
from tests.samples import processor_of
from tests.service.running import RunningService
from tests.tiny import SAM2, shaken_model
from vesselseg.inference.load import load_predictor
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.checkpoints.write_published import write_published_folder
from vesselseg.models.sa2va_config import NEW_TOKENS
from vesselseg.models.sam2_grounding import build_sam2
from vesselseg.models.sam2_memory import memory_trained
from vesselseg.service.settings import ServiceSettings


@pytest.fixture(scope="module")
def model_folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in the published layout, its memory untrained."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = read_base_folder(tiny_base).tokenizer
    write_published_folder(shaken_model(tiny_base), tokenizer, folder, dtype=torch.float32, extra={})
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_cine_measures_every_way_on_drawn_runs_and_folders(model_folder: Path, tmp_path: Path) -> None:
    run = next(cine.drawn(1, 3, 96))
    for kind in ("annotated/a", "masks/a"):
        (tmp_path / kind).mkdir(parents=True)
    for number, frame in enumerate(run.frames):
        frame.save(tmp_path / "annotated" / "a" / f"{number}.png")
        frame.save(tmp_path / "masks" / "a" / f"{number}_mask.png")
    options = ["--runs", "1", "--frames", "3", "--size", "96", "--device", "cpu", "--untrained"]
    files = ["--folders", str(tmp_path), "--out", str(tmp_path / "cine.json"), "--strip", str(tmp_path / "strip.png")]
    cine.main([str(model_folder), *options, *files])
    found = read(tmp_path / "cine.json")
    assert not found["memory_trained"] and [row["way"] for row in found["rows"]] == list(cine.WAYS)
    assert [row["run"] for row in found["runs"]] == ["drawn 0"] * len(cine.WAYS) + ["a"] * len(cine.WAYS)
    assert all(row["real_dice"] is not None for row in found["rows"])
    assert (tmp_path / "strip.png").stat().st_size > 1000


@pytest.mark.process
@pytest.mark.slow
def test_cine_memory_training_writes_a_model_with_a_trained_memory(model_folder: Path, tmp_path: Path) -> None:
    sizes = ["--runs", "1", "--frames", "3", "--batch", "1", "--clip", "3", "--decoder-s", "0.1", "--memory-s", "0.1"]
    cine_memory_training.main([str(model_folder), "--out", str(tmp_path / "out"), *sizes])
    assert memory_trained(load_predictor(str(tmp_path / "out"), "cpu").grounding)
    assert set(read(tmp_path / "out" / "training.json")) == {"decoder", "memory"}


@pytest.mark.process
@pytest.mark.slow
def test_evaluate_times_masks_and_probabilities(tmp_path: Path) -> None:
    evaluate.main(["--images", "2", "--folder", str(tmp_path / "data"), "--out", str(tmp_path / "speed.json")])
    found = read(tmp_path / "speed.json")
    assert [row["predictions"] for row in found["rows"]] == list(evaluate.KINDS)
    assert all(row["wall_s"] > 0 and row["cpu_s"] > 0 and row["peak_rss_mib"] > 50 for row in found["rows"])
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_load_memory_measures_loading_and_writing(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", TINY)
    torch.save({"model": build_sam2(SAM2).state_dict()}, base / SAM2_FILE)
    found = load_memory.measure(base, SAM2)
    assert found["parameters"] > 1e5 and found["shards"] == 1
    assert found["load"]["peak_RssAnon_gib"] >= 0 and found["write"]["seconds"] >= 0
    written, read = (read_base_folder(folder).config.llm_config for folder in (base / "written", base))
    assert written == {**read, "vocab_size": read["vocab_size"] + len(NEW_TOKENS)}


@pytest.mark.slow
def test_machine_measures_its_ceiling() -> None:
    found = machine.measure()
    assert found["ceiling_tflops"] > 0 and found["torch"] == torch.__version__


def test_plot_training_draws_a_log(tmp_path: Path) -> None:
    losses = {"loss": 2.0, "loss_bce": 0.5, "loss_dice": 0.5, "loss_lm": 1.0}
    rows = [{"kind": "train", "iter": 1, **losses}, {"kind": "val", "iter": 1, "dice": 0.5, "iou": 0.4}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_training.main(tmp_path / "log.jsonl", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5_000


@pytest.mark.slow
def test_serve_measures_a_running_service(tiny_base: Path) -> None:
    model = shaken_model(tiny_base)
    predictor = Sa2VAPredictor(model, processor_of(model, tiny_base))
    with RunningService({"tiny": predictor}, ServiceSettings(port=0, rate=0)) as service:
        found = asyncio.run(serve.measure(service.url, serve.read_uploads(None, 2), clients=2, seconds=0.5))
    assert found["requests"] >= 2 and found["errors"] == {} and found["answers_of_others"] == 0
    assert found["latency_s"]["p50"] <= found["latency_s"]["max"] and found["queue_free_s_per_batch"] > 0
    assert found["targets"]["no_error"] and found["most_differing_pixels"] == 0


@pytest.mark.slow
def test_small_models_times_torch_and_both_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    small_models.main([str(tmp_path / "model"), "--size", "64", "--threads", "1", "--rounds", "1"])
    torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found["seconds_per_image"]) == {"torch", small_models.ONNX, small_models.ONNX_INT8}
    assert min(found["seconds_per_image"].values()) > 0


@pytest.mark.slow
def test_vessel_head_measures_every_row(tmp_path: Path) -> None:
    """Compiling is for GPUs; here these rows run eagerly."""
    vessel_head.main(["--out", str(tmp_path), "--images", "1", "--side", "256", "--rounds", "1"])
    rows = read(tmp_path / vessel_head.FILE)["rows"]
    assert [row["name"] for row in rows] == list(vessel_head.ROWS)
    assert [row for row in rows if "error" in row] == [] and all(row["ms_per_image"] > 0 for row in rows)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreters that a script starts have their imports already, see tests/fork_server."""
    monkeypatch.setattr(sys, "executable", fork_server.python())
    for name, value in fork_server.on_path(dict(os.environ)).items():
        monkeypatch.setenv(name, value)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_trainer_curves_of_both_ways_agree(tmp_path: Path) -> None:
    folders = ["--out", str(tmp_path / "out"), "--scratch", str(tmp_path / "scratch")]
    assert trainer_curves.main([*folders, "--iterations", "2"]) == 0
    found = read(tmp_path / "out" / "trainer_curves.json")
    assert [len(losses) for losses in found["losses"].values()] == [2, 2]
    assert found["largest_difference"] <= trainer_curves.TOLERANCE


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_plans_plan_a_row(tmp_path: Path) -> None:
    row = {"gpu": "H200", "config": "configs/tiny_cpu.py", "gpus": 1}
    found = plans.plan_of(row, {"model.sa2va.base": write_base(tmp_path / "base", TINY)})
    assert found["plan_message"] is None and 0 < found["planned_peak_gib"] <= found["planned_reserved_gib"] < 10
