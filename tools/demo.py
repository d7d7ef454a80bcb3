"""The whole path on synthetic angiograms, on the CPU, with the tools that real data goes through.

    make demo

Draws LabelMe files, prepares them, trains a small model from scratch with two processes, converts it to a Hugging Face
folder, and scores it beside a Frangi filter whose parameters were searched on the same training images. Everything is
written below work_dirs/demo. Exit status: 0 when the model has the higher Dice, 1 otherwise or when a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vesselseg.errors import UserError
from vesselseg.run_tool import run_tool

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = "configs/tiny_cpu.py"
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


def main() -> int:
    """Run every step, print the figures; 0 if the model beats the filter."""
    arguments = _arguments()
    out: Path = arguments.out.resolve()
    clear(out)
    steps = demo_steps(out, arguments.images)
    print(f"each step's output goes to {out / 'logs'}")
    started = time.perf_counter()
    for number, (name, command) in enumerate(steps, start=1):
        if not run_step(f"{number}/{len(steps)} {TITLES[name]}", command, out / "logs" / f"{number}_{name}.log"):
            return 1
    print(f"all steps: {time.perf_counter() - started:.0f} s")
    return report(out)


def clear(out: Path) -> None:
    """Make ``out`` an empty folder; raises UserError when it holds something that no demo wrote."""
    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise UserError(f"{out} exists and is no earlier demo's folder; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    (out / "logs").mkdir(parents=True)
    (out / MARKER).write_text("Written by tools/demo.py, which replaces this folder.\n", encoding="utf-8")


def demo_steps(out: Path, images: int) -> list[tuple[str, list[str]]]:
    """(title, command) of each step; they hand files on below ``out``."""
    archive, data, base, run, model, frangi = (
        str(out / name) for name in ("archive", "data", "base", "run", "model", "frangi")
    )
    train = ["bash", "tools/dist.sh", "train", CONFIG, str(PROCESSES), "--work-dir", run]
    options = ["--cfg-options", f"data_root={data}", f"model.sa2va.base={base}"]
    score = ["--data", data, "--split", "test", "--threshold", "auto", "--out"]
    python = sys.executable
    return [
        ("draw", [python, "tools/make_synthetic.py", "--out", archive, "--count", str(images)]),
        ("prepare", [python, "tools/prepare_data.py", archive, "--out", data, "--group-regex", PATIENT]),
        ("base", [python, "tools/make_tiny_base.py", base]),
        ("train", [*train, *options]),
        ("convert", [python, "tools/convert_to_hf.py", f"{run}/config.py", f"{run}/best.pth", "--save-path", model]),
        ("frangi", [python, "tools/baseline_frangi.py", data, "--split", "val", "test", "--out", frangi]),
        ("score_frangi", [python, "tools/eval.py", frangi, *score, str(out / "eval_frangi")]),
        ("score_model", [python, "tools/eval.py", model, *score, str(out / "eval_model")]),
    ]


def run_step(title: str, command: Sequence[str], log: Path) -> bool:
    """Run one command with its output in ``log``; prints time, and the end of the log when it fails."""
    print(f"{title:48}", end="", flush=True)
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        file.write(" ".join(command) + "\n")
        file.flush()
        process = subprocess.run(
            command,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=cpu_environment(),
            check=False,
        )
    print(f"{time.perf_counter() - started:6.0f} s", flush=True)
    if process.returncode == 0:
        return True
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    print(f"error: this step ended with status {process.returncode}. Last lines of {log}:", file=sys.stderr)
    print("\n".join(f"    {line}" for line in lines[-SHOWN_LINES:]), file=sys.stderr)
    return False


def cpu_environment() -> dict[str, str]:
    """This process's environment without GPUs and downloads; dist.sh finds this Python in it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    settings = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "VIRTUAL_ENV": sys.prefix, "PATH": path}
    return {**os.environ, **settings}


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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "work_dirs" / "demo", help="replaced if it exists")
    parser.add_argument("--images", type=int, default=60, help="synthetic images (default: 60)")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(main)
