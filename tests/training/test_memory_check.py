"""The plan against the machine: what stops a training, and what DeepSpeed really holds."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch

from tests.fork_server import python
from tests.tiny import TRUNK
from tests.training.conftest import Training, environment
from tests.training.nodes import free_port
from tests.training.planned import leaf, planned, write_shapes
from tests.training.test_flat_parameters import engine_of
from vesselseg.config.load import load_config
from vesselseg.machine import GIB
from vesselseg.models.build import build_model
from vesselseg.training import memory_limit
from vesselseg.training.memory_plan.check import (
    AvailableMemory,
    MemoryPlanError,
    available_memory,
    check_memory,
    shortages,
)
from vesselseg.training.memory_plan.setup import Setup
from vesselseg.training.memory_plan.shapes import shapes_of
from vesselseg.training.memory_plan.zero import GRADIENTS, MASTERS, MOMENTS, TRAINABLE, zero_bytes

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "InternVL3-8B", "InternVL3-8B")


@pytest.fixture
def one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setitem(os.environ, name, value)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", False)  # g++ would compile it
    deepspeed.init_distributed("gloo", verbose=False)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_the_plan_matches_deepspeeds_memory(base: Path) -> None:
    config = load_config(
        REPOSITORY / "configs" / "tiny_cpu.py",
        {
            "model.sa2va.base": str(base),
            "model.sa2va.trainable.llm": "lora",
            "model.sa2va.trainable.vision": False,
            "model.sa2va.trainable.sam2_encoder": False,
            "model.sa2va.sam2.trunk": TRUNK,
        },
    )
    sa2va = config["model"]["sa2va"]
    rows = zero_bytes(Setup(config, gpus=1, on_gpu=False), shapes_of(sa2va)).always
    model = build_model(**{name: sa2va[name] for name in ("base", "sam2", "lora", "trainable")}, fused=False)
    for parameter in [one for one in model.parameters() if not one.requires_grad]:
        parameter.data = torch.empty(0)  # frozen weights are not looked at
    trained = torch.nn.ParameterList([one for one in model.parameters() if one.requires_grad])
    engine = engine_of(trained, flat=True)
    engine.set_gradient_accumulation_boundary(True)
    for gradient in engine.flat_parameters.gradients:
        gradient.normal_()
    engine.backward(engine.flat_parameters.flush_gradients())
    with torch.no_grad():
        engine.step()
    zero = engine.optimizer
    (state,) = zero.optimizer.state.values()
    assert rows[MASTERS] == sum(one.nbytes for one in zero.single_partition_of_fp32_groups)
    assert rows[MOMENTS] == state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes
    assert rows[TRAINABLE] == pytest.approx(sum(one.nbytes for one in zero.bit16_groups_flat), abs=8)
    assert rows[GRADIENTS] == sum(one.nbytes for one in engine.flat_parameters.gradients)


@pytest.mark.slow
def test_a_card_that_is_too_small_stops_the_run_with_table_and_changes(
    folder_8b: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = leaf("internvl3_8b_1x24gb", folder_8b)
    room = AvailableMemory(11.4 * GIB, "NVIDIA GeForce RTX 3060", 11.76 * GIB)
    with pytest.raises(MemoryPlanError) as caught:
        check_memory(config, 1, room, force=False)
    message = str(caught.value)
    assert message.startswith("this run cannot fit: it needs ") and "RTX 3060 has 11.76, 11.40 for this" in message
    assert "frozen weights" in message and "model.sa2va.quantise=nf4" in message and "--force" in message
    with caplog.at_level(logging.WARNING):
        check_memory(config, 1, room, force=True)
    assert "training anyway" in caplog.text
    check_memory(leaf("internvl3_8b_1x12gb", folder_8b), 1, room, force=False)


def test_memory_that_others_hold_is_named(folder_8b: Path) -> None:
    plan = planned("internvl3_8b_1x24gb", folder_8b, 1, gib=12)
    free, busy = (
        AvailableMemory(11 * GIB, "card", 24 * GIB),
        AvailableMemory(11 * GIB, "card", 24 * GIB, taken=12.3 * GIB),
    )
    assert "other programs" not in shortages(plan, free)[0]
    assert "other programs hold 12.30 (nvidia-smi lists them)" in shortages(plan, busy)[0]


def test_too_little_main_memory_for_offload_is_reported(folder_8b: Path) -> None:
    plan = planned("internvl3_8b_4x24gb_zero3_offload", folder_8b, 4)
    assert plan.fits and shortages(plan, AvailableMemory(23 * GIB, host=128 * GIB)) == []
    (shortage,) = shortages(plan, AvailableMemory(23 * GIB, host=16 * GIB))
    assert "more of main memory (most for: weights (offload)), 16.0 are free" in shortage


def test_a_run_on_the_cpu_is_checked_for_main_memory_only(base: Path, data: Path) -> None:
    options = {"model.sa2va.base": str(base), "data_root": str(data)}
    config = load_config(REPOSITORY / "configs" / "tiny_cpu.py", options)
    room = available_memory(torch.device("cpu"), 2)
    assert room.usable is None and room.host is not None and room.host > 0
    check_memory(config, 2, room, force=False)
    with pytest.raises(MemoryPlanError, match="more of main memory"):
        check_memory(config, 2, AvailableMemory(None, host=2**20), force=False)


# The reported memory is the only thing that is not real.
SMALL_CARD = """
import runpy, sys
from vesselseg.training import launch
from vesselseg.training.memory_plan.check import AvailableMemory
launch.available_memory = lambda *_: AvailableMemory(2**20, "a small card", 2**20)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.process
def test_training_stops_before_it_writes_anything_and_force_continues(training: Training, tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_dataset__limit": 2, "schedule__epochs": 1, "validation__interval": None}
    arguments = training.command(tmp_path / "run", processes=1, **options)
    config = arguments[arguments.index("train") + 1]
    command = [python(), "-c", SMALL_CARD, str(REPOSITORY / "tools" / "train.py"), config, *arguments[5:]]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        whole, port = [*command[:5], *more, *command[5:]], {"MASTER_PORT": str(free_port())}
        return subprocess.run(
            whole, env={**environment(), **alone, **port}, capture_output=True, text=True, check=False
        )

    stopped = run()
    assert stopped.returncode == 2 and "error: this run cannot fit" in stopped.stderr, stopped.stderr
    assert "GiB per GPU" in stopped.stderr and not list((tmp_path / "run").iterdir())
    forced = run("--force")
    assert forced.returncode == 0, forced.stderr
    assert "training anyway (--force)" in forced.stdout + forced.stderr
    assert (tmp_path / "run" / "iter_2.pth").is_file()


def test_main_memory_is_limited_by_the_system_and_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 1000000 kB\n",
        "proc/self/cgroup": "4:memory:/elsewhere\n0::/jobs/7\n",
        # The cache of files read once is given back when a process needs it; that of files in use is not counted on.
        "groups/jobs/memory.max": "900000000",
        "groups/jobs/memory.current": "800000000",
        "groups/jobs/memory.stat": "anon 100000000\ninactive_file 500000000\nactive_file 200000000\n",
        "groups/jobs/7/memory.max": "max\n",
        "groups/jobs/7/memory.current": "5",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory_limit, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory_limit, "CONTROL_GROUPS", tmp_path / "groups")
    assert memory_limit.available_bytes() == 600_000_000
    (tmp_path / "groups/jobs/7/memory.max").write_text("4\n")
    assert memory_limit.available_bytes() == 0
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")  # a container without a limit of its own
    assert memory_limit.available_bytes() == 1_024_000_000
    (tmp_path / "proc/meminfo").unlink()
    assert memory_limit.available_bytes() is None
