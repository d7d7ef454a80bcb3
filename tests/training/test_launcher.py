"""tools/dist.sh and the launcher: what they refuse, what they hand on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.fork_server import python
from tests.machine_speed import patience
from vesselseg.errors import UserError
from vesselseg.training import launcher

REPOSITORY = Path(__file__).resolve().parents[2]


def dist(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(REPOSITORY / "tools" / "dist.sh"), *arguments]
    return subprocess.run(command, text=True, capture_output=True, check=False)


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "no command given"),
        (("trian", "x.py", "1"), "unknown command 'trian'"),
        (("train", "configs/tiny_cpu.py"), "train takes CONFIG and GPUS"),
        (("train", "configs/nothing.py", "1"), "configs/nothing.py does not exist"),
        (("train", str(REPOSITORY / "configs" / "tiny_cpu.py"), "two"), "GPUS must be a whole number, found 'two'"),
    ],
)
def test_invalid_calls_print_the_usage(arguments: tuple[str, ...], expected: str) -> None:
    outcome = dist(*arguments)
    assert outcome.returncode == 2
    assert outcome.stderr.startswith("error: ") and expected in outcome.stderr
    assert "tools/dist.sh train CONFIG GPUS" in outcome.stderr


def test_more_processes_than_gpus_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="4 GPUs requested, 2 found"):
        launcher.check_devices(4)
    launcher.check_devices(2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    launcher.check_devices(4)


def test_processes_share_the_cores_and_see_no_gpu_with_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")
    unset = {name: value for name, value in os.environ.items() if name not in names}
    monkeypatch.setattr(os, "environ", unset)  # what is set here does not reach the tests after this one
    monkeypatch.setattr(launcher, "available_cores", lambda: 6)
    launcher.set_environment(0, 2)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and os.environ["DS_ACCELERATOR"] == "cpu"


def test_nodes_and_port_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0", "PORT": "29123"}.items():
        monkeypatch.setenv(name, value)
    config = launcher.launch_config(4)
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (2, 2, 4)
    assert config.rdzv_endpoint == "node0:29123" and config.rdzv_configs["rank"] == 1


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NNODES": "2", "NODE_RANK": "2"}, "NODE_RANK is 2, NNODES 2"),
        ({"NNODES": "2", "NODE_RANK": "0"}, "MASTER_ADDR and PORT"),
        ({"PORT": "x"}, "PORT is 'x'"),
    ],
)
def test_settings_without_sense_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=expected):
        launcher.launch_config(1)


@pytest.mark.process
def test_a_failed_process_gives_its_status_and_no_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(7)\ntime.sleep(900)\n")
    code = f"from vesselseg.training.launcher import launch\nraise SystemExit(launch(2, [{str(script)!r}]))"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    command = [python(), "-c", code]
    outcome = subprocess.run(
        command, text=True, capture_output=True, env=environment, check=False, timeout=patience(400)
    )
    assert outcome.returncode == 7
    assert "process 1 ended with status 7" in outcome.stderr and "Traceback" not in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1
