"""Logs of a run: lines on the console, one JSON object per line in log.jsonl, TensorBoard."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor

from vesselseg.dataset.batch import Batch
from vesselseg.machine import GIB
from vesselseg.output_folder import replace_text
from vesselseg.registry import HOOKS
from vesselseg.training.train_step import StepResult

logger = logging.getLogger(__name__)
STARTED = "VESSELSEG_STARTED"  # seconds since 1970 at which tools/dist.sh was called
_IMPORTED = time.time()


class RunLog:
    """Writes rows of log.jsonl; only the first process writes."""

    CUT_OFF = "log.cut_off.jsonl"

    def __init__(self, path: Path, active: bool) -> None:
        self.path = path
        self.active = active

    def write(self, kind: str, **values: Any) -> None:
        """Append one row. kind: `train`, `val` or `event`."""
        if self.active:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, **values}) + "\n")

    def cut_after(self, iteration: int) -> None:
        """Move rows of later iterations, which a resumed run repeats, to log.cut_off.jsonl.

        An incomplete last row is moved, too.
        """
        if not self.active or not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _is_row_until(line, iteration)]
        if len(kept) == len(lines):
            return
        with self.path.with_name(self.CUT_OFF).open("a", encoding="utf-8") as file:
            file.writelines(line.rstrip("\n") + "\n" for line in lines if not _is_row_until(line, iteration))
        replace_text(self.path, "".join(kept))
        logger.info(
            "%d row(s) of log.jsonl after iteration %d were moved to %s",
            len(lines) - len(kept),
            iteration,
            self.CUT_OFF,
        )


@HOOKS.register_module()
class LogHook(Hook):
    """Logs means over all processes and over the iterations since the last row, and figures of the last optimizer step.

    interval: iterations between rows. log: their file. There are two further events: `started`, when training begins,
    and `first_step`, both with the seconds since the command was started.

    Nothing waits for a GPU between rows. Times exclude validation and checkpoints.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, interval: int, log: RunLog) -> None:
        self.interval = interval
        self.log = log
        self.sums: dict[str, Tensor] = {}
        self.counted = 0
        self.images = 0
        self.iterations = 0
        self.waited = 0.0  # seconds for data
        self.elsewhere = 0.0  # seconds in validation and checkpoints
        self.started = self.window_started = self.left = time.perf_counter()
        self.first_iteration = 0
        self.gradient_norm: float | None = None

    def before_train(self, runner: Any) -> None:
        """Log the time that the start has taken, and start the clock."""
        self.first_iteration = runner.iter
        memory = max_memory_over_ranks(runner.strategy.device)
        self.log.write("event", event="started", iter=runner.iter, seconds=seconds_since_command(), **memory)
        self.started = self.window_started = self.left = time.perf_counter()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Batch | None = None) -> None:
        """Separate the time spent waiting for data from the time of other hooks."""
        self.waited += runner.train_loop.waited
        self.elsewhere += runner.train_loop.requested_at - self.left

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Batch | None = None, outputs: StepResult | None = None
    ) -> None:
        """Accumulate the result, and write a row when one is due."""
        result: StepResult = outputs  # type: ignore[assignment]
        self.images += len(result.image_ids)
        self.iterations += 1
        if result.skipped:
            self._report_skip(runner, result)
        else:
            for name, value in result.losses.items():
                self.sums[name] = self.sums.get(name, 0) + value.double()
            self.counted += 1
        if result.at_boundary and not result.skipped:
            self.gradient_norm = result.gradient_norm
            if not result.stepped:
                logger.warning("iteration %d: gradients were not finite, optimizer step skipped", runner.iter)
                self.log.write("event", event="step_left_out", iter=runner.iter)  # the name in all earlier logs
        if runner.iter == self.first_iteration + 1:
            self._log_first_step(runner)
        if runner.iter % self.interval == 0 or runner.train_loop.finished:
            self._write(runner)
        self.left = time.perf_counter()

    def _log_first_step(self, runner: Any) -> None:
        if runner.strategy.device.type == "cuda":
            torch.cuda.synchronize()
        self.log.write("event", event="first_step", iter=runner.iter, seconds=seconds_since_command())

    def _report_skip(self, runner: Any, result: StepResult) -> None:
        own = {
            "rank": runner.rank,
            "images": list(result.image_ids),
            "losses": {name: str(value.item()) for name, value in result.losses.items()},
        }
        everyone: list[Any] = [None] * runner.world_size
        torch.distributed.all_gather_object(everyone, own)
        skipped = runner.train_loop.state.progress.skipped
        self.log.write("event", event="skipped", iter=runner.iter, skipped=skipped, processes=everyone)
        if runner.rank == 0:
            named = "; ".join(f"process {one['rank']}: {', '.join(one['images'])} {one['losses']}" for one in everyone)
            logger.warning("iteration %d: loss not finite, skipped (%d so far): %s", runner.iter, skipped, named)

    def _write(self, runner: Any) -> None:
        losses = self._mean_losses(runner)
        memory = max_memory_over_ranks(runner.strategy.device)  # reads from the GPU, so that `now` includes its work
        now = time.perf_counter()
        training = now - self.window_started - self.elsewhere
        plan, progress = runner.train_loop.plan, runner.train_loop.state.progress
        left = plan.iterations - runner.iter
        row: dict[str, Any] = {
            "iter": runner.iter,
            "epoch": round(plan.epoch(runner.iter), 4),
            "step": progress.optimizer_steps,
            "loss": sum(losses.values()) if losses else None,
            **losses,
            "lr": plan.learning_rate(max(0, progress.optimizer_steps - 1)),
            "grad_norm": self.gradient_norm,
            "images_per_s": runner.world_size * self.images / training,
            "iter_s": round(training / self.iterations, 5),
            "data_s": round(self.waited / self.iterations, 5),
            **memory,
            "eta_s": round(left * (now - self.started) / max(1, runner.iter - self.first_iteration)),
        }
        self.sums, self.counted, self.images, self.iterations = {}, 0, 0, 0
        self.waited, self.elsewhere, self.window_started, self.gradient_norm = 0.0, 0.0, now, None
        self.log.write("train", **row)
        if runner.rank == 0:
            logger.info(console_line(row, plan.iterations))
            runner.visualizer.add_scalars(
                {f"train/{key}": value for key, value in row.items() if value is not None}, step=runner.iter
            )

    def _mean_losses(self, runner: Any) -> dict[str, float]:
        if not self.counted:
            return {}
        names = sorted(self.sums)
        means = torch.stack([self.sums[name] for name in names]) / self.counted
        torch.distributed.all_reduce(means)
        return {name: float(value) / runner.world_size for name, value in zip(names, means)}


def _is_row_until(line: str, iteration: int) -> bool:
    """Whether a line is a complete row of this iteration or an earlier one."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return False
    return line.endswith("\n") and row.get("iter", 0) <= iteration


def console_line(row: dict[str, Any], iterations: int) -> str:
    """One log row as a line for the console."""
    parts = ", ".join(f"{name[5:]} {value:.4f}" for name, value in row.items() if name.startswith("loss_"))
    loss = "none counted" if row["loss"] is None else f"{row['loss']:.4f} ({parts})"
    norm = "" if row["grad_norm"] is None else f"  grad {row['grad_norm']:.3g}"
    return (
        f"iter {row['iter']:>5}/{iterations}  epoch {row['epoch']:.2f}  loss {loss}  lr {row['lr']:.2e}{norm}  "
        f"{row['images_per_s']:.2f} images/s  {row['memory_gib']:.1f} GiB  eta {timedelta(seconds=row['eta_s'])}"
    )


def seconds_since_command() -> float:
    """Seconds since tools/dist.sh was called; without it, since this process imported its modules."""
    return round(time.time() - float(os.environ.get(STARTED, _IMPORTED)), 2)


def max_memory_over_ranks(device: torch.device) -> dict[str, float | None]:
    """Peak of allocated and of reserved memory, each of the process with the largest value.

    A collective call that reads from the device. Without a GPU nothing is reserved: None.
    """
    on_gpu = device.type == "cuda"
    reserved = torch.cuda.max_memory_reserved() / GIB if on_gpu else 0.0
    values = torch.tensor([peak_memory_gib(), reserved], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
    allocated, reserved = values.tolist()
    return {"memory_gib": round(allocated, 3), "memory_reserved_gib": round(reserved, 3) if on_gpu else None}


def peak_memory_gib() -> float:
    """Peak memory of this process: of the GPU if there is one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
