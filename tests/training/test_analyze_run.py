"""The analysis of training logs: logs in their exact formats -> figures that were worked out by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner

from tests.evaluation.drawn_data import REPOSITORY
from vesselseg.training.logs.analysis import analyse
from vesselseg.training.logs.find_logs import read_log
from vesselseg.training.logs.next_commands import next_commands
from vesselseg.training.logs.report import analyse_runs, as_dict, run_names, summary_lines
from vesselseg.training.run_log import RunLog

ARCHIVE = REPOSITORY / "docs/results/scratch_archive"
LONG_AFTER = 4e9  # seconds since 1970 at which every run of these tests has been quiet for years

XTUNER = """\
2025/07/01 11:58:02 - mmengine - INFO - Config:
accumulative_counts = 4
max_epochs = 3
optim_type = 'torch.optim.AdamW'
2025/07/01 12:00:00 - mmengine - INFO - Iter(train) [  10/3672]  lr: 2.0000e-06  eta: 16:20:33  time: 16.2041  \
data_time: 0.0126  memory: 22203  loss: 3.2101  loss_mask: 0.9000  loss_dice: 0.4500  llm_loss: 1.8601
2025/07/01 12:02:42 - mmengine - INFO - Iter(train) [  20/3672]  base_lr: 4.0000e-06 lr: 4.0000e-06  \
eta: 1 day, 2:20:33  time: 8.2041  data_time: 4.1000  memory: 22528  grad_norm: 0.8712  loss: nan  loss_mask: 0.8000  \
loss_dice: 0.4000  llm_loss: nan
2025/07/01 12:02:43 - mmengine - INFO - Saving checkpoint at 20 iterations
"""
MMSEG = """\
2025/07/01 12:00:00 - mmengine - INFO - Epoch(train)  [1][ 50/100]  lr: 1.0000e-02  eta: 0:01:00  time: 0.5000  \
data_time: 0.0500  memory: 1024  loss: 0.8000  decode.loss_ce: 0.8000
2025/07/01 12:01:00 - mmengine - INFO - Epoch(train)  [1][100/100]  lr: 1.0000e-02  eta: 0:00:30  time: 0.5000  \
data_time: 0.0500  memory: 1024  loss: 0.6000  decode.loss_ce: 0.6000
2025/07/01 12:01:10 - mmengine - INFO - Epoch(val)  [1][20/20]    aAcc: 97.1000  mDice: 61.5000  data_time: 0.0100  \
time: 0.2000
2025/07/01 12:02:00 - mmengine - INFO - Epoch(train)  [2][ 50/100]  lr: 1.0000e-03  eta: 0:00:15  time: 0.7000  \
data_time: 0.0500  memory: 1024  loss: 0.4000  decode.loss_ce: 0.4000
"""


def row(iteration: int, **values: Any) -> dict[str, Any]:
    parts = {"loss_bce": 0.2, "loss_dice": 0.1, "loss_lm": 0.1}
    standard = {"epoch": iteration / 20, "loss": 0.4, **parts, "lr": 1e-4, "grad_norm": 1.0, "images_per_s": 8.0}
    times = {"iter_s": 0.5, "data_s": 0.01, "memory_gib": 16.7, "memory_reserved_gib": 19.2, "eta_s": 500}
    return {"kind": "train", "iter": iteration, **standard, **times, **values}


def val(iteration: int, dice: float, **values: Any) -> dict[str, Any]:
    return {"kind": "val", "iter": iteration, "dice": dice, "iou": dice / 2, "threshold": 0.3, "seconds": 1.0, **values}


def write_run(folder: Path, rows: list[dict[str, Any]], config: str = "") -> Path:
    """A work folder whose log was written by the class that trainings write it with."""
    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder / "log.jsonl", active=True)
    for one in rows:
        log.write(**one)
    if config:
        (folder / "config.py").write_text(config)
    return folder


def write_mmengine(folder: Path, stamp: str, text: str = "", scalars: list[dict[str, Any]] | None = None) -> None:
    (folder / stamp / "vis_data").mkdir(parents=True)
    if text:
        (folder / stamp / f"{stamp}.log").write_text(text)
    if scalars:
        (folder / stamp / "vis_data/scalars.json").write_text("".join(json.dumps(one) + "\n" for one in scalars))


def test_means_of_the_table_weigh_iterations(tmp_path: Path) -> None:
    rows = [
        row(5, loss=1.0),
        row(20, loss=2.0, grad_norm=3.0),
        row(40, loss=0.5, lr=5e-5, memory_gib=17.5),
        val(40, 0.6),
    ]
    run = analyse("x", tmp_path, read_log(write_run(tmp_path, rows)))
    assert run.unit == "Epoch"
    assert [block.label for block in run.blocks] == ["1", "2"]
    assert [(block.first, block.last) for block in run.blocks] == [(1, 20), (21, 40)]
    assert run.blocks[0].losses["loss"] == pytest.approx((5 * 1.0 + 15 * 2.0) / 20)
    assert run.blocks[0].grad_norm == 3.0
    assert run.blocks[0].dice is None
    second = run.blocks[1]
    assert (second.lr, second.memory_gib, second.memory_reserved_gib) == (5e-5, 17.5, 19.2)
    assert (second.dice, second.threshold, second.images_per_s) == (0.6, 0.3, 8.0)


def test_many_epochs_share_a_row(tmp_path: Path) -> None:
    rows = [row(100 * number, epoch=22.857 * number) for number in range(1, 24)]
    run = analyse("x", tmp_path, read_log(write_run(tmp_path, rows)))
    assert len(run.blocks) <= 25
    assert [block.label for block in run.blocks[:2]] == ["1-23", "24-46"]
    assert run.blocks[-1].last == 2300


@pytest.mark.parametrize(
    ("rows", "now", "expected"),
    [
        ([row(20, eta_s=0)], LONG_AFTER, "finished"),
        ([row(20)], LONG_AFTER, "stopped"),
        ([row(20)], 1e9 + 100, "running"),
        ([row(20, iter_s=60.0), row(40, iter_s=60.0)], 1e9 + 5000, "running"),  # a row every 20 minutes
        ([row(20, iter_s=60.0), row(40, iter_s=60.0)], 1e9 + 7000, "stopped"),
        ([{"kind": "event", "event": "started", "iter": 0, "seconds": 3.0}], 1e9 + 100, "running"),
    ],
)
def test_running_and_crashed_runs_are_distinguished(
    tmp_path: Path, rows: list[dict[str, Any]], now: float, expected: str
) -> None:
    write_run(tmp_path, rows)
    os.utime(tmp_path / "log.jsonl", (1e9, 1e9))
    assert read_log(tmp_path).state(now) == expected


def test_the_length_of_a_run_comes_from_the_console_log(tmp_path: Path) -> None:
    write_run(tmp_path, [row(20, eta_s=0)])
    (tmp_path / "train.log").write_text(
        "2020-01-05 10:00:00  20 iterations per epoch, 60 in all, 60 optimizer steps (3 of warm-up)\n"
        "2020-01-05 10:00:10  iter    20/60  epoch 1.00  loss 0.4000 (bce 0.2000)  lr 1.00e-04\n"
    )
    log = read_log(tmp_path)
    assert log.planned == 60
    assert log.state(LONG_AFTER) == "stopped"
    assert log.last_sign < (tmp_path / "train.log").stat().st_mtime  # a copy is newer than its last line


def test_overfitting_is_seen_and_only_then(tmp_path: Path) -> None:
    config = "data_root = 'data/mine'\nmodel = dict(loss=dict(bce=2.0, dice=0.5, lm=1.0), sa2va=dict(lora=dict()))\n"
    falling = [row(20, loss=1.0, loss_dice=0.2), val(20, 0.65), row(40, loss=0.5, loss_dice=0.05), val(40, 0.60)]
    run = analyse("x", tmp_path, read_log(write_run(tmp_path / "a", falling, config)))
    assert run.gaps == [(20, pytest.approx(1 - 0.4 - 0.65)), (40, pytest.approx(1 - 0.1 - 0.60))]
    assert "fell by 0.0500 (0.6500 at iteration 20, 0.6000 at 40)" in run.overfitting[0]
    assert "from 1.0000 to 0.5000" in run.overfitting[0]
    assert "training Dice is 0.3000 above validation Dice; it was -0.0500 at iteration 20" in run.overfitting[1]
    rising_loss = [falling[0], falling[1], row(40, loss=1.5, loss_dice=0.2), val(40, 0.60)]
    assert analyse("x", tmp_path, read_log(write_run(tmp_path / "b", rising_loss, config))).overfitting == []
    without_weight = analyse("x", tmp_path, read_log(write_run(tmp_path / "c", falling)))
    assert without_weight.gaps == [] and len(without_weight.overfitting) == 1


def test_a_resumed_run_with_skips_and_an_unfinished_line(tmp_path: Path) -> None:
    lost = {"kind": "event", "event": "skipped", "iter": 33, "skipped": 1}
    processes = [{"rank": 0, "images": ["a/1.png"], "losses": {}}, {"rank": 1, "images": ["b/2.png"], "losses": {}}]
    write_run(tmp_path, [row(20), row(40), row(60)])
    log = RunLog(tmp_path / "log.jsonl", active=True)
    log.cut_after(20)
    log.write("event", event="resumed", iter=20, folder="iter_20.resume")
    for one in ({**lost, "processes": processes}, {"kind": "event", "event": "step_left_out", "iter": 35}, row(40)):
        log.write(**one)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "iter": 60, "lo')
    run = analyse("x", tmp_path, read_log(tmp_path))
    assert [one["iter"] for one in run.log.train] == [20, 40]
    assert (run.log.cut_off, run.log.unreadable) == (2, 1)
    text = "\n".join(run.findings)
    assert "1 iteration(s) skipped, their loss was not finite: iteration 33; images: a/1.png, b/2.png" in text
    assert "1 optimizer step(s) skipped" in text and "resumed 1 time(s): iteration 20" in text
    assert [block.skipped for block in run.blocks] == [0, 2]


def test_checkpoints_and_the_commands_that_come_next(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "my run",
        [row(20), val(20, 0.5), row(40), val(40, 0.6), row(60), val(60, 0.55)],
        "data_root = 'data/m'",
    )
    for name, size in (("best.pth", 2_000_000), ("iter_40.pth", 10), ("iter_60.pth", 10)):
        (folder / name).write_bytes(b"0" * size)
    (folder / "iter_60.resume").mkdir()
    run = analyse("x", folder, read_log(folder), LONG_AFTER)
    found = [(Path(one.path).name, one.iteration, one.dice, one.best, one.resumable) for one in run.checkpoints]
    assert found == [
        ("best.pth", 40, 0.6, True, False),
        ("iter_40.pth", 40, 0.6, False, False),
        ("iter_60.pth", 60, 0.55, False, True),
    ]
    assert run.checkpoints[0].megabytes == pytest.approx(2.0)
    assert [command for _, command in next_commands(run)] == [
        f"vesselseg train '{folder}/config.py' GPUS --out '{folder}' --resume auto",
        f"vesselseg convert '{folder}/config.py' '{folder}/best.pth' --out '{folder}/hf'",
        f"vesselseg eval '{folder}/hf' --data data/m --split test --threshold auto --out '{folder}/eval'",
    ]


def test_the_text_log_of_xtuner(tmp_path: Path) -> None:
    write_mmengine(tmp_path, "20250701_120000", XTUNER)
    log = read_log(tmp_path)
    assert (log.kind, log.planned, log.last_iteration, log.state()) == ("mmengine", 3672, 20, "stopped")
    first, second = log.train
    assert first == {
        **{"iter": 10, "lr": 2e-6, "iter_s": 16.2041, "data_s": 0.0126, "memory_gib": round(22203 / 1024, 3)},
        **{"loss": 3.2101, "loss_mask": 0.9, "loss_dice": 0.45, "llm_loss": 1.8601, "epoch": round(10 / 1224, 4)},
    }
    assert (second["lr"], second["grad_norm"], second["memory_gib"]) == (4e-6, 0.8712, 22.0)
    run = analyse("x", tmp_path, log)
    assert run.blocks[0].losses["loss"] == pytest.approx(3.2101)  # nan is excluded from the mean, and reported
    text = "\n".join(run.findings)
    assert "logged loss(es) are nan or inf: iteration 20" in text
    assert "17% of the time is spent waiting for data" in text  # (0.0126 + 4.1) / (16.2041 + 8.2041)


def test_scalars_go_before_the_rounded_text_and_a_second_start_replaces_rows(tmp_path: Path) -> None:
    common = {"data_time": 0.01, "time": 1.0, "memory": 2048, "lr": 1e-5}
    first = [{**common, "loss": 3.21009, "iter": 10, "step": 10}, {**common, "loss": 2.9, "iter": 20, "step": 20}]
    second = [
        {**common, "loss": 2.8, "iter": 20, "step": 20},
        {"dice": 0.61, "time": 0.1, "data_time": 0.1, "step": 20},
    ]
    write_mmengine(tmp_path, "20250701_120000", XTUNER, first)
    write_mmengine(tmp_path, "20250702_080000", scalars=second)
    log = read_log(tmp_path)
    assert [(one["iter"], one["loss"]) for one in log.train] == [(10, 3.21009), (20, 2.8)]
    assert (log.cut_off, log.planned) == (1, 3672)
    assert [(one["iter"], one["dice"]) for one in log.validations] == [(20, 0.61)]


class Linear(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs: torch.Tensor, mode: str = "tensor") -> Any:
        error = (self.layer(inputs) ** 2).mean()
        return {"loss_dice": error, "loss_mask": 2 * error} if mode == "loss" else [error]


class Always(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0.625)

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return {"dice": sum(results) / len(results)}


def run_mmengine(work_dir: Path) -> None:
    """8 iterations of mmengine's own loops, with a line every 2 and a validation every 4."""
    images = [{"inputs": torch.ones(1)}] * 8
    data = {"dataset": images, "sampler": {"type": "DefaultSampler"}, "batch_size": 1, "num_workers": 0}
    Runner(
        model=Linear(),
        work_dir=str(work_dir),
        train_dataloader={**data, "collate_fn": {"type": "default_collate"}},
        val_dataloader={**data, "collate_fn": {"type": "default_collate"}},
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": 8, "val_interval": 4},
        val_cfg={"type": "ValLoop"},
        val_evaluator=[Always()],
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
        default_hooks={
            "logger": {"type": "LoggerHook", "interval": 2, "log_metric_by_epoch": False},
            "checkpoint": {"type": "CheckpointHook", "interval": 4, "by_epoch": False},
        },
        log_processor={"type": "LogProcessor", "by_epoch": False, "window_size": 1},
        visualizer={"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
        default_scope="mmengine",
        experiment_name=work_dir.name,
    ).train()


def test_a_run_of_mmengine_itself(tmp_path: Path) -> None:
    run_mmengine(tmp_path / "run")
    exact = read_log(tmp_path / "run")
    rounded = read_log(next((tmp_path / "run").glob("*/*.log")))
    for log in (exact, rounded):
        assert (log.planned, log.state(), log.unreadable) == (8, "finished", 0)
        assert [one["iter"] for one in log.train] == [2, 4, 6, 8]
        assert [(one["iter"], one["dice"]) for one in log.validations] == [(4, 0.625), (8, 0.625)]
        assert all(one["lr"] == 0.01 and one["iter_s"] >= one["data_s"] >= 0 for one in log.train)
    for full, text in zip(exact.train, rounded.train):
        assert full["loss"] == pytest.approx(full["loss_dice"] + full["loss_mask"])
        assert text["loss"] == pytest.approx(full["loss"], abs=6e-5)
    files = analyse("x", tmp_path / "run", exact).checkpoints
    assert [(one.iteration, one.dice) for one in files] == [(4, 0.625), (8, 0.625)]


def test_facts_of_an_xtuner_config_and_a_deepspeed_checkpoint(tmp_path: Path) -> None:
    write_mmengine(
        tmp_path, "20250701_120000", scalars=[{"loss": 1.0, "loss_dice": 0.2, "iter": 20}, {"dice": 0.5, "step": 20}]
    )
    (tmp_path / "sa2va.py").write_text(
        "import missing_package\nmax_epochs = 4\n"
        "model = dict(loss_mask=dict(loss_weight=2.0), loss_dice=dict(eps=1.0, loss_weight=0.5, naive_dice=True))\n"
    )
    (tmp_path / "iter_20.pth").mkdir()
    (tmp_path / "iter_20.pth/mp_rank_00_model_states.pt").write_bytes(b"0" * 3_000_000)
    run = analyse("x", tmp_path, read_log(tmp_path))
    assert run.gaps == [(20, pytest.approx(1 - 0.2 / 0.5 - 0.5))]
    assert [(one.iteration, one.megabytes, one.dice) for one in run.checkpoints] == [(20, pytest.approx(3.0), 0.5)]
    assert [command for _, command in next_commands(run)[:2]] == [
        f"python {tmp_path}/zero_to_fp32.py {tmp_path} {tmp_path}/iter_20_float32 --tag iter_20.pth",
        f"vesselseg convert CONFIG WEIGHTS --out {tmp_path}/hf",
    ]


def test_scalars_alone_do_not_contain_the_end(tmp_path: Path) -> None:
    write_mmengine(tmp_path, "20250701_120000", scalars=[{"loss": 1.0, "iter": 10, "step": 10}])
    log = read_log(tmp_path)
    assert (log.planned, log.state(), log.state(LONG_AFTER)) == (None, "running", "ended")
    run = analyse("x", tmp_path, log, LONG_AFTER)
    assert (run.unit, run.blocks[0].label) == ("Iterations", "1-10")


def test_epochs_of_an_epoch_based_log(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(MMSEG)
    log = read_log(tmp_path / "run.log")
    assert [(one["iter"], one["epoch"]) for one in log.train] == [(50, 0.5), (100, 1.0), (150, 1.5)]
    assert [(one["iter"], one["dice"]) for one in log.validations] == [(100, pytest.approx(0.615))]
    blocks = analyse("x", tmp_path, log).blocks
    assert [(block.label, block.losses["loss"], block.dice) for block in blocks] == [
        ("1", pytest.approx(0.7), pytest.approx(0.615)),
        ("2", pytest.approx(0.4), None),
    ]
    scalars = [
        {"loss": 0.8, "epoch": 1, "iter": 100, "step": 100},
        {"mDice": 61.5, "step": 1},
        {"loss": 0.4, "epoch": 2, "iter": 200, "step": 200},
        {"mDice": 70.0, "step": 2},
    ]
    write_mmengine(tmp_path / "folder", "20250701_120000", MMSEG.split("2025/07/01 12:01:00")[0], scalars)
    found = read_log(tmp_path / "folder").validations
    assert [(one["iter"], one["dice"]) for one in found] == [(100, pytest.approx(0.615)), (200, pytest.approx(0.7))]


def test_names_distinguish_runs(tmp_path: Path) -> None:
    assert run_names([tmp_path / "a/run", tmp_path / "b/run"]) == ["a/run", "b/run"]
    assert run_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_a_run_before_its_first_row(tmp_path: Path) -> None:
    write_run(tmp_path, [{"kind": "event", "event": "started", "iter": 0, "seconds": 3.0}])
    run = analyse_runs([tmp_path])[0]
    assert summary_lines(run)[0].endswith(": running, iteration 0")
    assert as_dict([run])["runs"][0]["table"] == []
