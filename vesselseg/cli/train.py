"""`vesselseg train`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vesselseg.cli.parameters import CfgOptions, Flat, Positive, Whole
from vesselseg.config.files import find_config, gpus_of
from vesselseg.config.overrides import read_overrides
from vesselseg.training.job_process import TrainOptions, find_micro_batch_in_job, run_in_job, train_in_job

PROFILED = 5  # iterations


@dataclass(frozen=True)
class Options(TrainOptions):
    """`TrainOptions`, by the names of the command line."""

    profile: Annotated[int | None, Parameter(parse=False)] = TrainOptions.profile  # see `train`


def train(
    config: str,
    gpus: Whole | None = None,
    *,
    out: Annotated[Path | None, Parameter(name=("--out", "--work-dir"))] = None,
    options: Annotated[Options, Flat] = Options(),
    profile: Annotated[tuple[Positive, ...] | None, Parameter(consume_multiple=(0, 1))] = None,
    find_micro_batch: bool = False,
    cfg_options: CfgOptions = (),
) -> int:
    """Train by a config on GPUs of this machine, or on its CPU.

    vesselseg train internvl3_8b_4x24gb 4 --out work_dirs/mine --cfg-options data_root=data/mine
    vesselseg train work_dirs/mine/config.py 4 --out work_dirs/mine --resume auto

    Several machines: the same command on each, with NNODES, NODE_RANK, MASTER_ADDR
    and PORT in the environment, or tools/slurm.sh. NODES_WAIT (900): seconds in
    which all must have called the first one. LOST_AFTER (60): seconds without a
    sign of life after which a process or a machine counts as lost, and the job
    ends.

    Args:
        config: a recipe's name, or a config file; vesselseg configs lists the recipes
        gpus: processes on this machine, a GPU each; 0: one on the CPU (default: those of the recipe, or 1)
        out: folder for everything that is written (default: work_dirs/NAME, by the config's name)
        profile: profile this many iterations (without a number: 5) and continue training
        find_micro_batch: test which micro-batch fits, print it, and do not train
    """
    path = find_config(config)
    read_overrides(path, cfg_options)
    if profile is not None:
        options = replace(options, profile=next(iter(profile), PROFILED))
    if not run_in_job():
        return launch(path, gpus, out, options, find_micro_batch, cfg_options)
    if find_micro_batch:
        found = find_micro_batch_in_job(path, cfg_options)
        if found is not None:
            print(found)
    else:
        train_in_job(path, out or Path("work_dirs") / path.stem, cfg_options, options)
    return 0


def launch(
    config: Path,
    gpus: int | None,
    out: Path | None,
    options: TrainOptions,
    find_micro_batch: bool,
    cfg_options: Sequence[str],
) -> int:
    """Start the same command in as many processes as needed; the exit status is the failed process's."""
    os.environ.setdefault("VESSELSEG_STARTED", f"{time.time():.3f}")  # the log counts from here
    from vesselseg.training.launcher import launch as start

    recipe = gpus_of(config)
    processes = gpus if gpus is not None else 1 if recipe is None else recipe
    words = process_arguments(config, out, options, find_micro_batch, cfg_options)
    return start(processes, ["-m", "vesselseg", *words])


def process_arguments(
    config: Path, out: Path | None, options: TrainOptions, find_micro_batch: bool, cfg_options: Sequence[str]
) -> list[str]:
    """The command line of each process, which means the same as the one that starts them."""
    words = ["train", str(config)]
    words += ["--out", str(out)] if out else []
    words += ["--resume", options.resume] if options.resume is not None else []
    words += ["--force"] if options.force else []
    words += ["--skip-plan"] if options.skip_plan else []
    words += ["--profile", str(options.profile)] if options.profile is not None else []
    words += ["--find-micro-batch"] if find_micro_batch else []
    return [*words, "--cfg-options", *cfg_options] if cfg_options else words
