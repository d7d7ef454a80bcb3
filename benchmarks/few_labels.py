"""Masks from few labels: a U-Net and vesselseg, from random weights, on 10 to 1,000 labelled angiograms.

usage: python benchmarks/few_labels.py --data data/arcade --out DIR [--labels 20 100 1000] [--methods ...] [--seeds 3]

DATA is made by few_labels_data.py. For every number of labels and seed, a nested subset of the training split is
labelled; a tenth of it chooses weights and threshold. METHODS differ in model and recipe, see below. All are trained
for the same number of images (IMAGES) and scored on the test split.

DIR gets few_labels.json (every run, every image), .md, .png and _vessels.png (thin vessels found and lost), and
masks.zip with the masks of the first seed. A later call skips the runs in the JSON, so a study can be finished in
several short calls: only DIR has to be kept between them. While --scratch is kept too, trainings that were cut off are
resumed. A run starts only if it is expected to end within --budget-s. Exit status 1 while runs are missing.

All 72 runs (6 numbers of labels, 4 methods, 3 seeds) see 2.1 million images, about 80 minutes of one H200 with 16
cores; the three numbers of labels by default are half of that.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.few_labels_data import environment, write_labels
from benchmarks.few_labels_report import METRICS, summarise, table, write_pictures
from benchmarks.few_labels_score import MASKS_FILE
from benchmarks.runs import OK, REPOSITORY, failure, train
from benchmarks.variants import folder_name
from benchmarks.vessel_head import UNET as UNET_HEAD
from vesselseg.errors import UserError
from vesselseg.machine import available_cores
from vesselseg.models.tiny_base import write_tiny_base
from vesselseg.run_tool import run_tool

NAME = "few_labels"
CONFIG = REPOSITORY / "configs" / "scratch_1gpu.py"
SCORE = [sys.executable, str(REPOSITORY / "benchmarks" / "few_labels_score.py")]
# Images seen in a training, by the largest of these numbers of labels that the run has.
IMAGES = {0: 10_000, 20: 16_000, 40: 20_000, 100: 30_000, 400: 45_000, 1000: 60_000}
VALIDATIONS = 8
EXPECTED_RATE = 60.0  # images per second of one of several trainings on a GPU, until a run has been measured
AFTERWARDS_S = 60.0  # start, evaluation
UNET, TRAIN = "unet", "train"


@dataclass(frozen=True)
class Method:
    """kind: UNET (`vesselseg baselines unet`) or TRAIN (`vesselseg train`); settings: its options, or overrides."""

    kind: str
    settings: Mapping[str, Any]


HEAD = "model.sa2va.sam2.vessel_head"
METHODS = {
    "U-Net, nnU-Net's recipe": Method(UNET, {"optimizer": "sgd", "augment": "nnunet"}),
    "U-Net, our augmentation": Method(UNET, {"optimizer": "adamw", "augment": "oriented"}),
    "vesselseg, SAM2's decoder": Method(TRAIN, {HEAD: None}),
    "vesselseg, vessel head": Method(TRAIN, {HEAD: {**UNET_HEAD, "at_once": None, "compile": True}}),
}
REFERENCE = "U-Net, nnU-Net's recipe"


@dataclass(frozen=True, order=True)
class Run:
    """One training."""

    seed: int
    labels: int
    method: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return folder_name(f"{self.method} {self.labels}", self.seed)


@dataclass
class Study:
    """Finished runs and the folder that holds them, which is rewritten after every run."""

    folder: Path
    settings: dict[str, Any]  # runs with other settings are another study's
    runs: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def path(self) -> Path:
        """The JSON."""
        return self.folder / f"{NAME}.json"

    def read(self) -> None:
        """Take the finished runs of earlier calls; raises UserError where their settings differ."""
        if not self.path.exists():
            return
        found = json.loads(self.path.read_text(encoding="utf-8"))
        if found["settings"] != self.settings:
            raise UserError(f"{self.path} holds runs with {found['settings']}, not {self.settings}; use another --out")
        self.runs = found["runs"]

    def has(self, run: Run) -> bool:
        """Whether the run is finished."""
        wanted = (run.seed, run.labels, run.method)
        return any((one["seed"], one["labels"], one["method"]) == wanted for one in self.runs)

    def seconds(self, images: int, labels: int) -> float:
        """How long a run is expected to take, by the slowest of those that are done."""
        rates = [one["images"] / one["seconds"] for one in self.runs if one["labels"] >= labels]
        return images / min(rates, default=EXPECTED_RATE) + AFTERWARDS_S

    def add(self, run: dict[str, Any], masks: Path | None) -> None:
        """Append a finished run and its masks, and rewrite the file in one step; safe from several threads."""
        with self.lock:
            if masks is not None:
                with zipfile.ZipFile(self.folder / "masks.zip", "a") as file:
                    file.write(masks, f"{folder_name(run['method'] + ' ' + str(run['labels']), run['seed'])}.npz")
            self.runs.append(run)
            self.write()

    def write(self) -> None:
        """The file, with a summary of all runs."""
        content = {"settings": self.settings, "summary": summarise(self.runs, REFERENCE), "runs": self.runs}
        unfinished = self.path.with_name(self.path.name + ".unfinished")
        unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")
        unfinished.replace(self.path)


def main() -> int:
    """Train and score the missing runs, then write table and pictures of all."""
    args = parse_arguments()
    unknown = sorted(set(args.methods) - set(METHODS))
    if unknown:
        raise UserError(f"--methods {', '.join(unknown)}: expected some of {'; '.join(METHODS)}")
    runs = [
        Run(seed, labels, method)
        for seed in range(args.seeds)
        for labels in sorted(args.labels, reverse=True)  # the longest first
        for method in METHODS
        if method in (args.methods or METHODS)
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {"images": args.images or IMAGES, "batch": args.batch, "size": args.size, "width": args.width}
    study = Study(args.out, json.loads(json.dumps(settings)))
    study.read()
    run_all([run for run in runs if not study.has(run)], study, args)
    study.write()
    report = table(summarise(study.runs, REFERENCE))
    (args.out / f"{NAME}.md").write_text(report, encoding="utf-8")
    write_pictures(study.runs, REFERENCE, list(METHODS), args.data, args.out, NAME)
    print(report)
    done = sum(study.has(run) for run in runs)
    print(f"{done} of {len(runs)} runs are done")
    return 0 if done == len(runs) else 1


def parse_arguments() -> argparse.Namespace:
    """Command line -> settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder of few_labels_data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--labels", type=int, nargs="+", default=[20, 100, 1000], help="default: 20 100 1000")
    parser.add_argument("--methods", nargs="+", default=[], help="names of methods (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--images", type=int, help="seen by every training (default: by the number of labels)")
    parser.add_argument("--batch", type=int, default=12, help="images per step (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="side of the view (default: %(default)s)")
    parser.add_argument("--width", type=int, default=32, help="channels of the U-Net's first level")
    parser.add_argument("--gpus", type=int, default=1, help="0: the CPU (default: %(default)s)")
    parser.add_argument("--parallel", type=int, default=4, help="trainings at a time per GPU (default: %(default)s)")
    parser.add_argument("--budget-s", type=float, default=560.0, help="all runs end by then (default: %(default)s)")
    scratch = Path(tempfile.gettempdir()) / f"vesselseg_{NAME}"
    parser.add_argument("--scratch", type=Path, default=scratch, help="subsets and runs (default: %(default)s)")
    return parser.parse_args()


def run_all(runs: Sequence[Run], study: Study, args: argparse.Namespace) -> None:
    """Train several at a time; each run is scored where it was trained."""
    deadline = time.monotonic() + args.budget_s
    if not (args.scratch / "base" / "config.json").exists():
        write_tiny_base(args.scratch / "base")
    places: queue.Queue[str] = queue.Queue()
    for gpu in [str(number) for number in range(args.gpus)] or [""]:
        for _ in range(args.parallel):
            places.put(gpu)

    def one(run: Run) -> None:
        place = places.get()
        try:
            left = deadline - time.monotonic()
            if left < study.seconds(images_of(run, args), run.labels):
                print(f"left for the next call: {run.method}, {run.labels} labels, seed {run.seed}", flush=True)
                return
            train_and_score(run, study, args, place, deadline)
        finally:
            places.put(place)

    with ThreadPoolExecutor(places.qsize()) as pool:
        list(pool.map(one, runs))


def images_of(run: Run, args: argparse.Namespace) -> int:
    """Images that the run sees."""
    return args.images or IMAGES[max(number for number in IMAGES if number <= run.labels)]


def train_and_score(run: Run, study: Study, args: argparse.Namespace, place: str, deadline: float) -> None:
    """One run from its subset to its record; what fails is reported and left for the next call."""
    started = time.monotonic()
    folder = args.scratch / run.name
    data = args.scratch / f"data_{run.labels}_{run.seed}_{folder_name(run.method, run.seed)}"
    training = write_labels(args.data, run.labels, run.seed, data)
    threads = str(max(1, available_cores() // (args.parallel * max(1, args.gpus))))
    variables = {"CUDA_VISIBLE_DEVICES": place, "OMP_NUM_THREADS": threads, "OPENCV_FOR_THREADS_NUM": "1"}
    step = train_unet if METHODS[run.method].kind == UNET else train_vesselseg
    source, problem = step(run, data, folder, training, args, variables, deadline - time.monotonic())
    if not problem:
        command = [*SCORE, str(source), "--data", str(data), "--out", str(folder / "score")]
        problem = call(command, variables, deadline - time.monotonic())
    if problem:
        print(f"failed: {run.method}, {run.labels} labels, seed {run.seed}\n{problem}", flush=True)
        return
    results = json.loads((folder / "score" / "results.json").read_text(encoding="utf-8"))
    items = {item["image"]: [item["metrics"].get(metric) for metric in METRICS] for item in results["items"]}
    record = {
        **{"seed": run.seed, "labels": run.labels, "method": run.method, "training_images": training},
        **{"images": images_of(run, args), "seconds": round(time.monotonic() - started, 1)},
        **{"threshold": results["threshold"]["value"], "items": items},
    }
    study.add(record, folder / "score" / MASKS_FILE if run.seed == 0 else None)
    shutil.rmtree(folder)
    dice = results["summary"]["dice"]["mean"]
    print(f"{run.method}, {run.labels} labels, seed {run.seed}: Dice {dice:.4f}, {record['seconds']} s", flush=True)


def train_unet(
    run: Run, data: Path, folder: Path, training: int, args: argparse.Namespace, variables: dict[str, str], left: float
) -> tuple[Path, str]:
    """(predictions, "") or (anything, what went wrong)."""
    steps = max(50, -(-training // args.batch)) if not args.images else 1
    epochs = max(1, round(images_of(run, args) / (steps * args.batch)))
    out = folder / "predictions"
    command = [sys.executable, "-m", "vesselseg", "baselines", "unet", str(data), "--out", str(out), "--force"]
    options = {"size": args.size, "width": args.width, "epochs": epochs, "steps": steps, "batch": args.batch}
    options |= {"minutes": max(0.1, (left - AFTERWARDS_S) / 60), "seed": run.seed, **METHODS[run.method].settings}
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return out, call([*command, *(["--compile"] if args.gpus else [])], variables, left)


def train_vesselseg(
    run: Run, data: Path, folder: Path, training: int, args: argparse.Namespace, variables: dict[str, str], left: float
) -> tuple[Path, str]:
    """(checkpoint, "") or (anything, what went wrong)."""
    iterations = -(-images_of(run, args) // args.batch)
    interval = max(1, iterations // VALIDATIONS)
    overrides = {
        "data_root": data,
        "model.sa2va.base": args.scratch / "base",
        "model.sa2va.sam2.image_size": args.size,
        "schedule.max_iters": iterations,
        "schedule.epochs": 10**6,
        "schedule.micro_batch": args.batch,
        "loader.num_workers": 3 if args.gpus else 0,
        "logging.interval": max(1, iterations // 40),
        "logging.tensorboard": False,
        "validation.interval": interval,
        "checkpoint.interval": interval,
        "checkpoint.keep": 1,
        "seed": run.seed,
        **METHODS[run.method].settings,
    }
    flags = ("--skip-plan", "--resume", "auto")
    outcome = train(CONFIG, 1, folder, overrides, flags=flags, environment=variables, limit_s=left - AFTERWARDS_S / 2)
    return folder / "best.pth", "" if outcome.status == OK else f"{outcome.status}: {outcome.message}"


def call(command: Sequence[str], variables: Mapping[str, str], limit_s: float) -> str:
    """Run a command; returns "" or what went wrong."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**environment(), **variables}, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return f"not done within {limit_s:.0f} s"
    return "" if done.returncode == 0 else failure(done.stdout + done.stderr)


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]
    run_tool(main)
