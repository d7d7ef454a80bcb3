"""What a run tells before its first step."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny import SAM2, model_arguments
from vesselseg.models.build import build_model
from vesselseg.models.lora import trainable_state
from vesselseg.models.sam2_grounding import build_sam2
from vesselseg.training.start_report import parameter_report

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
