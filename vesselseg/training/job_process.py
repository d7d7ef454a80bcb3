"""One process of a training job: reads the config, trains, and leaves a mistake to the first process to report.

Light to import: heartbeats begin before torch and DeepSpeed, which take many seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vesselseg.training.console import muted, quieten_imports
from vesselseg.training.heartbeat import start_heartbeat

HEAD_START = 5.0  # seconds in which the first process's message about the same mistake ends the whole job


@dataclass(frozen=True)
class TrainOptions:
    """What a training may do besides training by its config."""

    resume: str | None = None
    """auto: the newest complete checkpoint of the work folder; or a checkpoint's path"""
    force: bool = False
    """move an earlier run's results aside; also continue where the memory plan says it cannot fit"""
    skip_plan: bool = False
    """do not plan the memory before training"""
    profile: int | None = None
    """profile this many iterations and continue training"""


def run_in_job() -> bool:
    """Whether this process was started as one of a job, by the launcher or by torchrun."""
    return "RANK" in os.environ


def train_in_job(config: Path, work_dir: Path, overrides: Sequence[str], options: TrainOptions) -> None:
    """Check the config, train. Raises UserError and its kin; all but the first process wait before they do."""
    start_heartbeat()
    try:
        quieten_imports()
        with muted():
            from vesselseg.config.load import load_config
            from vesselseg.config.overrides import parse_overrides
            from vesselseg.training.launch import LostProcessError, train
        values = load_config(config, parse_overrides(overrides))
        try:
            train(values, work_dir, options.resume, options.force, options.skip_plan, options.profile)
        except LostProcessError:
            time.sleep(HEAD_START)  # the launcher ends this process meanwhile and names the one that failed
            raise
    except (Exception, SystemExit):
        wait_for_first()
        raise


def find_micro_batch_in_job(config: Path, overrides: Sequence[str]) -> str | None:
    """The largest micro-batch that fits, as the first process describes it; None on the others."""
    start_heartbeat()
    try:
        quieten_imports()
        with muted():
            from vesselseg.config.load import load_config
            from vesselseg.config.overrides import parse_overrides
            from vesselseg.training.micro_batch_search import find_micro_batch
        found = find_micro_batch(load_config(config, parse_overrides(overrides)))
    except (Exception, SystemExit):
        wait_for_first()
        raise
    return found if int(os.environ["RANK"]) == 0 else None


def wait_for_first() -> None:
    """Let the first process report what is wrong in all of them."""
    if int(os.environ.get("RANK", "0")):
        time.sleep(HEAD_START)
