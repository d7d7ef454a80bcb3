"""How many iterations and optimizer steps a run takes, and the learning rate of each: arithmetic only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vesselseg.engine.settings import Schedule


@dataclass(frozen=True)
class TrainPlan:
    """images: of the training split. world_size: training processes. schedule: the config's."""

    images: int
    world_size: int
    schedule: Schedule

    @property
    def images_per_iteration(self) -> int:
        """Images that all processes together take in one iteration."""
        return self.world_size * self.schedule.micro_batch

    @property
    def iterations_per_epoch(self) -> float:
        """May be a fraction: the stream of images runs on from one epoch into the next."""
        return self.images / self.images_per_iteration

    @property
    def iterations(self) -> int:
        """Iterations of the whole run; only the very last one may be filled up."""
        whole = math.ceil(self.images * self.schedule.epochs / self.images_per_iteration)
        return min(whole, self.schedule.max_iters) if self.schedule.max_iters else whole

    @property
    def filled_up(self) -> int:
        """Images that the last iteration takes beyond the last epoch, so that all processes do equal work."""
        return max(0, self.iterations * self.images_per_iteration - self.images * self.schedule.epochs)

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run; a last group of fewer iterations is a step too."""
        return math.ceil(self.iterations / self.schedule.accumulation)

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps in which the learning rate rises."""
        return round(self.schedule.warmup_ratio * self.optimizer_steps)

    def group_size(self, iteration: int) -> int:
        """Iterations in the accumulation group that starts at `iteration` (from 0): fewer at the end of the run."""
        return min(self.schedule.accumulation, self.iterations - iteration)

    def learning_rate(self, step: int) -> float:
        """Of optimizer step `step` (from 0): linear to the peak during warm-up, then a cosine towards zero."""
        warmup = self.warmup_steps
        if step < warmup:
            return self.schedule.lr * (step + 1) / warmup
        done = (step - warmup) / max(1, self.optimizer_steps - warmup)
        return self.schedule.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def epoch(self, iteration: int) -> float:
        """Passes over the images after so many iterations."""
        return iteration * self.images_per_iteration / self.images

    def describe(self) -> str:
        """The plan as a few lines for the console."""
        s = self.schedule
        per_epoch = self.iterations_per_epoch
        shown = f"{per_epoch:.0f}" if per_epoch == int(per_epoch) else f"{per_epoch:.2f}"
        last = self.iterations - (self.optimizer_steps - 1) * s.accumulation
        lines = [
            f"{self.images} images x {s.epochs} epoch(s), micro-batch {s.micro_batch}, accumulation {s.accumulation}, "
            f"{self.world_size} process(es): {self.images_per_iteration * s.accumulation} images per optimizer step",
            f"{shown} iterations per epoch, {self.iterations} in all, {self.optimizer_steps} optimizer steps "
            f"({self.warmup_steps} of warm-up)",
        ]
        if last != s.accumulation:
            lines.append(f"the last optimizer step averages {last} iteration(s) instead of {s.accumulation}")
        if self.filled_up:
            lines.append(f"the last iteration is filled up with {self.filled_up} image(s) beyond the last epoch")
        if s.max_iters and self.epoch(self.iterations) < s.epochs:
            lines.append(f"schedule.max_iters ends the run after {self.epoch(self.iterations):.2f} epochs")
        return "\n".join(lines)
