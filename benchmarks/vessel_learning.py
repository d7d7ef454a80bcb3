"""What losses and mask heads made for vessels change: three seeds each, judged on images that no choice has seen.

usage: python benchmarks/vessel_learning.py --data data/arcade --out DIR [--iterations 700] [--parallel 12]

Every run is a training of configs/scratch_1gpu.py through tools/dist.sh, from random weights, that differs from the
reference in what VARIANTS names and in nothing else: same images, same iterations. The validation split chooses weights
(best.pth) and threshold, tools/eval.py scores the test split. A seed decides about weights, order and augmentation.

DIR gets vessel_learning.json, .md and .png. Runs that stand in the JSON are left out by the next call, so calls on a
machine lent for minutes add up: nothing else needs to be kept between them. A run begins only if the time is likely to
last; all end by --budget-s. Exit status 1 while runs are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.learning_curves import curves, over_seeds, seeds_noise
from benchmarks.runs import FAILED, OK, REPOSITORY, train
from benchmarks.variants import chosen, folder_name, shared_schedule, study_parser
from vesselseg.errors import UserError
from vesselseg.machine import available_cores
from vesselseg.models.tiny_base import write_tiny_base
from vesselseg.run_tool import run_tool

CONFIG = REPOSITORY / "configs" / "scratch_1gpu.py"
EVAL = [sys.executable, str(REPOSITORY / "tools" / "eval.py")]
NAME = "vessel_learning"
REFERENCE = "BCE + Dice"
LOSS, FINE = "model.loss.", "model.sa2va.sam2.fine_masks"
CLDICE = {f"{LOSS}cldice": 0.5}
VARIANTS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "clDice beside them": CLDICE,
    "boundary-weighted BCE for BCE": {f"{LOSS}bce": 0.0, f"{LOSS}boundary": 2.0},
    "focal Tversky for Dice": {f"{LOSS}dice": 0.0, f"{LOSS}tversky": 0.5},
    "fine masks, features": {FINE: "features"},
    "fine masks, pixels": {FINE: "pixels"},
    "fine masks, features, clDice": {FINE: "features", **CLDICE},
    "fine masks, pixels, clDice": {FINE: "pixels", **CLDICE},
}
# Metrics of the table, as far as the evaluation has them; the JSON holds all.
SHOWN = ("dice", "cldice", "precision", "recall", "recall_thin", "hd95", "assd", "betti_0_error")
LINES = 40  # points of a loss curve
VALIDATIONS = 5
JUDGES = 8  # evaluations at a time, beside the trainings
JUDGING_S = 75.0  # kept for the evaluations that come after the last training


@dataclass(frozen=True)
class Run:
    """One training."""

    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Of its work folder."""
        return folder_name(self.variant, self.seed)


@dataclass
class Study:
    """What is known so far; the file is written anew after each run. longest: seconds of a training of this call."""

    path: Path
    settings: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)
    longest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> None:
        """Take finished runs of earlier calls; raises UserError where they had other settings."""
        if not self.path.exists():
            return
        found = json.loads(self.path.read_text(encoding="utf-8"))
        if found["settings"] != self.settings:
            raise UserError(f"{self.path} holds runs with {found['settings']}, not {self.settings}; name another --out")
        for run in found["runs"]:
            for kind in ("loss", "dice"):
                run[kind] = {int(iteration): value for iteration, value in run[kind].items()}
        self.runs = [run for run in found["runs"] if run["status"] == OK]

    def lacks(self, run: Run) -> bool:
        """Whether it is still to be done."""
        return not any((one["variant"], one["seed"]) == (run.variant, run.seed) for one in self.runs)

    def add(self, run: dict[str, Any]) -> None:
        """One more, and the file with it."""
        with self.lock:
            self.runs.append(run)
            self.write()

    def write(self) -> None:
        """The file, whole or not at all: a machine that is lent for minutes may be gone at any moment."""
        content = {"settings": self.settings, "variants": summarise(self.runs), "runs": self.runs}
        unfinished = self.path.with_name(self.path.name + ".unfinished")
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self.path)


def main() -> int:
    """Runs that are missing, then table and picture of all."""
    args = parse_arguments()
    runs = [Run(variant, seed) for variant, seed in chosen(args.variants, list(VARIANTS), args.seeds)]
    subprocess.run([*EVAL, "--help"], check=True, stdout=subprocess.DEVNULL)  # a package that lacks is told at once
    args.out.mkdir(parents=True, exist_ok=True)
    told = {"iterations": args.iterations, "micro_batch": args.micro_batch, "image_size": args.image_size}
    study = Study(args.out / f"{NAME}.json", told)
    study.read()
    run_all([run for run in runs if study.lacks(run)], study, args)
    study.write()
    report = table(summarise(study.runs))
    (args.out / f"{NAME}.md").write_text(report, encoding="utf-8")
    draw(study.runs, args.out / f"{NAME}.png")
    print(report)
    left = [run for run in runs if not any(_is(run, one) and one["status"] == OK for one in study.runs)]
    print(f"{len(runs) - len(left)} of {len(runs)} runs are done")
    return 1 if left else 0


def parse_arguments() -> argparse.Namespace:
    """Command line -> settings."""
    usual = {"iterations": 700, "image_size": 512, "parallel": 12, "workers": 1, "budget_s": 560.0}
    return study_parser(__doc__, NAME, **usual).parse_args()


def run_all(runs: Sequence[Run], study: Study, args: argparse.Namespace) -> None:
    """Train several at a time, and evaluate what has come to its end beside the next trainings."""
    deadline = time.monotonic() + args.budget_s
    shutil.rmtree(args.scratch, ignore_errors=True)
    write_tiny_base(args.scratch / "base")
    with ThreadPoolExecutor(JUDGES) as judges, ThreadPoolExecutor(args.parallel) as trainers:
        judging: list[Future[None]] = []

        def one(run: Run) -> None:
            left = deadline - JUDGING_S - time.monotonic()
            if left < study.longest:
                print(f"left for the next call: {run.variant}, seed {run.seed}", flush=True)
                return
            trained = train_one(run, args, left)
            study.longest = max(study.longest, trained["seconds"])
            if trained["status"] == OK:
                judging.append(judges.submit(judge, run, trained, study, args))
            else:
                study.add(trained)
                print(f"{trained['status']}: {run.variant}, seed {run.seed}\n{trained['message']}", flush=True)

        list(trainers.map(one, runs))
        for future in judging:
            future.result()


def train_one(run: Run, args: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """One training: how it went, and its curves."""
    folder = args.scratch / run.name
    overrides = {**shared_settings(args), **VARIANTS[run.variant], "seed": run.seed}
    each = str(max(1, available_cores() // args.parallel))
    threads = {"OMP_NUM_THREADS": each, "OPENCV_FOR_THREADS_NUM": "1"}
    outcome = train(CONFIG, 1, folder, overrides, flags=("--skip-plan",), environment=threads, limit_s=limit_s)
    told = {"status": outcome.status, "message": outcome.message, "seconds": outcome.seconds}
    return {"variant": run.variant, "seed": run.seed, **told, **curves(folder, args.iterations)}


def shared_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs share, beside the config."""
    return {**shared_schedule(args, LINES, VALIDATIONS), "model.sa2va.base": args.scratch / "base"}


def judge(run: Run, trained: dict[str, Any], study: Study, args: argparse.Namespace) -> None:
    """Score the test split at the threshold of the validation split; the work folder is removed behind it."""
    folder = args.scratch / run.name
    command = [*EVAL, str(folder / "best.pth"), "--data", str(args.data), "--split", "test", "--threshold", "auto"]
    done = subprocess.run(
        [*command, "--out", str(folder / "eval")],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        study.add({**trained, "status": FAILED, "message": (done.stdout + done.stderr)[-2000:]})
        print(f"not evaluated: {run.variant}, seed {run.seed}\n{done.stderr[-2000:]}", flush=True)
        return
    results = json.loads((folder / "eval" / "results.json").read_text(encoding="utf-8"))
    metrics = {name: row["mean"] for name, row in results["summary"].items()}
    study.add({**trained, "threshold": results["threshold"]["value"], "metrics": metrics})
    shutil.rmtree(folder)
    print(f"{run.variant}, seed {run.seed}: Dice {metrics['dice']:.4f}, {trained['seconds']:.0f} s", flush=True)


def _is(run: Run, record: Mapping[str, Any]) -> bool:
    return (run.variant, run.seed) == (record["variant"], record["seed"])


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Variant -> metric -> its value for every seed, mean, standard deviation, difference to the reference.

    noise: what seeds alone explain of the difference, 95 %; None with fewer than two seeds of either.
    """
    done = sorted((run for run in runs if run["status"] == OK), key=lambda run: run["seed"])
    by_variant = {name: [run for run in done if run["variant"] == name] for name in VARIANTS}
    reference = by_variant[REFERENCE]
    found: dict[str, Any] = {}
    for name, own in by_variant.items():
        metrics = {}
        for metric in own[0]["metrics"] if own else ():
            values, others = _values(own, metric), _values(reference, metric)
            if values:
                metrics[metric] = {
                    "values": values,
                    "mean": mean(values),
                    "deviation": stdev(values) if len(values) > 1 else None,
                    "difference": mean(values) - mean(others) if others and own is not reference else None,
                    "noise": seeds_noise(others, values) if own is not reference else None,
                }
        if own:
            memory = max((run["memory_gib"] for run in own if run["memory_gib"] is not None), default=None)
            found[name] = {"seeds": [run["seed"] for run in own], "memory_gib": memory, "metrics": metrics}
    return found


def _values(runs: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    return [run["metrics"][metric] for run in runs if run["metrics"].get(metric) is not None]


def table(variants: Mapping[str, Any]) -> str:
    """Markdown: mean and standard deviation over seeds, and below the difference to the reference, +- its noise."""
    shown = [name for name in SHOWN if any(name in one["metrics"] for one in variants.values())]
    lines = ["| variant | seeds | " + " | ".join(shown) + " | peak GiB |", "|---" * (len(shown) + 3) + "|"]
    for name, one in variants.items():
        cells = [_cell(one["metrics"].get(metric)) for metric in shown]
        memory = "" if one["memory_gib"] is None else f"{one['memory_gib']:.2f}"
        lines.append(f"| {name} | {len(one['seeds'])} | " + " | ".join(cells) + f" | {memory} |")
    return "\n".join(lines) + "\n"


def _cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    cell = f"{metric['mean']:.3f}"
    if metric["deviation"] is not None:
        cell += f" ± {metric['deviation']:.3f}"
    difference, noise = metric["difference"], metric["noise"]
    if difference is None:
        return cell
    change = f"{difference:+.3f}" + ("" if noise is None else f" ± {noise:.3f}")
    return f"{cell} ({f'**{change}**' if noise is not None and abs(difference) > noise else change})"


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Validation Dice by iteration, mean and range of the seeds; Dice and clDice of each run on the test split."""
    figure, (left, *right) = plt.subplots(
        1, 3, figsize=(14, 4.8), constrained_layout=True, gridspec_kw={"width_ratios": (2, 1, 1)}
    )
    done = [run for run in runs if run["status"] == OK]
    names = [name for name in VARIANTS if any(run["variant"] == name for run in done)]
    for place, name in enumerate(names):
        own = [run for run in done if run["variant"] == name]
        curve = over_seeds([run["dice"] for run in own])
        (line,) = left.plot(curve["iter"], curve["mean"], label=name, linewidth=1.2)
        left.fill_between(curve["iter"], curve["low"], curve["high"], color=line.get_color(), alpha=0.12)
        for panel, metric in zip(right, ("dice", "cldice")):
            values = _values(own, metric)
            panel.scatter(values, [place] * len(values), color=line.get_color(), s=22)
            panel.plot([mean(values)] * 2, [place - 0.3, place + 0.3], color=line.get_color(), linewidth=2)
    left.set(xlabel="iteration", ylabel="validation Dice, best threshold")
    if names:
        left.legend(frameon=False, fontsize=8, loc="lower right")
    for panel, title in zip(right, ("Dice", "clDice")):
        panel.set(title=f"{title}, test split", yticks=range(len(names)), yticklabels=[])
        panel.invert_yaxis()
    right[0].set_yticklabels(names)
    for panel in (left, *right):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_tool(main)
