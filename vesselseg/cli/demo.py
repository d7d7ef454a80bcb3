"""`vesselseg demo`."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vesselseg.cli.logged import last_lines, run_logged
from vesselseg.errors import UserError

RECIPE = "tiny_cpu"
PROCESSES = 2
SHOWN_LINES = 20  # of a failed step's output
MARKER = "demo.txt"
PATIENT = "(p[0-9]+)_"  # in the drawn files' names
TITLES = {
    "draw": "draw angiograms with LabelMe labels",
    "prepare": "prepare: check, split, rasterise",
    "base": "make a small base model, random weights",
    "train": f"train on {PROCESSES} CPU processes",
    "convert": "convert to Hugging Face, compare masks",
    "frangi": "tune a Frangi filter on the same images",
    "score_frangi": "score the filter",
    "score_model": "score the model",
}


def demo(
    *,
    out: Annotated[Path, Parameter(help="folder for all results; an earlier demo's is replaced")] = Path(
        "work_dirs/demo"
    ),
    images: int = 60,
) -> int:
    """Run the whole path on synthetic angiograms, on the CPU, with the commands that real data goes through.

    vesselseg demo

    Draws LabelMe files, prepares them, trains a small model from scratch with two
    processes, converts it to a Hugging Face folder, and scores it next to a Frangi
    filter whose parameters were searched on the same training images: about five
    minutes. Exit status: 0 when the model has the higher Dice, 1 otherwise or when
    a step failed.

    Args:
        images: synthetic images
    """
    folder = out.resolve()
    clear(folder)
    steps = demo_steps(folder, images)
    print(f"each step's output is in {folder / 'logs'}")
    started = time.perf_counter()
    for number, (name, arguments) in enumerate(steps, start=1):
        log = folder / "logs" / f"{number}_{name}.log"
        if not run_step(f"{number}/{len(steps)} {TITLES[name]}", arguments, log):
            return 1
    print(f"all steps: {time.perf_counter() - started:.0f} s")
    return report(folder)


def clear(out: Path) -> None:
    """Make ``out`` an empty folder; raises UserError when it holds something that no demo wrote."""
    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise UserError(f"{out} exists and is no earlier demo's folder; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    (out / "logs").mkdir(parents=True)
    (out / MARKER).write_text("Written by vesselseg demo, which replaces this folder.\n", encoding="utf-8")


def demo_steps(out: Path, images: int) -> list[tuple[str, list[str]]]:
    """(title, arguments of vesselseg) of each step; they hand files on below ``out``."""
    archive, data, base, run, model, frangi = (
        str(out / name) for name in ("archive", "data", "base", "run", "model", "frangi")
    )
    settings = ["--cfg-options", f"data_root={data}", f"model.sa2va.base={base}"]
    score = ["--data", data, "--split", "test", "--threshold", "auto", "--out"]
    return [
        ("draw", ["synthetic", "--out", archive, "--count", str(images)]),
        ("prepare", ["prepare", archive, "--out", data, "--group-regex", PATIENT]),
        ("base", ["weights", "tiny", base]),
        ("train", ["train", RECIPE, str(PROCESSES), "--out", run, *settings]),
        ("convert", ["convert", f"{run}/config.py", f"{run}/best.pth", "--out", model]),
        ("frangi", ["baselines", "frangi", data, "--split", "val", "test", "--out", frangi]),
        ("score_frangi", ["eval", frangi, *score, str(out / "eval_frangi")]),
        ("score_model", ["eval", model, *score, str(out / "eval_model")]),
    ]


def run_step(title: str, arguments: Sequence[str], log: Path) -> bool:
    """Run one command with its output in ``log``; prints time, and the end of the log when it fails."""
    print(f"{title:48}", end="", flush=True)
    started = time.perf_counter()
    status = run_logged(arguments, log, {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"})  # no GPU, no downloads
    print(f"{time.perf_counter() - started:6.0f} s", flush=True)
    if status == 0:
        return True
    print(f"error: this step ended with status {status}. Last lines of {log}:", file=sys.stderr)
    print(last_lines(log, SHOWN_LINES), file=sys.stderr)
    return False


def report(out: Path) -> int:
    """Print both Dice figures and where the reports are; 0 if the model's is the higher one."""
    filter_dice, model_dice = (dice_of(out / name) for name in ("eval_frangi", "eval_model"))
    print(f"Dice on the held-out test images: Frangi filter {filter_dice:.3f}, model {model_dice:.3f}")
    print(f"data:   {out / 'data' / 'report.html'}")
    print(f"filter: {out / 'eval_frangi' / 'report.html'}")
    print(f"model:  {out / 'eval_model' / 'report.html'}")
    if model_dice > filter_dice:
        return 0
    print("error: the model does not beat the filter", file=sys.stderr)
    return 1


def dice_of(folder: Path) -> float:
    """Mean Dice of an evaluation's results.json."""
    return float(json.loads((folder / "results.json").read_text(encoding="utf-8"))["summary"]["dice"]["mean"])
