"""The report before the first step."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny import SAM2, model_arguments
from vesselseg.models.build import build_model
from vesselseg.models.lora import trainable_state
from vesselseg.models.sam2_grounding import build_sam2
from vesselseg.training.start_report import Loaded, parameter_report

RANDOM = "SAM2 starts from random weights"


def test_a_random_sam2_is_said_and_a_read_one_is_not(tiny_base: Path, tmp_path: Path) -> None:
    assert RANDOM in parameter_report(build_model(**model_arguments(tiny_base)), bytes_per_weight=4)
    file = tmp_path / "sam2_hiera_tiny.pt"
    torch.save({"model": build_sam2({**SAM2, "version": "2.0"}).state_dict()}, file)
    read = build_model(**model_arguments(tiny_base, sam2={**SAM2, "checkpoint": str(file)}))
    assert RANDOM not in parameter_report(read, bytes_per_weight=4)


def test_parameters_are_counted_by_part(tiny_base: Path) -> None:
    model = build_model(**model_arguments(tiny_base))
    report = parameter_report(model, bytes_per_weight=2)
    trainable = sum(value.numel() for value in trainable_state(model).values())
    assert f"{trainable:,}" in next(line for line in report.splitlines() if line.startswith("all"))
    assert "SAM2 mask decoder" in report


def test_what_was_loaded() -> None:
    loaded = Loaded("weights/8B", None, "runs/a/iter_9.pth", "data/mine", {"training": 70, "validation": 10})
    lines = ["base  weights/8B", "SAM2  random weights", "start runs/a/iter_9.pth"]
    lines += ["data  data/mine: 70 training images, 10 validation images"]
    assert loaded.describe(random_sam2=True).splitlines() == lines
    other = Loaded("weights/8B", "sam2.pt", None, "data/mine", {"training": 70})
    assert "SAM2  sam2.pt\nstart new adapters\n" in other.describe(random_sam2=False)
    assert "SAM2  of the base" in Loaded("x", None, None, "y", {}).describe(random_sam2=False)
