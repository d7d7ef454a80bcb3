"""Accumulation groups and NaN, with an engine that only records its calls."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vesselseg.config.settings import Schedule
from vesselseg.dataset.batch import Batch
from vesselseg.training.plan import TrainPlan
from vesselseg.training.train_step import TrainingDivergedError, TrainStep


class Recorder:
    """Stands for a DeepSpeed engine; losses are given, calls are kept."""

    device = torch.device("cpu")
    flat_parameters = None  # as with ZeRO-3

    def __init__(self, losses: list[float]) -> None:
        self.losses = iter(losses)
        self.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
        self.boundary = False
        self.backwards: list[float] = []
        self.steps: list[float] = []

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss_a": torch.tensor(next(self.losses)), "loss_b": torch.tensor(0.0)}

    def set_gradient_accumulation_boundary(self, boundary: bool) -> None:
        self.boundary = boundary

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        assert not scale_wrt_gas
        self.backwards.append(float(loss))

    def step(self) -> None:
        if self.boundary:
            self.steps.append(self.optimizer.param_groups[0]["lr"])

    def was_step_applied(self) -> bool:
        return self.boundary

    def get_global_grad_norm(self) -> float:
        return 1.0


@pytest.fixture(autouse=True)
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def batch() -> Batch:
    empty = torch.zeros(1, 0)
    return Batch(("a.png",), empty, (1,), empty, (empty[0].long(),), (empty[0].long(),), (), (0,))


def steps(losses: list[float], accumulation: int) -> tuple[TrainStep, Recorder]:
    engine = Recorder(losses)
    plan = TrainPlan(len(losses), 1, Schedule(epochs=1, lr=1.0, accumulation=accumulation, warmup_ratio=0.0))
    return TrainStep(engine, plan), engine


def test_every_group_averages_its_iterations_also_the_last_one() -> None:
    micro, engine = steps([4.0] * 10, accumulation=4)
    results = [micro.run(batch()) for _ in range(10)]
    assert engine.backwards == [1.0] * 8 + [2.0] * 2
    assert [number for number, result in enumerate(results) if result.at_boundary] == [3, 7, 9]
    assert engine.steps == [micro.plan.learning_rate(step) for step in range(3)]
    assert micro.progress.optimizer_steps == micro.plan.optimizer_steps == 3


def test_a_skipped_iteration_leaves_no_gradient_and_its_group_continues() -> None:
    micro, engine = steps([2.0, math.nan, 2.0, 2.0, math.inf, 2.0], accumulation=2)
    results = [micro.run(batch()) for _ in range(6)]
    assert [result.skipped for result in results] == [False, True, False, False, True, False]
    assert engine.backwards == [1.0] * 4
    assert [result.at_boundary for result in results] == [False, False, True, False, False, True]
    assert (micro.progress.skipped, micro.progress.skipped_in_a_row) == (2, 0)


def test_ten_in_a_row_stop_the_run_and_nine_do_not() -> None:
    micro, _ = steps([math.nan] * 9 + [1.0] + [math.nan] * 10, accumulation=1)
    for _ in range(19):
        micro.run(batch())
    with pytest.raises(TrainingDivergedError, match=r"10 iterations in a row .*iteration 20, images a\.png: loss_a"):
        micro.run(batch())
    assert micro.progress.skipped == 19
