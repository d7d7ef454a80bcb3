"""One iteration: forward, guard against NaN, backward, and an optimizer step at the end of an accumulation group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from vesselseg.dataset.batch import Batch
from vesselseg.errors import UserError
from vesselseg.training.flat_parameters import FlatParameters
from vesselseg.training.plan import TrainPlan

MAX_SKIPS_IN_A_ROW = 10


class TrainingDivergedError(UserError):
    """The loss was NaN or inf in too many consecutive iterations."""


@dataclass(frozen=True)
class StepResult:
    """Result of one iteration on this process."""

    losses: dict[str, Tensor]  # weighted losses by name, detached scalars
    image_ids: tuple[str, ...]  # the images of the micro-batch
    skipped: bool = False  # the loss was not finite on some process; no process used this iteration
    at_boundary: bool = False  # no accumulated gradient is pending
    stepped: bool = False  # the weights changed
    learning_rate: float = 0.0  # of the optimizer step
    gradient_norm: float | None = None  # of the optimizer step, before clipping


@dataclass
class Progress:
    """Counters that a resumed run continues."""

    iteration: int = 0
    optimizer_steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def state(self) -> dict[str, int]:
        """As plain values."""
        return dict(vars(self))


@dataclass
class TrainStep:
    """Runs a DeepSpeed engine through a plan, one micro-batch at a time."""

    engine: Any
    plan: TrainPlan
    progress: Progress = field(default_factory=Progress)
    pending: int = 0  # iterations since the last optimizer step
    group: int = 0  # iterations of the current accumulation group

    def run(self, batch: Batch) -> StepResult:
        """Train on one micro-batch; raises TrainingDivergedError after ten skipped iterations in a row."""
        if self.pending == 0:
            self.group = self.plan.group_size(self.progress.iteration)
        last = self.progress.iteration + 1 == self.plan.iterations
        boundary = self.pending + 1 == self.group or last
        self.engine.set_gradient_accumulation_boundary(boundary)
        model = self.engine if self.flat is None else self.engine.module
        with record_function("copy to device"):
            on_device = batch.to(self.engine.device)
        with record_function("forward"):
            losses = model(on_device)
        with record_function("loss"):
            loss = torch.stack(list(losses.values())).sum()
            detached = {name: value.detach() for name, value in losses.items()}
            finite = self._finite_everywhere(loss)
        self.progress.iteration += 1
        if not finite:
            return self._skip(detached, batch)
        self.progress.skipped_in_a_row = 0
        with record_function("backward"):
            self._backward(loss / self.group, boundary)
        self.pending += 1
        if not boundary:
            return StepResult(detached, batch.image_ids)
        return self._optimizer_step(detached, batch)

    @property
    def flat(self) -> FlatParameters | None:
        """The flat buffers of the trainable parameters; None where DeepSpeed manages every parameter (ZeRO-3)."""
        return self.engine.flat_parameters

    def _backward(self, loss: Tensor, boundary: bool) -> None:
        if self.flat is None:
            self.engine.backward(loss, scale_wrt_gas=False)
            if not boundary:
                self._step()  # counts the micro-batch
            return
        loss.backward()
        if boundary:
            self.engine.backward(self.flat.flush_gradients(), scale_wrt_gas=False)

    def _optimizer_step(self, losses: dict[str, Tensor], batch: Batch) -> StepResult:
        rate = self.plan.learning_rate(self.progress.optimizer_steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self._step()
        if self.flat is not None:
            self.flat.clear()
        self.progress.optimizer_steps += 1
        self.pending = 0
        norm = self.engine.get_global_grad_norm()
        return StepResult(
            losses,
            batch.image_ids,
            at_boundary=True,
            stepped=bool(self.engine.was_step_applied()),
            learning_rate=rate,
            gradient_norm=None if norm is None else float(norm),
        )

    def _step(self) -> None:
        # With gloo, ZeRO-1 and 2 gather the new weights into views of a flat tensor, which autograd does not allow.
        with torch.no_grad(), record_function("optimizer"):
            self.engine.step()

    def _finite_everywhere(self, loss: Tensor) -> bool:
        flag = torch.isfinite(loss.detach()).to(torch.int32)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
        return bool(flag.item())

    def _skip(self, losses: dict[str, Tensor], batch: Batch) -> StepResult:
        """Count the iteration without its gradients; the group continues with the next one."""
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        offload = getattr(self.engine.optimizer, "parameter_offload", None)
        if offload is not None:  # ZeRO-3 records the order of modules and must not expect a backward pass
            offload.get_param_coordinator().reset_step()
        if self.progress.skipped_in_a_row >= MAX_SKIPS_IN_A_ROW:
            raise TrainingDivergedError(
                f"the loss was NaN or inf in {MAX_SKIPS_IN_A_ROW} iterations in a row (the last at iteration "
                f"{self.progress.iteration}, images {', '.join(batch.image_ids)}: "
                + ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
                + "). The last checkpoint is kept. Lower schedule.lr or schedule.clip, or check these images"
            )
        return StepResult(losses, batch.image_ids, skipped=True, at_boundary=self.pending == 0)
