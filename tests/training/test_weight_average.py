"""Averaged weights: the average by hand, what the model holds meanwhile, and a run that is resumed from its file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.training.test_flat_parameters import LR, Model, Rows, engine_of, one_process
from vesselseg.config.settings import Schedule
from vesselseg.errors import WeightsError
from vesselseg.training.optimizer_state import read_optimizer_state, write_optimizer_state
from vesselseg.training.plan import TrainPlan
from vesselseg.training.train_step import TrainStep
from vesselseg.training.weight_average import WeightAverage, restore_average

__all__ = ["one_process"]  # a fixture of every test here
DECAY = 0.6


class Run:
    """Some steps of a training whose weights are averaged, on an engine with or without large tensors."""

    def __init__(self, model: Model, flat: bool) -> None:
        self.engine = engine_of(model, flat)
        self.average = WeightAverage(self.engine, DECAY)
        self.steps = TrainStep(self.engine, TrainPlan(20, 1, Schedule(epochs=1, lr=LR, accumulation=1)))
        self.weights: list[dict[str, Tensor]] = []

    def train(self, numbers: range) -> None:
        for number in numbers:
            assert self.steps.run(Rows(number)).stepped  # type: ignore[arg-type]
            self.average.update()
            self.weights.append(state(self.engine))


def state(engine: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in engine.module.named_parameters()}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(3)
    return Model()


@pytest.mark.parametrize("flat", [False, True])
def test_the_average_by_hand(model: Model, flat: bool) -> None:
    expected = {name: value.detach().double().clone() for name, value in model.named_parameters()}
    run = Run(model, flat)
    run.train(range(6))
    for step, weights in enumerate(run.weights, start=1):
        kept = min(DECAY, (1 + step) / (10 + step))
        expected = {name: kept * value + (1 - kept) * weights[name] for name, value in expected.items()}
    with run.average.in_place():
        found = state(run.engine)
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-7)
    assert all(torch.equal(value, run.weights[-1][name]) for name, value in state(run.engine).items())


def test_training_does_not_depend_on_being_averaged_and_looked_at(model: Model) -> None:
    plain, averaged = Run(copy.deepcopy(model), flat=True), Run(model, flat=True)
    plain.train(range(5))
    for number in range(5):
        averaged.train(range(number, number + 1))
        with averaged.average.in_place():
            pass
    assert all(torch.equal(value, plain.weights[-1][name]) for name, value in averaged.weights[-1].items())


@pytest.mark.parametrize("flat", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(model: Model, tmp_path: Path, flat: bool) -> None:
    """The checkpoint's weights are the average; whether large tensors are used may change between the two."""
    whole = Run(copy.deepcopy(model), flat)
    whole.train(range(3))
    write_optimizer_state(tmp_path / "optimizer", whole.engine)
    whole.average.write(tmp_path / "average")
    with whole.average.in_place():
        model.load_state_dict(state(whole.engine))
    whole.train(range(3, 7))
    resumed = Run(model, not flat)
    read_optimizer_state(tmp_path / "optimizer", resumed.engine)
    restore_average(tmp_path / "average", resumed.engine, resumed.average)
    resumed.steps.progress.iteration = resumed.steps.progress.optimizer_steps = 3
    resumed.train(range(3, 7))
    for expected, found in zip(whole.weights[3:], resumed.weights, strict=True):
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
    with whole.average.in_place(), resumed.average.in_place():
        assert all(torch.equal(value, state(resumed.engine)[name]) for name, value in state(whole.engine).items())


def test_the_weights_come_back_also_where_nothing_is_averaged_any_more(model: Model, tmp_path: Path) -> None:
    run = Run(model, flat=True)
    run.train(range(3))
    run.average.write(tmp_path / "average")
    with run.average.in_place():
        assert not torch.equal(state(run.engine)["first.weight"], run.weights[-1]["first.weight"])
        restore_average(tmp_path / "average", run.engine, None)
        assert all(torch.equal(value, run.weights[-1][name]) for name, value in state(run.engine).items())


def test_a_file_of_other_parameters_is_refused(model: Model, tmp_path: Path) -> None:
    run = Run(model, flat=False)
    run.average.write(tmp_path / "average")
    tensors = load_file(tmp_path / "average")
    assert {name.split(".")[0] for name in tensors} == {"average", "weight"}
    del tensors["weight.second.weight"]
    save_file(tensors, tmp_path / "less", metadata={"steps": "1"})
    for path in (tmp_path / "less", tmp_path / "missing"):
        with pytest.raises(WeightsError, match="not an average of this model's weights"):
            restore_average(path, run.engine, run.average)
