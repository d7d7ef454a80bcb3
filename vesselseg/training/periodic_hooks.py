"""Hooks that act every N iterations: validation with best.pth, and checkpoints to resume from."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from vesselseg.config.settings import Checkpoint, Validation
from vesselseg.dataset.batch import Batch
from vesselseg.dataset.manifest import Record
from vesselseg.inference.processor import Processor
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.registry import HOOKS
from vesselseg.training.checkpoint import RunIdentity, prune, trained_state, write_resume, write_weights
from vesselseg.training.run_log import RunLog
from vesselseg.training.train_step import StepResult
from vesselseg.training.validation import registered_metrics, validate

logger = logging.getLogger(__name__)
BEST = "best.pth"


@dataclass(frozen=True)
class CheckpointFacts:
    """Contents of every checkpoint file in addition to the weights; plain values.

    training_images: see `Sa2VAConfig`; those of this run, known to the first process only, which writes. A checkpoint
    also contains those of its base and of the checkpoint that the run started from.
    """

    model_config: dict[str, Any]
    config: str
    data_root: str
    data_fingerprint: str
    training_images: str


class PeriodicHook(Hook):
    """Acts at the first optimizer step at or after every multiple of an interval, and after the last iteration.

    Between optimizer steps, gradients are pending that no checkpoint contains, so a resumed run would not be exact.
    """

    def __init__(self, interval: int | None) -> None:
        self.interval = interval
        self.previous = 0

    def before_train(self, runner: Any) -> None:
        """A resumed run counts from the iteration at which it was saved."""
        self.previous = runner.iter

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Batch | None = None, outputs: StepResult | None = None
    ) -> None:
        """Act if an interval has passed."""
        if self.interval is None:
            return
        passed = runner.iter // self.interval > self.previous // self.interval
        at_boundary = outputs is not None and outputs.at_boundary
        if runner.train_loop.finished or (passed and at_boundary):
            self.previous = runner.iter
            self.act(runner)

    def act(self, runner: Any) -> None:
        """Do the periodic work; called by all processes."""
        raise NotImplementedError


@HOOKS.register_module()
class ValidationHook(PeriodicHook):
    """Validates and writes the weights with the best Dice as best.pth."""

    priority = "LOW"

    def __init__(
        self,
        settings: Validation,
        data_root: Path,
        records: list[Record],
        processor: Processor,
        facts: CheckpointFacts,
        log: RunLog,
    ) -> None:
        super().__init__(settings.interval)
        self.metrics = registered_metrics(settings.metrics)
        self.data_root = data_root
        self.records = records
        self.processor = processor
        self.facts = facts
        self.log = log

    def act(self, runner: Any) -> None:
        """One validation, of the averaged weights where the run averages them."""
        with runner.train_loop.averaged_weights():
            self._validate(runner)

    def _validate(self, runner: Any) -> None:
        started = time.perf_counter()
        model = runner.model.model.module.sa2va
        with runner.strategy.ready_to_predict():
            result = validate(Sa2VAPredictor(model, self.processor), self.data_root, self.records, self.metrics)
        state = runner.train_loop.state
        best = state.best_dice is None or result.dice > state.best_dice
        if best:
            state.best_dice, state.threshold = result.dice, result.threshold
            save_weights(runner, Path(runner.work_dir) / BEST, self.facts)
        seconds = time.perf_counter() - started
        self.log.write("val", iter=runner.iter, **result.row(), best=best, seconds=round(seconds, 1))
        if runner.rank == 0:
            further = "".join(f", {name} {value:.4f}" for name, value in result.metrics.items())
            logger.info(
                f"validation at iter {runner.iter}: Dice {result.dice:.4f}, IoU {result.iou:.4f}{further} at threshold "
                f"{result.threshold:.2f} ({result.items} items, {seconds:.0f} s){', best so far' if best else ''}"
            )
            shown = {name: value for name, value in result.row().items() if name != "items"}
            runner.visualizer.add_scalars({f"val/{name}": value for name, value in shown.items()}, step=runner.iter)


@HOOKS.register_module()
class CheckpointHook(PeriodicHook):
    """Writes iter_N.pth and iter_N.resume and keeps the last few."""

    priority = "VERY_LOW"

    def __init__(self, settings: Checkpoint, facts: CheckpointFacts, identity: RunIdentity) -> None:
        super().__init__(settings.interval)
        self.keep = settings.keep
        self.facts = facts
        self.identity = identity

    def act(self, runner: Any) -> None:
        """One checkpoint; the weights first, because the folder's existence means that both are complete."""
        work_dir = Path(runner.work_dir)
        path = work_dir / f"iter_{runner.iter}.pth"
        loop = runner.train_loop
        with loop.averaged_weights():
            save_weights(runner, path, self.facts)
        write_resume(path.with_suffix(".resume"), runner.model.model, loop.state, self.identity, loop.average)
        if runner.rank == 0:
            prune(work_dir, self.keep)
            logger.info("checkpoint %s (%.1f MB)", path, path.stat().st_size / 1e6)


def save_weights(runner: Any, path: Path, facts: CheckpointFacts) -> None:
    """Write the current trained weights; a collective call."""
    loop = runner.train_loop
    model = runner.model.model.module.sa2va
    weights = trained_state(model)
    if runner.rank == 0:
        model.config.add_training_images(facts.training_images)
        content = {**asdict(facts), "training_images": model.config.training_images}
        meta = {"iter": loop.iter, "epoch": loop.plan.epoch(loop.iter), "best_dice": loop.state.best_dice}
        write_weights(path, weights, **content, threshold=loop.state.threshold, meta=meta)
