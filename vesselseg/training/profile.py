"""--profile: time and memory of a few iterations of the first process, while the run continues."""

from __future__ import annotations

import gzip
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from torch.profiler import ProfilerActivity, profile, schedule

from vesselseg.dataset.batch import Batch
from vesselseg.errors import UserError
from vesselseg.registry import HOOKS
from vesselseg.training.plan import TrainPlan
from vesselseg.training.trace_summary import summarise
from vesselseg.training.train_step import StepResult

logger = logging.getLogger(__name__)
SKIPPED = 3  # iterations before the profile, until compilers and allocators have settled; one more is its warm-up
TRACE, SUMMARY = "trace.json.gz", "summary.txt"


@HOOKS.register_module()
class ProfileHook(Hook):
    """Writes folder/trace.json.gz (for ui.perfetto.dev) and folder/summary.txt, once.

    iterations: number to profile, rounded up to whole accumulation groups, so that optimizer steps count correctly.
    """

    priority = "LOWEST"  # an iteration ends after all other hooks

    def __init__(self, iterations: int, plan: TrainPlan, folder: Path) -> None:
        group = plan.schedule.accumulation
        self.iterations = math.ceil(iterations / group) * group
        self.plan = plan
        self.folder = folder
        self.profiler: profile | None = None
        self.written = False

    def before_train(self, runner: Any) -> None:
        """Create the profiler; raises UserError if the run is too short."""
        left = self.plan.iterations - runner.iter
        if left < SKIPPED + 1 + self.iterations:
            raise UserError(
                f"--profile: {left} iteration(s) of this run are left; {SKIPPED + 1} to settle and {self.iterations} "
                "to profile are needed. Profile fewer, or train more epochs"
            )
        if runner.rank:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self.profiler = profile(
            activities=activities,
            schedule=schedule(skip_first=SKIPPED, wait=0, warmup=1, active=self.iterations, repeat=1),
            on_trace_ready=self.write,
            profile_memory=True,
        )
        self.profiler.start()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Batch | None = None, outputs: StepResult | None = None
    ) -> None:
        """Advance the profiler by one iteration."""
        if self.profiler is not None:
            self.profiler.step()
            if self.written:
                self.profiler.stop()
                self.profiler = None

    def write(self, profiler: profile) -> None:
        """Write trace and summary."""
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / TRACE))
        with gzip.open(self.folder / TRACE, "rt", encoding="utf-8") as file:
            summary = summarise(json.load(file))
        text = summary.table(self.plan.schedule.micro_batch)
        (self.folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
        for line in text.splitlines():
            logger.info(line)
        logger.info("the trace is in %s; open it in ui.perfetto.dev", self.folder / TRACE)
        self.written = True
