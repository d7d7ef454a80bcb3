"""A small data set, a small base model, and a way to start real trainings of two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.fork_server import on_path
from tests.training.nodes import free_port
from vesselseg.dataset.manifest import Record, write_manifest
from vesselseg.models.tiny_base import write_tiny_base

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = {"train": 18, "val": 3, "test": 1}


def write_data(folder: Path) -> Path:
    """A dataset folder of drawn lines; training image 2 holds two objects, number 3 none."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    records, splits = [], {}
    for split, count in IMAGES.items():
        splits[split] = [f"{split}_{number}.png" for number in range(count)]
        for number, name in enumerate(splits[split]):
            x = float(generator.integers(10, 60))
            polygon = [x, 8.0, x + 12, 8.0, x + 20, 88.0, x + 8, 88.0]
            image = Image.new("L", (96, 96), 180)
            ImageDraw.Draw(image).polygon(polygon, fill=60)
            image.save(folder / "images" / name)
            objects = 2 if (split, number) == ("train", 2) else 0 if (split, number) == ("train", 3) else 1
            phrases = ("blood vessel", "catheter")[:objects]
            records.append(Record(name, tuple((polygon,) for _ in phrases), phrases))
    write_manifest(folder, records)
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


@dataclass(frozen=True)
class Training:
    """What trainings of these tests share."""

    data: Path
    base: Path
    trace: Path

    def command(self, work_dir: Path, *arguments: str, processes: int = 2, **options: Any) -> list[str]:
        """tools/dist.sh train ... with small sizes; options are --cfg-options with __ for dots."""
        start = ["bash", str(REPOSITORY / "tools" / "dist.sh"), "train"]
        return [*start, *self.arguments(work_dir, *arguments, processes=processes, **options)]

    def arguments(self, work_dir: Path, *arguments: str, processes: int, **options: Any) -> list[str]:
        """What follows `train`."""
        values = {
            "data_root": self.data,
            "model__sa2va__base": self.base,
            "model__sa2va__sam2__image_size": 64,
            "model__sa2va__lora__dropout": 0.2,
            "model__sa2va__trainable__llm": "lora",
            "model__sa2va__trainable__sam2_encoder": False,
            "model__sa2va__trainable__vision": False,
            "train_dataset__type": "tests.training.traced_dataset.traced_dataset",
            "train_dataset__max_length": 512,
            "train_dataset__trace": self.trace / work_dir.name,
            "loader__num_workers": 0,
            "schedule__epochs": 2,
            "schedule__micro_batch": 1,
            "schedule__accumulation": 2,
            "validation__interval": 8,
            "checkpoint__interval": 4,
            "logging__interval": 1,
            **options,
        }
        listed = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
        config = str(REPOSITORY / "configs" / "tiny_cpu.py")
        return [config, str(processes), "--work-dir", str(work_dir), *arguments, "--cfg-options", *listed]

    def run(self, work_dir: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A training to its end."""
        return subprocess.run(
            self.command(work_dir, *arguments, **options),
            text=True,
            capture_output=True,
            env=environment(),
            check=False,
        )

    def seen(self, work_dir: Path) -> list[list[str]]:
        """Per process, the lines "epoch index image" in order."""
        folder = self.trace / work_dir.name
        return [path.read_text().splitlines() for path in sorted(folder.glob("*.txt"))]


def environment() -> dict[str, str]:
    """No GPU: two processes on the CPU, one thread each; `python` is one whose imports are done."""
    return on_path({**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)})


def rows(work_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Whole lines of log.jsonl of one kind."""
    path = work_dir / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset folder."""
    return write_data(tmp_path_factory.mktemp("engine") / "data")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model's folder."""
    folder = tmp_path_factory.mktemp("engine") / "base"
    write_tiny_base(folder, hidden_size=32, layers=1, tile_size=56, seed=0)
    return folder


@pytest.fixture(scope="session")
def training(data: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Starts trainings."""
    return Training(data, base, tmp_path_factory.mktemp("trace"))


def small(data: Path, base: Path) -> dict[str, Any]:
    """Settings of two optimizer steps on the small model, with a validation after each."""
    return {
        "data_root": str(data),
        "model.sa2va.base": str(base),
        "model.sa2va.sam2.image_size": 64,
        "train_dataset.max_length": 512,
        "loader.num_workers": 0,
        "schedule.max_iters": 2,
        "validation.interval": 1,
        "checkpoint.interval": None,
        "logging.interval": 1,
        "logging.tensorboard": False,
    }


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of a training of one process on the CPU, inside this one."""
    import deepspeed
    import torch

    job = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**job, "MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)
    # DeepSpeed remembers the groups of earlier tests.
    monkeypatch.setattr(deepspeed.utils.groups, "_WORLD_GROUP", None)
    monkeypatch.setattr(deepspeed.comm.comm, "cdb", None)
    path = list(sys.path)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.path[:] = path
