"""Number of iterations and optimizer steps of a run, and the learning rate of each step: arithmetic only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vesselseg.config.settings import Schedule


@dataclass(frozen=True)
class ResumeOffset:
    """Progress of a run at its last change of the number of images per iteration or per optimizer step.

    Zero for a run that never changed it. Iterations and steps are counted on from here; the length of the run and its
    learning rate are measured in images.
    """

    iterations: int = 0
    images: int = 0
    optimizer_steps: int = 0


@dataclass(frozen=True)
class TrainPlan:
    """images: of the training split. world_size: training processes. schedule: the config's.

    offset: progress that was made with another number of processes, micro-batch or accumulation.
    """

    images: int
    world_size: int
    schedule: Schedule
    offset: ResumeOffset = field(default_factory=ResumeOffset)

    @property
    def images_per_iteration(self) -> int:
        """Images that all processes together read in one iteration."""
        return self.world_size * self.schedule.micro_batch

    @property
    def iterations_per_epoch(self) -> float:
        """May be a fraction: the stream of images continues from one epoch into the next."""
        return self.images / self.images_per_iteration

    @property
    def iterations(self) -> int:
        """Iterations of the whole run; only the very last one may be filled up."""
        left = max(0, self.images * self.schedule.epochs - self.offset.images)
        whole = self.offset.iterations + math.ceil(left / self.images_per_iteration)
        if self.schedule.max_iters:
            return max(self.offset.iterations, min(whole, self.schedule.max_iters))
        return whole

    @property
    def filled_up(self) -> int:
        """Images that the last iteration reads beyond the last epoch, so that all processes do equal work."""
        return max(0, self.images_after(self.iterations) - self.images * self.schedule.epochs)

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run; a last group of fewer iterations is a step too."""
        return self.offset.optimizer_steps + self._steps_ahead

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of the warm-up."""
        return round(self.schedule.warmup_ratio * self._steps_of_this_size)

    def images_after(self, iterations: int) -> int:
        """Position in the stream of images after N iterations; N is not below the offset's iterations."""
        return self.offset.images + (iterations - self.offset.iterations) * self.images_per_iteration

    def group_size(self, iteration: int) -> int:
        """Iterations in the accumulation group that starts at `iteration` (from 0): fewer at the end of the run."""
        return min(self.schedule.accumulation, self.iterations - iteration)

    def learning_rate(self, step: int) -> float:
        """Of optimizer step `step` (from 0): linear to the peak during warm-up, then a cosine towards zero.

        A run that continues with steps of another size is at the place on this curve that its images correspond to.
        """
        warmup, whole = self.warmup_steps, self._steps_of_this_size
        place = self._share_done * whole + step - self.offset.optimizer_steps
        if place < warmup:
            return self.schedule.lr * (place + 1) / warmup
        done = (place - warmup) / max(1, whole - warmup)
        return self.schedule.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def epoch(self, iteration: int) -> float:
        """Passes over the images after N iterations."""
        return self.images_after(iteration) / self.images

    def describe(self) -> str:
        """The plan as a few lines for the console."""
        s = self.schedule
        per_epoch = self.iterations_per_epoch
        shown = f"{per_epoch:.0f}" if per_epoch == int(per_epoch) else f"{per_epoch:.2f}"
        last = self.iterations - self.offset.iterations - (self._steps_ahead - 1) * s.accumulation
        lines = [
            f"{self.images} images x {s.epochs} epoch(s), micro-batch {s.micro_batch}, accumulation {s.accumulation}, "
            f"{self.world_size} process(es): {self.images_per_iteration * s.accumulation} images per optimizer step",
            f"{shown} iterations per epoch, {self.iterations} in all, {self.optimizer_steps} optimizer steps "
            f"({self.warmup_steps} of warm-up)",
        ]
        if self._steps_ahead and last != s.accumulation:
            lines.append(f"the last optimizer step averages {last} iteration(s) instead of {s.accumulation}")
        if self.filled_up:
            lines.append(f"the last iteration is filled up with {self.filled_up} image(s) beyond the last epoch")
        if s.max_iters and self.epoch(self.iterations) < s.epochs:
            lines.append(f"schedule.max_iters ends the run after {self.epoch(self.iterations):.2f} epochs")
        return "\n".join(lines)

    @property
    def _steps_ahead(self) -> int:
        return math.ceil((self.iterations - self.offset.iterations) / self.schedule.accumulation)

    @property
    def _share_done(self) -> float:
        """Share of the run before the offset, 0 to 1, in images."""
        return self.offset.images / max(1, self.images_after(self.iterations) - self.filled_up)

    @property
    def _steps_of_this_size(self) -> float:
        """Optimizer steps of the whole run if all of them had the current size."""
        return self._steps_ahead / (1 - self._share_done) if self._steps_ahead else self.optimizer_steps
