"""A study: training variants over several seeds. Its options, its runs, what they share, its file, its statistics."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.runs import OK, curves, train
from vesselseg.errors import UserError
from vesselseg.machine import available_cores

# Two-sided 95 % quantiles of Student's t with 2 n - 2 degrees of freedom: for the means of n runs each.
STUDENT = {2: 4.303, 3: 2.776, 4: 2.447, 5: 2.306, 6: 2.228}


@dataclass(frozen=True)
class Run:
    """One training of a study."""

    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its work folder."""
        return folder_name(self.variant, self.seed)


@dataclass
class Study:
    """The finished runs of a study and their file, which is rewritten after every run.

    A record holds variant, seed, status, message, seconds, the curves of `runs.curves`, and what the study adds.
    """

    path: Path  # JSON
    settings: dict[str, Any]  # runs with other settings are another study's
    summarise: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]  # records -> the file's "variants"
    runs: list[dict[str, Any]] = field(default_factory=list)
    longest: float = 0.0  # seconds of the longest training of this call
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> None:
        """Take the finished runs of earlier calls; raises UserError where their settings differ."""
        if not self.path.exists():
            return
        found = json.loads(self.path.read_text(encoding="utf-8"))
        if found["settings"] != self.settings:
            raise UserError(
                f"{self.path} holds runs with {found['settings']}, not {self.settings}; choose another --out"
            )
        for run in found["runs"]:
            for kind in ("loss", "dice"):  # JSON has no integer keys
                run[kind] = {int(iteration): value for iteration, value in run[kind].items()}
        self.runs = [run for run in found["runs"] if run["status"] == OK]

    def has(self, run: Run) -> bool:
        """Whether the run is finished."""
        return any((one["variant"], one["seed"], one["status"]) == (run.variant, run.seed, OK) for one in self.runs)

    def add(self, run: dict[str, Any]) -> None:
        """Append a record and rewrite the file; safe from several threads."""
        with self.lock:
            self.runs.append(run)
            self.write()

    def write(self) -> None:
        """Write the file in one step: the machine may be taken away at any moment."""
        content = {"settings": self.settings, "variants": self.summarise(self.runs), "runs": self.runs}
        unfinished = self.path.with_name(self.path.name + ".unfinished")
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self.path)


def study_parser(description: str | None, name: str, **defaults: Any) -> argparse.ArgumentParser:
    """The options of a study.

    name: of its scratch folder. defaults: of `iterations`, `image_size`, `parallel`, `workers` and `budget_s`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder of vesselseg prepare")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--variants", nargs="+", default=[], help="names of variants (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default: %(default)s)")
    parser.add_argument("--iterations", type=int, help="of each training (default: %(default)s)")
    parser.add_argument("--micro-batch", type=int, default=8, help="images per iteration (default: %(default)s)")
    parser.add_argument("--image-size", type=int, help="side of SAM2's view (default: %(default)s)")
    parser.add_argument("--parallel", type=int, help="trainings at the same time (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="data loading processes of each training (default: %(default)s)")
    parser.add_argument("--budget-s", type=float, help="all runs end within this time (default: %(default)s)")
    scratch = Path(tempfile.gettempdir()) / f"vesselseg_{name}"
    parser.add_argument("--scratch", type=Path, default=scratch, help="weights and runs (default: %(default)s)")
    parser.set_defaults(**defaults)
    return parser


def select_runs(names: Collection[str], variants: Sequence[str], seeds: int) -> list[Run]:
    """The runs of the named variants, or of all; raises UserError for an unknown name.

    Seed after seed, in the study's order: a call that runs out of time has all variants of the first seeds.
    """
    unknown = set(names) - set(variants)
    if unknown:
        raise UserError(f"{', '.join(sorted(unknown))}: no such variant; expected some of {'; '.join(variants)}")
    return [Run(name, seed) for seed in range(seeds) for name in variants if name in (names or variants)]


def folder_name(variant: str, seed: int) -> str:
    """Name of a training's work folder."""
    return "".join(letter if letter.isalnum() else "_" for letter in f"{variant} {seed}")


def shared_schedule(args: argparse.Namespace, lines: int, validations: int) -> dict[str, Any]:
    """Config overrides of length, data and logs. lines: points of a loss curve; validations: points of a Dice curve."""
    return {
        "data_root": args.data.resolve(),
        "model.sa2va.sam2.image_size": args.image_size,
        "schedule.max_iters": args.iterations,
        "schedule.epochs": 10**6,
        "schedule.micro_batch": args.micro_batch,
        "loader.num_workers": args.workers,
        "logging.interval": max(1, args.iterations // lines),
        "logging.tensorboard": False,
        "validation.interval": max(1, args.iterations // validations),
        "checkpoint.interval": args.iterations,
        "checkpoint.keep": 1,
    }


def train_run(
    run: Run, config: Path, overrides: Mapping[str, Any], args: argparse.Namespace, limit_s: float, processes: int = 1
) -> dict[str, Any]:
    """Train one run in `args.scratch / run.name` and return its record: outcome and curves."""
    folder = args.scratch / run.name
    threads = {
        "OMP_NUM_THREADS": str(max(1, available_cores() // args.parallel)),
        "OPENCV_FOR_THREADS_NUM": "1",
    }
    outcome = train(config, processes, folder, overrides, flags=("--skip-plan",), environment=threads, limit_s=limit_s)
    record = {"status": outcome.status, "message": outcome.message, "seconds": outcome.seconds}
    return {"variant": run.variant, "seed": run.seed, **record, **curves(folder, args.iterations)}


def over_seeds(found: Sequence[Mapping[int, float]]) -> dict[str, list[float]]:
    """Mean, lowest and highest of several curves, at the iterations that all of them have."""
    shared = sorted(set.intersection(*(set(curve) for curve in found)))
    columns = [[curve[iteration] for curve in found] for iteration in shared]
    return {
        "iter": [float(iteration) for iteration in shared],
        "mean": [mean(column) for column in columns],
        "low": [min(column) for column in columns],
        "high": [max(column) for column in columns],
    }


def seeds_noise(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Half the 95 % interval of the difference of two means, by Student's t; None where a variant has one seed."""
    seeds = min(len(one), len(other))
    if seeds < 2:
        return None
    student = STUDENT.get(seeds, STUDENT[max(STUDENT)])
    return student * math.sqrt(stdev(one) ** 2 / len(one) + stdev(other) ** 2 / len(other))
