"""Running out of memory ends as one message: the peak, what costs most, what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vesselseg.config.load import load_config
from vesselseg.errors import UserError
from vesselseg.training import launch
from vesselseg.training.memory import out_of_memory_message, remedies

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def config() -> Any:
    return load_config(
        CONFIGS / "internvl3_8b_4x24gb.py",
        {"schedule.micro_batch": 4, "model.sa2va.gradient_checkpointing": False, "model.sa2va.max_tiles": 6},
    )


def test_a_step_that_runs_out_of_memory_ends_with_the_message(
    config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def step(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.03 GiB.\nmore detail")

    monkeypatch.setattr(launch, "run_training", step)
    with pytest.raises(UserError) as caught:
        launch.train(config, tmp_path)
    message = str(caught.value)
    assert "GiB at its peak" in message and "Tried to allocate 2.03 GiB." in message and "more detail" not in message
    assert "schedule.micro_batch=4" in message and "model.sa2va.sam2.image_size=1024" in message


def test_changes_are_offered_in_order_and_only_those_not_made_yet(config: Any) -> None:
    offered = remedies(config)
    named = ["gradient_checkpointing=True", "micro_batch=2", "quantise=nf4", "offload_param=", "max_tiles=1"]
    places = [next(place for place, line in enumerate(offered) if name in line) for name in named]
    assert places == sorted(places)
    assert "schedule.micro_batch=2 schedule.accumulation=2 (" in offered[places[1]]
    frugal = load_config(CONFIGS / "internvl3_8b_4x24gb_zero3_offload.py", {"schedule.micro_batch": 1})
    lines = "\n".join(remedies(frugal))
    assert not any(name in lines for name in ("micro_batch", "checkpointing", "offload", "stage=3", "max_tiles"))
    assert "image_size=512" in out_of_memory_message(frugal, MemoryError()).split("what to change")[1]
