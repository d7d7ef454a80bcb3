"""Effect of losses and mask heads for vessels on held-out images, three seeds each.

usage: python benchmarks/vessel_learning.py --data data/arcade --out DIR [--iterations 700] [--parallel 12]

Every run trains configs/scratch_1gpu.py from random weights through tools/dist.sh and differs from the reference only
by the settings in VARIANTS. Weights (best.pth) and threshold are chosen on the validation split; vesselseg eval scores
the test split. The seed determines weights, order of images and augmentation.

DIR gets vessel_learning.json, .md and .png. A later call skips the runs in the JSON, so a study can be finished in
several short calls; only the JSON has to be kept between them. A run starts only if the longest run so far would still
fit into --budget-s. Exit status 1 while runs are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import FAILED, OK, REPOSITORY
from benchmarks.variants import (
    Run,
    Study,
    over_seeds,
    seeds_noise,
    select_runs,
    shared_schedule,
    study_parser,
    train_run,
)
from vesselseg.models.tiny_base import write_tiny_base
from vesselseg.run_tool import run_tool

CONFIG = REPOSITORY / "configs" / "scratch_1gpu.py"
EVAL = [sys.executable, str(REPOSITORY / "tools" / "eval.py")]
NAME = "vessel_learning"
REFERENCE = "BCE + Dice"
LOSS, FINE = "model.loss.", "model.sa2va.sam2.fine_masks"
CLDICE = {f"{LOSS}cldice": 0.5}
# The reference has the losses of configs that start from pretrained weights, not those of CONFIG.
BASE_LOSS = {f"{LOSS}bce": 2.0, f"{LOSS}dice": 0.5, f"{LOSS}thin_weight": 0.0, f"{LOSS}skeleton_recall": 0.0}
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
# Columns of the table, where the evaluation has them; the JSON holds all metrics.
SHOWN = ("dice", "cldice", "precision", "recall", "recall_thin", "hd95", "assd", "betti_0_error")
LINES = 40  # points of a loss curve
VALIDATIONS = 5
EVALUATORS = 8  # evaluations at the same time, in addition to the trainings
EVALUATION_S = 75.0  # of the budget, reserved for the evaluations after the last training


def main() -> int:
    """Train and evaluate the missing runs, then write table and picture of all."""
    args = parse_arguments()
    runs = select_runs(args.variants, list(VARIANTS), args.seeds)
    subprocess.run([*EVAL, "--help"], check=True, stdout=subprocess.DEVNULL)  # a missing package is reported at once
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {"iterations": args.iterations, "micro_batch": args.micro_batch, "image_size": args.image_size}
    study = Study(args.out / f"{NAME}.json", settings, summarise)
    study.read()
    run_all([run for run in runs if not study.has(run)], study, args)
    study.write()
    report = table(summarise(study.runs))
    (args.out / f"{NAME}.md").write_text(report, encoding="utf-8")
    draw(study.runs, args.out / f"{NAME}.png")
    print(report)
    done = sum(study.has(run) for run in runs)
    print(f"{done} of {len(runs)} runs are done")
    return 0 if done == len(runs) else 1


def parse_arguments() -> argparse.Namespace:
    """Command line -> settings."""
    defaults = {"iterations": 700, "image_size": 512, "parallel": 12, "workers": 1, "budget_s": 560.0}
    return study_parser(__doc__, NAME, **defaults).parse_args()


def run_all(runs: Sequence[Run], study: Study, args: argparse.Namespace) -> None:
    """Train `args.parallel` runs at a time, and evaluate finished ones during the following trainings."""
    deadline = time.monotonic() + args.budget_s
    shutil.rmtree(args.scratch, ignore_errors=True)
    write_tiny_base(args.scratch / "base")
    with ThreadPoolExecutor(EVALUATORS) as evaluators, ThreadPoolExecutor(args.parallel) as trainers:
        evaluations: list[Future[None]] = []

        def train_one(run: Run) -> None:
            left = deadline - EVALUATION_S - time.monotonic()
            if left < study.longest:
                print(f"left for the next call: {run.variant}, seed {run.seed}", flush=True)
                return
            overrides = {**shared_settings(args), **VARIANTS[run.variant], "seed": run.seed}
            record = train_run(run, CONFIG, overrides, args, left)
            study.longest = max(study.longest, record["seconds"])
            if record["status"] == OK:
                evaluations.append(evaluators.submit(evaluate_run, run, record, study, args))
            else:
                study.add(record)
                print(f"{record['status']}: {run.variant}, seed {run.seed}\n{record['message']}", flush=True)

        list(trainers.map(train_one, runs))
        for evaluation in evaluations:
            evaluation.result()


def shared_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Config overrides of all runs."""
    return {**shared_schedule(args, LINES, VALIDATIONS), "model.sa2va.base": args.scratch / "base", **BASE_LOSS}


def evaluate_run(run: Run, record: dict[str, Any], study: Study, args: argparse.Namespace) -> None:
    """Score the test split at the validation split's threshold, add the record to the study, delete the work folder."""
    folder = args.scratch / run.name
    command = [*EVAL, str(folder / "best.pth"), "--data", str(args.data), "--split", "test", "--threshold", "auto"]
    done = subprocess.run(
        [*command, "--out", str(folder / "eval")],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        study.add({**record, "status": FAILED, "message": (done.stdout + done.stderr)[-2000:]})
        print(f"not evaluated: {run.variant}, seed {run.seed}\n{done.stderr[-2000:]}", flush=True)
        return
    results = json.loads((folder / "eval" / "results.json").read_text(encoding="utf-8"))
    metrics = {name: row["mean"] for name, row in results["summary"].items()}
    study.add({**record, "threshold": results["threshold"]["value"], "metrics": metrics})
    shutil.rmtree(folder)
    print(f"{run.variant}, seed {run.seed}: Dice {metrics['dice']:.4f}, {record['seconds']:.0f} s", flush=True)


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Variant -> metric -> values by seed, mean, standard deviation, difference to the reference.

    noise: see `seeds_noise`; None with fewer than two seeds of either variant.
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
    """Markdown: mean ± standard deviation over seeds, and in brackets the difference to the reference ± its noise."""
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
    """Left: validation Dice by iteration, mean and range of the seeds. Right: each run's test Dice and clDice."""
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
