"""The benchmark of trainings: rows run one by one through tools/dist.sh and come back as figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from benchmarks.runs import TIME_LIMIT, failure, stop, train
from benchmarks.shapes import SIZES, padded_tokenizer, write_base
from benchmarks.table import figures, markdown, with_rates
from benchmarks.train_step import ROWS, choose, memory_cap, read_rows
from tests.fork_server import on_path, python
from tests.models.checkpoints.full_shapes import FAMILIES
from tests.training.conftest import write_data
from vesselseg.config.load import load_config
from vesselseg.errors import UserError
from vesselseg.models.checkpoints.base_folder import read_base_folder

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = {"loader.num_workers": 0, "model.sa2va.sam2.image_size": 64, "schedule.micro_batch": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def outcome(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """rows.json and rows.md of three rows, the second of which cannot run."""
    common = {"config": "configs/tiny_cpu.py", "shapes": "tiny", "steps": 15}
    rows = [
        {**common, "name": "alone", "overrides": SMALL, "checkpoint": True},
        {**common, "name": "broken", "overrides": {"schedule.micro_batch": 0}},
        {**common, "name": "two", "overrides": {**SMALL, "schedule.accumulation": 3}, "gpus": 2, "steps": 4},
    ]
    (folder / "rows.yaml").write_text(yaml.safe_dump({"group": rows}))
    command = [python(), str(REPOSITORY / "benchmarks" / "train_step.py"), "--out", str(folder / "out")]
    command += ["--file", str(folder / "rows.yaml"), "--data", str(write_data(folder / "data"))]
    environment = on_path({**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    done = subprocess.run(
        [*command, "--scratch", str(folder / "scratch"), "--no-plans"],
        env=environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out" / "rows.json").read_text()), (folder / "out" / "rows.md").read_text()


@pytest.mark.e2e
def test_each_row_gets_its_figures(outcome: tuple[list[dict[str, Any]], str]) -> None:
    alone, _, two = outcome[0]
    assert [row["status"] for row in outcome[0]] == ["ok", "failed", "ok"]
    for row, gpus in ((alone, 1), (two, 2)):
        assert 0 < row["init_peak_gib"] <= row["peak_allocated_gib"] < 10
        assert 0 < row["s_per_image"] < 5 and row["images_per_s"] == pytest.approx(gpus / row["s_per_image"])
        assert 0 <= row["data_wait_share"] < 1 and 0 < row["loss"] < 50 and row["ceiling_tflops"] > 0
        assert 0 < row["start_s"] < row["first_step_s"] < row["seconds"]
    assert (alone["iterations"], two["iterations"]) == (15, 12)  # two lines of whole accumulation groups
    assert 0 < alone["checkpoint_bytes"] < alone["resume_bytes"] and two["checkpoint_bytes"] is None
    assert [line["iter"] for line in alone["log"]] == [5, 10, 15]


@pytest.mark.e2e
def test_without_an_interval_a_training_writes_no_checkpoint_and_says_so(
    outcome: tuple[list[dict[str, Any]], str], folder: Path
) -> None:
    run = folder / "scratch" / "run"  # the last row's, which wants none
    assert "checkpoint.interval=None: no trained weights are kept" in (run / "console.txt").read_text()
    assert list(run.glob("*.pth")) + list(run.glob("*.resume")) == []


@pytest.mark.e2e
def test_a_row_that_cannot_run_says_why_and_stops_no_other(outcome: tuple[list[dict[str, Any]], str]) -> None:
    rows, table = outcome
    assert "schedule.micro_batch must be a whole number above 0" in rows[1]["message"]
    lines = table.splitlines()
    assert len(lines) == 5 and all(line.count("|") == lines[0].count("|") for line in lines)
    assert "**failed**" in lines[3] and "micro_batch must be" in lines[3]


def left(folder: Path) -> list[psutil.Process]:
    """Processes whose command names the folder."""
    return [one for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or [])]


@pytest.mark.process
def test_a_run_over_its_time_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import time\n\ntime.sleep(900)\n")
    outcome = train(tmp_path / "endless.py", 2, tmp_path / "run", {}, limit_s=1.5)
    assert outcome.status == TIME_LIMIT and outcome.seconds < 120
    assert left(tmp_path) == []


STARTS_OTHERS = """
import subprocess, sys
while True:
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)", sys.argv[1]], start_new_session=True)
"""


@pytest.mark.process
def test_what_a_process_starts_while_it_is_ended_is_ended_too(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", STARTS_OTHERS, str(tmp_path)])
    while len(left(tmp_path)) < 10:
        assert process.poll() is None
    stop(process)
    assert left(tmp_path) == []


def test_the_warm_up_is_left_out_and_kept_in_the_mean(tmp_path: Path) -> None:
    lines = [
        {"kind": "event", "event": "started", "seconds": 20.0, "memory_gib": 15.0, "memory_reserved_gib": 15.5},
        *(
            {"kind": "train", "iter": 5 * n, "iter_s": seconds, "data_s": 0.1, "loss": 9.0 - n}
            | {"memory_gib": 19.0 + n / 10, "memory_reserved_gib": 20.0}
            for n, seconds in enumerate((9.0, 1.0, 2.0, 4.0, 2.0, 2.2), start=1)
        ),
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    found = figures(tmp_path, micro_batch=4, gpus=4)
    assert found["s_per_image"] == pytest.approx(2.1 / 4) and found["images_per_s"] == pytest.approx(4 * 4 / 2.1)
    assert found["s_per_image_all_iterations"] == pytest.approx(20.2 / 6 / 4)
    assert (found["init_peak_gib"], found["peak_allocated_gib"], found["peak_reserved_gib"]) == (15.0, 19.6, 20.0)
    rated = with_rates({**found, "tflop_per_image": 21.0, "ceiling_tflops": 160.0, "planned_peak_gib": 20.58})
    assert rated["tflops_per_gpu"] == pytest.approx(40) and rated["percent_of_ceiling"] == pytest.approx(25)
    assert rated["planned_off_percent"] == pytest.approx(5)
    shown = markdown([{**rated, "name": "row", "gpus": 4, "gpu": "H", "status": "ok", "message": ""}])
    assert "40 (25 %)" in shown and "20.58 (+5 %)" in shown


@pytest.mark.parametrize("row", [row for rows in read_rows(ROWS).values() for row in rows], ids=lambda row: row.name)
def test_every_row_of_the_table_is_a_config_that_loads(row: Any) -> None:
    load_config(REPOSITORY / row.config, row.overrides)


def test_wrong_rows_and_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump({"a": [{"name": "x", "shapes": "8B", "step": 3}]}))
    with pytest.raises(UserError, match="steps"):
        read_rows(tmp_path / "rows.yaml")
    groups = read_rows(ROWS)
    assert len(choose(groups, ["four_gpus"], [])) == len(groups["four_gpus"])
    with pytest.raises(UserError, match="no such group or row"):
        choose(groups, ["one_gpu"], ["8B, ZeRO-3, 4 GPUs"])


def test_the_cap_never_exceeds_what_was_asked_for() -> None:
    h200 = 150_109_159_424
    share = float(memory_cap(23.0, h200)["PYTORCH_CUDA_ALLOC_CONF"].rpartition(":")[2])
    assert 22.9 < share * h200 / 2**30 <= 23.0
    assert memory_cap(23.0, None) == {} and memory_cap(None, h200) == {}
    assert memory_cap(200.0, h200) == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def test_what_a_failed_run_said_is_its_message() -> None:
    assert failure("12:00 starting\nerror: out of GPU memory; peak\n  torch says: x\n") == (
        "error: out of GPU memory; peak\n  torch says: x"
    )
    assert failure("a\n\nTraceback\nValueError: x\n").endswith("ValueError: x")


@pytest.mark.slow
def test_base_folders_have_the_published_shapes(tmp_path: Path) -> None:
    for size in ("8B", "26B"):
        family = FAMILIES[SIZES[size]]
        config = read_base_folder(write_base(tmp_path / size, size)).config
        assert config.new_token_start == family.vocabulary == config.llm_config["vocab_size"]
        assert config.text().num_hidden_layers == family.layers


def test_padding_words_never_appear_in_a_text() -> None:
    tokenizer = padded_tokenizer(2000)
    ids = tokenizer("<|im_start|>user\n<img><IMG_CONTEXT></img>\nfiller 1234, please")["input_ids"]
    assert len(tokenizer) == 2000 and tokenizer.decode(ids).endswith("filler 1234, please") and len(ids) > 10
