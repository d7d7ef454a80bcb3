"""Memory and speed of trainings at full shapes: any set of configs in one call, each through tools/dist.sh.

usage: python benchmarks/train_step.py --out DIR [--groups one_gpu] [--rows NAME ...] [--data FOLDER] [--budget-s 540]

Rows come from benchmarks/train_step_rows.yaml. DIR gets rows.json and rows.md, rewritten after every row; rows that
rows.json already holds are skipped, so a second call continues where the first one ran out of time. The columns are
explained in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plans import plan_of
from benchmarks.runs import REPOSITORY, TIME_LIMIT, Outcome, train
from benchmarks.shapes import SAM2_FILE, SIZES, TINY, forget, write_base
from benchmarks.table import figures, markdown, with_rates
from vesselseg.config.load import load_config
from vesselseg.dataset.manifest import read_split
from vesselseg.errors import UserError
from vesselseg.machine import GIB, available_cores
from vesselseg.run_tool import run_tool
from vesselseg.training.console import muted, quieten_imports

ROWS = Path(__file__).with_name("train_step_rows.yaml")
LINE_EVERY = 5  # least iterations between two lines of the log: writing a line synchronises the GPU
SHORTEST_S = 40.0  # no row starts with less time left
DRAWN = {"--count": 90, "--size": 512, "--seed": 0}  # options of the synthetic dataset
Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One training of the table."""

    name: str
    config: str  # path from the repository's root
    shapes: str  # 2B, 8B, 14B, 26B or tiny
    gpus: int = 1  # processes, one per GPU
    cap_gib: float | None = 23.0  # of torch's allocator, per GPU; None: the whole GPU
    steps: int = 30  # iterations, rounded up to whole accumulation groups
    limit_s: float = 120.0  # seconds after which the training is stopped
    checkpoint: bool = False  # write one at the end and report its size
    weights: bool = False  # read full-size weights from the disk instead of drawing them
    overrides: dict[str, Any] = field(default_factory=dict)  # as --cfg-options


@dataclass(frozen=True)
class Setup:
    """Folders and machine that all rows share."""

    scratch: Path  # bases, features and runs
    data: Path  # dataset folder
    images: int  # of its training split
    machine: dict[str, Any]  # figures of machine.py


def main() -> int:
    """Measure the missing rows one after the other, then add their plans."""
    args = parse_arguments()
    deadline = time.monotonic() + args.budget_s
    rows = choose(read_rows(args.file), args.groups, args.rows)
    args.out.mkdir(parents=True, exist_ok=True)
    results = read_results(args.out)
    missing = [row for row in rows if args.again or results.get(row.name, {}).get("status", TIME_LIMIT) == TIME_LIMIT]
    if missing and not args.plans_only:
        setup = prepare(args.scratch, args.data)
        for row in missing:
            left = deadline - time.monotonic()
            if left < SHORTEST_S:
                print(f"no time left: {row.name} and later rows are left for the next call", flush=True)
                break
            results[row.name] = measure(row, setup, min(row.limit_s, left))
            write_results(args.out, results)
    if not args.no_plans:
        add_plans([row for row in rows if row.name in results], results, args.scratch, args.data)
        write_results(args.out, results)
    print((args.out / "rows.md").read_text(encoding="utf-8") if results else "no rows")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Command line -> settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.json and rows.md")
    parser.add_argument("--file", type=Path, default=ROWS, help="rows in groups (default: %(default)s)")
    parser.add_argument("--groups", nargs="+", default=[], help="groups of the file (default: all)")
    parser.add_argument("--rows", nargs="+", default=[], help="names of rows (default: all of the groups)")
    parser.add_argument("--data", type=Path, help="dataset folder (default: drawn angiograms of 512x512)")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "vesselseg_train_step",
                        help="base folders, data and runs (default: %(default)s)")  # fmt: skip
    parser.add_argument("--budget-s", type=float, default=540.0, help="no row starts later (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="repeat rows that rows.json already holds")
    parser.add_argument("--no-plans", action="store_true", help="skip the planned peaks")
    parser.add_argument("--plans-only", action="store_true", help="only add planned peaks; needs no GPU")
    return parser.parse_args()


def read_rows(file: Path) -> dict[str, list[Row]]:
    """Groups of rows by name; raises UserError for unknown settings and for duplicate names."""
    known = {entry.name for entry in fields(Row)}
    groups: dict[str, list[Row]] = {}
    names: set[str] = set()
    for group, entries in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        for entry in entries:
            if entry.keys() - known or entry.get("shapes") not in (*SIZES, TINY) or entry["name"] in names:
                raise UserError(
                    f"{file}, {group}: {entry}: expected unique names, shapes, and settings of {sorted(known)}"
                )
            names.add(entry["name"])
        groups[group] = [Row(**entry) for entry in entries]
    return groups


def choose(groups: dict[str, list[Row]], selected: Sequence[str], names: Sequence[str]) -> list[Row]:
    """Rows of the selected groups (empty: all) with these names (empty: all); raises UserError for unknown ones."""
    unknown = set(selected) - groups.keys()
    rows = [row for group, entries in groups.items() if group in (selected or groups) for row in entries]
    unknown |= set(names) - {row.name for row in rows}
    if unknown:
        raise UserError(f"{', '.join(sorted(unknown))}: no such group or row; groups are {', '.join(groups)}")
    return [row for row in rows if row.name in (names or {row.name})]


def prepare(scratch: Path, data: Path | None) -> Setup:
    """Measure the machine; draw a dataset where none is given."""
    if data is None:
        data = scratch / "data"
        if not data.exists():
            drawn = scratch / "drawn"
            shutil.rmtree(drawn, ignore_errors=True)
            options = [str(item) for pair in DRAWN.items() for item in pair]
            vesselseg("synthetic", "--out", str(drawn), *options, "--quiet")
            vesselseg("prepare", str(drawn), "--out", str(data), "--group-regex", "(p[0-9]+)_")
    shown = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("machine.py"))], check=True, capture_output=True, text=True
    )
    return Setup(scratch, data.resolve(), len(read_split(data, "train")), json.loads(shown.stdout))


def vesselseg(*arguments: str) -> None:
    """Run a command of vesselseg without showing its output."""
    command = [sys.executable, "-m", "vesselseg", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


def base_folder(row: Row, scratch: Path, weights: bool) -> Path:
    """The row's base folder, written at its first use; of those with weights only the last is kept."""
    bases = scratch / "bases"
    folder = bases / (f"{row.shapes}_weights" if weights else row.shapes)
    if not folder.exists():
        for other in bases.glob("*_weights") if weights else ():
            shutil.rmtree(other)
        write_base(folder, row.shapes, weights)
    return folder


def base_settings(row: Row, scratch: Path, weights: bool) -> dict[str, Any]:
    """Config overrides that select the row's weights."""
    folder = base_folder(row, scratch, weights)
    return {
        "model.sa2va.base": folder,
        "model.sa2va.random_weights": not weights and row.shapes != TINY,
        "model.sa2va.sam2.checkpoint": folder / SAM2_FILE if weights else None,
    }


def add_plans(rows: Sequence[Row], results: Results, scratch: Path, data: Path | None) -> None:
    """Add planned peaks to the results of these rows; without a dataset the plan assumes images of 512x512."""
    data = data or scratch / "data"
    shared = {"data_root": data.resolve()} if data.exists() else {}
    settings = [{**shared, **base_settings(row, scratch, weights=False), **row.overrides} for row in rows]
    with ThreadPoolExecutor(max(1, available_cores() // 2)) as pool:
        for row, plan in zip(rows, pool.map(plan_of, [results[row.name] for row in rows], settings)):
            results[row.name].update(plan)


def measure(row: Row, setup: Setup, limit_s: float) -> dict[str, Any]:
    """Run one row; the result of a failed one has its message."""
    print(f"{time.strftime('%H:%M:%S')}  {row.name}", flush=True)
    result = {**asdict(row), **{key: setup.machine[key] for key in ("gpu", "torch", "ceiling_tflops")}}
    work_dir = setup.scratch / "run"
    shutil.rmtree(work_dir, ignore_errors=True)
    try:
        settings = {**base_settings(row, setup.scratch, row.weights), "data_root": setup.data, **row.overrides}
        with muted():  # checking a config imports DeepSpeed, which prints
            schedule = load_config(REPOSITORY / row.config, settings)["schedule"]
    except UserError as error:
        return with_rates(result | asdict(Outcome("failed", str(error), 0.0)))
    settings |= run_settings(row, setup, schedule["micro_batch"], schedule["accumulation"])
    settings["features.folder"] = work_dir / "features"  # a store of its own per row, so that start times compare
    if row.weights:
        forget(base_folder(row, setup.scratch, weights=True))
    outcome = train(
        REPOSITORY / row.config,
        row.gpus,
        work_dir,
        settings,
        flags=() if row.weights else ("--skip-plan",),  # a start from weights is timed with its memory plan
        environment=memory_cap(row.cap_gib, setup.machine["gpu_bytes"]),
        limit_s=limit_s,
    )
    found = figures(work_dir, schedule["micro_batch"], max(1, row.gpus))
    sizes = {key: schedule[key] for key in ("micro_batch", "accumulation")}
    print(f"          {outcome.status} after {outcome.seconds:.0f} s", flush=True)
    return with_rates(result | sizes | asdict(outcome) | found)


def run_settings(row: Row, setup: Setup, micro_batch: int, accumulation: int) -> dict[str, Any]:
    """Config overrides of a measurement: its length and log, no validation, no TensorBoard."""
    line_every = accumulation * math.ceil(LINE_EVERY / accumulation)  # each line averages over whole optimizer steps
    steps = line_every * max(2, math.ceil(row.steps / line_every))
    return {
        "schedule.max_iters": steps,
        "schedule.epochs": math.ceil(steps * micro_batch * max(1, row.gpus) / setup.images),
        "logging.interval": line_every,
        "logging.tensorboard": False,
        "validation.interval": None,
        "checkpoint.interval": steps if row.checkpoint else None,
    }


def memory_cap(cap_gib: float | None, gpu_bytes: int | None) -> dict[str, str]:
    """Environment variables that limit torch's allocator to the cap in every process of a run."""
    if cap_gib is None or gpu_bytes is None:
        return {}
    share = math.floor(cap_gib * GIB / gpu_bytes * 1e6) / 1e6
    settings = "expandable_segments:True" + (f",per_process_memory_fraction:{share}" if share < 1 else "")
    return {"PYTORCH_CUDA_ALLOC_CONF": settings}


def read_results(out: Path) -> Results:
    """Results of earlier calls by row name."""
    path = out / "rows.json"
    return {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))} if path.exists() else {}


def write_results(out: Path, results: Results) -> None:
    """Write rows.json and rows.md, each in one step."""
    complete = [with_rates(row) for row in results.values()]
    for name, text in (("rows.json", json.dumps(complete, indent=1) + "\n"), ("rows.md", markdown(complete))):
        unfinished = out / f"{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(out / name)


if __name__ == "__main__":
    quieten_imports()
    run_tool(main)
