"""The search for the largest micro-batch: which sizes it tries, what it says, and real searches in little memory."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fork_server import python
from tests.machine_speed import patience
from tests.training.conftest import REPOSITORY, Training, environment
from vesselseg.config.load import load_config
from vesselseg.config.settings import Schedule
from vesselseg.dataset.vessel_dataset import VesselDataset
from vesselseg.errors import UserError
from vesselseg.training.micro_batch_search import Trial, check_one_image_fits, longest_first, report, search
from vesselseg.training.training_data import training_dataset


def trial(images: int, largest: int) -> Trial:
    return Trial(images, images * 2.0**30, 0.1 if images <= largest else None)


@pytest.mark.parametrize("largest", [0, 1, 2, 3, 6, 11, 32, 63, 64, 100])
def test_the_largest_size_is_found_in_few_trials(largest: int) -> None:
    tried = []

    def run(images: int) -> Trial:
        tried.append(images)
        return trial(images, largest)

    found = search(run, most=64)
    assert max((size for size, one in found.items() if one.fits), default=0) == min(largest, 64)
    assert len(tried) == len(set(tried)) == len(found) <= 12 and max(tried) <= 64


class AvailableMemory:
    most = 8 * 2.0**30

    def describe(self) -> str:
        return "8.00 GiB"


@pytest.mark.parametrize(
    ("largest", "micro_batch", "accumulation", "expected"),
    [(6, 1, 12, (6, 2)), (5, 1, 12, (4, 3)), (7, 2, 4, (4, 2)), (1, 4, 1, (1, 4)), (64, 8, 1, (8, 1))],
)
def test_the_settings_that_are_advised_keep_the_images_per_step(
    largest: int, micro_batch: int, accumulation: int, expected: tuple[int, int]
) -> None:
    trials = search(lambda images: trial(images, largest), most=64)
    schedule = Schedule(micro_batch=micro_batch, accumulation=accumulation)
    text = report(trials, schedule, AvailableMemory())  # type: ignore[arg-type]
    assert text.endswith(f"schedule.micro_batch={expected[0]} schedule.accumulation={expected[1]}")
    assert f"the largest that fits: {largest} (of 8.00 GiB" in text
    assert ("does not fit" in text) is (largest < 64) is ("larger ones were not tried" not in text)


def test_the_longest_conversations_come_first(data: Path, base: Path) -> None:
    dataset: VesselDataset = training_dataset(data, base, 64)
    order = longest_first(dataset)
    assert sorted(order) == list(range(len(dataset)))
    assert dataset.records[order[0]].phrases == ("blood vessel", "catheter")
    lengths = [len(dataset[index].input_ids) for index in order]
    assert max(lengths) == lengths[0]


def searched(training: Training, room: int, processes: int, **options: Any) -> subprocess.CompletedProcess[str]:
    """limited_search.py through the launcher."""
    values = {
        "data_root": training.data,
        "model.sa2va.base": training.base,
        "model.sa2va.sam2.image_size": 256,
        "model.sa2va.trainable.llm": "lora",
        "schedule.micro_batch": 2,
        "schedule.accumulation": 6,
        **options,
    }
    script = str(REPOSITORY / "tests" / "training" / "limited_search.py")
    command = [python(), "-m", "vesselseg.training.launcher", str(processes), script]
    command += [str(REPOSITORY / "configs" / "tiny_cpu.py"), str(room), *(f"{k}={v}" for k, v in values.items())]
    return subprocess.run(
        command, text=True, capture_output=True, env=environment(), check=False, timeout=patience(300)
    )


@pytest.mark.process
def test_processes_agree_where_only_one_of_them_runs_out_of_memory(training: Training) -> None:
    outcome = searched(training, room=1500, processes=2)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    sizes = {
        int(size): outcome_text
        for size, outcome_text in re.findall(r"^ +(\d+) +(\S.*)$", outcome.stdout, flags=re.MULTILINE)
    }
    too_large = [size for size, outcome_text in sizes.items() if outcome_text == "does not fit"]
    largest = int(re.search(r"the largest that fits: (\d+)", outcome.stdout)[1])  # type: ignore[index]
    assert 1 <= largest < min(too_large) <= largest + 1 and max(sizes) > largest
    assert re.search(r"schedule.micro_batch=(\d+) schedule.accumulation=(\d+)$", outcome.stdout.strip())
    assert "Traceback" not in outcome.stderr


def test_a_model_too_large_for_one_image_is_one_message() -> None:
    config = load_config(REPOSITORY / "configs" / "tiny_cpu.py")
    with pytest.raises(UserError, match="not even a micro-batch of one image fits") as caught:
        check_one_image_fits(search(lambda images: trial(images, 0), most=64), config)
    message = str(caught.value)
    assert (
        "model.sa2va.gradient_checkpointing=True" in message and "micro_batch=2" not in message
    )  # its micro-batch is 4
    check_one_image_fits(search(lambda images: trial(images, 1), most=64), config)


@pytest.mark.process
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_allocators_limit_decides(training: Training, tmp_path: Path) -> None:
    share = 0.8 * 2**30 / torch.cuda.get_device_properties(0).total_memory
    limit = f"expandable_segments:True,per_process_memory_fraction:{share:.6f}"
    command = training.command(tmp_path, "--find-micro-batch", processes=1, model__sa2va__sam2__image_size=512)
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTORCH_CUDA_ALLOC_CONF": limit}
    outcome = subprocess.run(command, text=True, capture_output=True, env=environment, check=False)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    assert re.search(r"the largest that fits: \d+ \(of 0\.7\d GiB", outcome.stdout) and "does not fit" in outcome.stdout
