"""The training loop: xtuner's, driven by a plan; it can start in the middle of an epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function
from torch.utils.data import DataLoader

from vesselseg.dataset.batch import Batch
from vesselseg.registry import LOOPS
from vesselseg.training.checkpoint import RunState, restore
from vesselseg.training.plan import TrainPlan
from vesselseg.training.train_step import TrainStep
from vesselseg.training.weight_average import WeightAverage
from vesselseg.training.xtuner_imports import TrainLoop


class LazyDataLoader(DataLoader):
    """A DataLoader that starts at the first `next`, not at `iter`.

    mmengine's loop calls `iter` before the model is built. Batches that are received while DeepSpeed partitions a model
    under construction (ZeRO-3) are corrupt, because it replaces torch's tensor constructors.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        yield from super().__iter__()


@LOOPS.register_module()
class VesselTrainLoop(TrainLoop):
    """Runs a TrainPlan from a state on. resume_from: iter_N.resume to restore, or None.

    average: of the weights, updated after every optimizer step; None without `schedule.ema`, and before the run.
    Hooks are called as in mmengine, with a StepResult as ``outputs``.
    """

    def __init__(
        self, runner: Any, dataloader: DataLoader, plan: TrainPlan, state: RunState, resume_from: Path | None = None
    ) -> None:
        super().__init__(runner, dataloader, max_iters=plan.iterations)
        self.plan = plan
        self.state = state
        self.resume_from = resume_from
        self.average: WeightAverage | None = None
        self.requested_at = 0.0  # perf_counter of the last request for a batch
        self.waited = 0.0  # seconds until that batch arrived

    def averaged_weights(self) -> AbstractContextManager:
        """While it lasts, the model has the averaged weights, if the run averages them."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    @property
    def iter(self) -> int:
        """Number of finished iterations."""
        return self.state.progress.iteration

    @property
    def finished(self) -> bool:
        """Whether the last iteration is done."""
        return self.iter >= self.plan.iterations

    def run(self) -> nn.Module:
        """Train to the end of the plan."""
        engine = self.runner.model.model
        steps = TrainStep(engine, self.plan, self.state.progress)
        # Dropout differs between processes, like their samples.
        torch.manual_seed(self.runner.seed * 1009 + self.runner.rank)
        if self.plan.schedule.ema:
            self.average = WeightAverage(engine, self.plan.schedule.ema)
        if self.resume_from is not None:
            restore(self.resume_from, engine, self.average)
        self.runner.call_hook("before_train")
        engine.train()  # a Predictor restores this mode after a validation
        while not self.finished:
            self.requested_at = time.perf_counter()
            with record_function("load data"):
                batch = next(self.dataloader_iterator)
            self.waited = time.perf_counter() - self.requested_at
            self.runner.call_hook("before_train_iter", batch_idx=self.iter, data_batch=batch)
            result = steps.run(batch)
            if self.average is not None and result.stepped:
                self.average.update()
            with record_function("hooks"):
                self.runner.call_hook("after_train_iter", batch_idx=self.iter, data_batch=batch, outputs=result)
        self.runner.call_hook("after_train")
        return self.runner.model
