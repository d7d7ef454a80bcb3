"""Report before the first step: what was loaded, the plan, trainable parameters, size of a checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from mmengine.hooks import Hook

from vesselseg.models.lora import count_parameters
from vesselseg.models.sa2va import Sa2VA
from vesselseg.registry import HOOKS
from vesselseg.training.checkpoint import checkpoint_elements
from vesselseg.training.plan import TrainPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """What a run starts from."""

    base: str
    """folder or hub name of the base model"""
    sam2: str | None
    """SAM2's file; None: the base holds it, or it is random"""
    start: str | None
    """checkpoint or folder whose weights replace the base's; None: new adapters"""
    data: str
    """dataset folder"""
    images: dict[str, int]
    """number of images by use: training, validation"""

    def describe(self, random_sam2: bool) -> str:
        """One line each for base, SAM2, start and data."""
        sam2 = self.sam2 or ("random weights" if random_sam2 else "of the base")
        counts = ", ".join(f"{count} {use} images" for use, count in self.images.items())
        rows = {
            "base": self.base,
            "SAM2": sam2,
            "start": self.start or "new adapters",
            "data": f"{self.data}: {counts}",
        }
        return "\n".join(f"{name:<6}{value}" for name, value in rows.items())


@HOOKS.register_module()
class StartReportHook(Hook):
    """Logs what was loaded, the plan of the run, and the parameters by part."""

    priority = "VERY_HIGH"

    def __init__(self, plan: TrainPlan, loaded: Loaded) -> None:
        self.plan = plan
        self.loaded = loaded

    def before_train(self, runner: Any) -> None:
        """Log the report, on the console and in train.log."""
        strategy = runner.strategy
        model = strategy.model.model.module.sa2va
        for line in self.loaded.describe("grounding." in model.randomly_initialised).splitlines():
            logger.info(line)
        for line in self.plan.describe().splitlines():
            logger.info(line)
        logger.info("device %s, precision %s, ZeRO stage %d", strategy.device, strategy.precision, strategy.stage)
        averaged = self.plan.schedule.ema > 0
        for line in parameter_report(model, strategy.dtype.itemsize, averaged).splitlines():
            logger.info(line)


def parameter_report(model: Sa2VA, bytes_per_weight: int, averaged: bool = False) -> str:
    """Trainable and frozen parameters by part, and the size of a checkpoint."""
    counts = count_parameters(model)
    lines = [f"{'part':<20}{'trainable':>15}{'frozen':>15}"]
    lines += [f"{part:<20}{count.trainable:>15,}{count.frozen:>15,}" for part, count in counts.items()]
    trainable = sum(count.trainable for count in counts.values())
    frozen = sum(count.frozen for count in counts.values())
    lines.append(f"{'all':<20}{trainable:>15,}{frozen:>15,}")
    weights = checkpoint_elements(model) * bytes_per_weight
    # In float32 a master copy of the weights and Adam's two moments; with an average that, and the weights themselves.
    optimizer = trainable * (12 + (4 + bytes_per_weight) * averaged)
    if "grounding." in model.randomly_initialised:
        lines.append("SAM2 starts from random weights: the base holds none and model.sa2va.sam2.checkpoint is not set")
    lines.append(
        f"a checkpoint takes about {weights / 1e6:,.1f} MB and {optimizer / 1e6:,.1f} MB more to resume from it"
    )
    return "\n".join(lines)
