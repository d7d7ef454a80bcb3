"""One run on two nodes of two processes, then on one process: killed, hanging, resumed, and the same in the end.

`srun` and `scontrol` stand for SLURM: they start the job's command once per node on this machine. Everything else, from
tools/slurm.sh on, is what runs on a cluster.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.machine_speed import patience
from tests.training.conftest import IMAGES, REPOSITORY, Training, environment, rows, write_data
from tests.training.nodes import free_port
from vesselseg.models.tiny_base import write_tiny_base

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
for ((node = 0; node < NNODES; node++)); do
    SLURM_NODEID=$node "$@" >"$NODES_OUT/node_$node.txt" 2>&1 &
    jobs[node]=$!
done
status=0
for job in "${jobs[@]}"; do wait "$job" || status=$?; done
exit $status
"""
SCONTROL = """#!/usr/bin/env bash
[[ "$*" == "show hostnames here,there" ]] && printf '127.0.0.1\\nthere\\n'
"""
# Steps of 4 images, however many processes share them; no dropout, so that all of them compute the same.
SETTINGS: dict[str, Any] = {"model__sa2va__lora__dropout": 0.0, "validation__interval": None}
OFFLOAD = {"device": "cpu", "pin_memory": False}
ZERO_3 = {f"strategy__zero_optimization__{key}": OFFLOAD for key in ("offload_optimizer", "offload_param")}
ZERO_3 |= {"strategy__zero_optimization__stage": 3}
LOST_AFTER = round(patience(8))
HOST = socket.gethostname()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, with the commands of a cluster in bin."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def training(folder: Path) -> Training:
    write_tiny_base(folder / "base", hidden_size=32, layers=1, tile_size=56, seed=0)
    return Training(write_data(folder / "data"), folder / "base", folder / "trace")


def submit(training: Training, folder: Path, work_dir: Path, processes: int, **options: Any) -> tuple[int, list[str]]:
    """tools/slurm.sh on two nodes; the exit status and what each node said."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "here,there"}
    job |= {"SLURM_SUBMIT_DIR": str(REPOSITORY), "SLURM_CPUS_PER_TASK": "1", "PORT": str(free_port())}
    own = environment()
    path = f"{folder / 'bin'}:{own['PATH']}"
    outcome = subprocess.run(
        ["bash", str(REPOSITORY / "tools" / "slurm.sh"), *training.arguments(work_dir, processes=processes, **options)],
        env={**own, **job, "PATH": path, "NODES_OUT": str(folder), "LOST_AFTER": str(LOST_AFTER)},
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
    )
    assert outcome.stderr == ""
    return outcome.returncode, [(folder / f"node_{node}.txt").read_text() for node in range(2)]


def seen(training: Training, work_dir: Path, iterations: int | None) -> list[tuple[str, str]]:
    """(epoch, image) that counted, by processes that did so many iterations; the trace is empty afterwards."""
    found = [tuple(line.split()[::2]) for lines in training.seen(work_dir) for line in lines[:iterations]]
    shutil.rmtree(training.trace / work_dir.name)
    return found  # type: ignore[return-value]


def test_a_run_that_is_killed_and_hangs_on_two_nodes_ends_as_if_nothing_had_been(
    training: Training, folder: Path
) -> None:
    whole, broken = folder / "whole", folder / "broken"
    outcome = training.run(whole, **SETTINGS)
    assert outcome.returncode == 0, outcome.stderr

    # Two nodes of one process, the second of which is killed in iteration 15.
    status, said = submit(training, folder, broken, 1, **SETTINGS, train_dataset__dies_after=14)
    killed_at = (training.trace / broken.name / "1.txt").stat().st_mtime  # its last image
    assert status == 128 + signal.SIGKILL and time.time() - killed_at < patience(120)
    for text in said:
        assert f"error: process 1 on node 1 ({HOST}) was ended by SIGKILL" in text
        assert "Traceback" not in text and "signal, shutting down" not in text
    images = seen(training, broken, 12)

    # Two nodes of two processes, the last of which stops in the third iteration, and hangs.
    more = {**SETTINGS, "schedule__accumulation": 1, "checkpoint__interval": 1}
    stopped = {"train_dataset__dies_after": 2, "train_dataset__dies_by": int(signal.SIGSTOP)}
    status, said = submit(training, folder, broken, 2, **more, **stopped)
    hung_at = (broken / "iter_14.resume").stat().st_ctime
    assert status == 128 + signal.SIGKILL and time.time() - hung_at < patience(120)
    for text in said:
        assert f"error: process 3 on node 1 ({HOST}) gave no heartbeat for {LOST_AFTER} s" in text
    assert (
        "4 process(es) x micro-batch 1 x accumulation 1 now, 2 process(es) x micro-batch 1 x accumulation 2" in said[0]
    )
    assert "continuing at image 24 of 36, 3 iterations and 3 optimizer steps are left" in said[0]
    images += seen(training, broken, 2)

    # One process to the end, with ZeRO-3 and everything on the CPU.
    outcome = training.run(broken, "--resume", "auto", processes=1, **SETTINGS, schedule__accumulation=4, **ZERO_3)
    assert outcome.returncode == 0, outcome.stderr
    images += seen(training, broken, None)

    expected = {(epoch, f"train_{number}.png"): 1 for epoch in "01" for number in range(IMAGES["train"])}
    assert Counter(images) == expected, "an image was missed or taken twice"
    check_logs(whole, broken)
    check_weights(whole, broken)


def check_logs(whole: Path, broken: Path) -> None:
    """Every iteration once, with the losses that its images had in the whole run."""
    expected, found = rows(whole, "train"), rows(broken, "train")
    assert [row["iter"] for row in found] == list(range(1, 19))
    losses = [row["loss"] for row in expected]
    per_step = [sum(losses[first : first + 2]) / 2 for first in range(0, 18, 2)]
    own = [row["loss"] for row in found]
    assert own[:12] == pytest.approx(losses[:12], rel=1e-6)
    assert own[12:14] == pytest.approx(per_step[6:8], rel=1e-4)
    assert sum(own[14:]) / 4 == pytest.approx(per_step[8], rel=1e-4)
    assert [row["lr"] for row in found if row["grad_norm"]] == pytest.approx(
        [row["lr"] for row in expected if row["grad_norm"]]
    )
    aside = [json.loads(line) for line in (broken / "log.cut_off.jsonl").read_text().splitlines()]
    assert {row["iter"] for row in aside} <= {13, 14, 15}
    assert [row["iter"] for row in rows(broken, "event") if row["event"] == "resumed"] == [12, 14]


def check_weights(whole: Path, broken: Path) -> None:
    """Float32 sums in another order differ in their last digits, nothing else does."""
    first, last = (
        torch.load(path, weights_only=True)["state_dict"] for path in (whole / "iter_16.pth", whole / "iter_18.pth")
    )
    found = torch.load(broken / "iter_18.pth", weights_only=True)["state_dict"]
    assert list(found) == list(last)
    moved = max(float((last[name] - first[name]).abs().max()) for name in last)
    differ = max(float((last[name] - found[name]).abs().max()) for name in last)
    assert differ < 1e-5 and moved > 20 * differ
