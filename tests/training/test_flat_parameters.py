"""Large tensors in the place of many parameters: the same steps, the same state by name."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vesselseg.config.settings import Schedule
from vesselseg.training import flat_parameters
from vesselseg.training.flat_parameters import FlatParameters, is_worth_flattening
from vesselseg.training.optimizer_state import read_optimizer_state, write_optimizer_state
from vesselseg.training.plan import TrainPlan
from vesselseg.training.train_step import TrainStep

LR = 0.01


class Model(nn.Module):
    """forward: (rows, 6) -> losses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3, bias=False)

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return {"loss": self.second(torch.tanh(self.first(batch.rows))).square().mean()}


class Rows:
    """What TrainStep needs of a batch."""

    image_ids = ("a.png",)

    def __init__(self, seed: int) -> None:
        self.rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))

    def to(self, device: torch.device) -> Rows:
        return self


@pytest.fixture(autouse=True)
def one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(flat_parameters, "MAX_BUFFER", 40)  # several flat buffers, one with several parameters
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setitem(os.environ, name, value)
    # DeepSpeed keeps the groups of earlier tests.
    monkeypatch.setattr(deepspeed.utils.groups, "_WORLD_GROUP", None)
    monkeypatch.setattr(deepspeed.comm.comm, "cdb", None)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", False)  # g++ would compile it
    deepspeed.init_distributed("gloo", verbose=False)
    yield
    torch.distributed.destroy_process_group()


def engine_of(model: nn.Module, flat: bool) -> Any:
    named = list(model.named_parameters())
    large = FlatParameters(named) if flat else None
    optimizer = torch.optim.AdamW(large.flat_buffers if large else [p for _, p in named], lr=LR, weight_decay=0.1)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.05,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    with large.registered_in(model) if large else contextlib.nullcontext():
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    engine.flat_parameters = large
    return engine


def trained(model: nn.Module, flat: bool, groups: int = 3, accumulation: int = 2) -> tuple[Any, list[float]]:
    engine = engine_of(model, flat)
    plan = TrainPlan(groups * accumulation, 1, Schedule(epochs=1, lr=LR, accumulation=accumulation, warmup_ratio=0.0))
    steps = TrainStep(engine, plan)
    results = [steps.run(Rows(number)) for number in range(groups * accumulation)]  # type: ignore[arg-type]
    return engine, [result.gradient_norm for result in results if result.stepped]


def test_steps_and_norms_are_those_of_single_parameters() -> None:
    torch.manual_seed(0)
    plain = Model()
    flat = copy.deepcopy(plain)
    before = plain.first.weight.detach().clone()
    _, expected = trained(plain, flat=False)
    engine, found = trained(flat, flat=True)
    assert len(engine.flat_parameters.buffers) == 2 and len(engine.flat_parameters.buffers[0].parts) == 2
    assert len(found) == 3 and found == pytest.approx(expected, rel=1e-5)
    for name, value in plain.named_parameters():
        torch.testing.assert_close(flat.get_parameter(name), value, rtol=1e-5, atol=1e-7)
    assert (flat.first.weight - before).abs().max() > LR
    assert all(not gradient.any() for gradient in engine.flat_parameters.gradients)


def test_state_is_written_by_name_and_read_into_either_kind(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model()
    states = []
    for flat in (False, True):
        engine, _ = trained(copy.deepcopy(model), flat)
        write_optimizer_state(tmp_path / f"{flat}.safetensors", engine)
        states.append(load_file(tmp_path / f"{flat}.safetensors"))
    assert states[0].keys() == states[1].keys() and "exp_avg.first.bias" in states[0]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-7)
    for flat in (False, True):
        engine = engine_of(copy.deepcopy(model), flat)
        read_optimizer_state(tmp_path / "True.safetensors", engine)
        write_optimizer_state(tmp_path / "again.safetensors", engine)
        again = load_file(tmp_path / "again.safetensors")
        assert all(torch.equal(again[name], value) for name, value in states[1].items())


def test_parameters_are_views_after_every_step() -> None:
    engine, _ = trained(Model(), flat=True)
    for buffer in engine.flat_parameters.buffers:
        start = buffer.tensor.data_ptr()
        for _, parameter in buffer.parts:
            assert parameter.data_ptr() == start and parameter.grad is not None
            start += parameter.numel() * parameter.element_size()


def test_a_whole_language_model_is_left_to_deepspeed() -> None:
    assert is_worth_flattening(179_069_120)  # the recipes for 8B
    assert not is_worth_flattening(1_266_276_352)  # whole tables beside adapters
