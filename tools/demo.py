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

from vesselseg.cli import UserError, run_tool

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = "configs/tiny_cpu.py"
PROCESSES = 2
SHOWN_LINES = 20  # of a failed step's output
MARKER = "demo.txt"


def main() -> int:
    """Run every step, print the figures; 0 if the model beats the filter."""
    arguments = _arguments()
    out: Path = arguments.out.resolve()
    clear(out)
    steps = demo_steps(out, arguments.images)
    started = time.perf_counter()
    for number, (title, command) in enumerate(steps, start=1):
        if not run_step(f"{number}/{len(steps)} {title}", command, out / "logs" / f"{number}.log"):
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
    python = [sys.executable]
    data, run, model = out / "data", out / "run", out / "model"
    score = ["--data", str(data), "--split", "test", "--threshold", "auto"]
    train = ["bash", "tools/dist.sh", "train", CONFIG, str(PROCESSES), "--work-dir", str(run)]
    options = ["--cfg-options", f"data_root={data}", f"model.sa2va.base={out / 'base'}"]
    steps = [
        (
            "draw angiograms with LabelMe labels",
            [*python, "tools/make_synthetic.py", "--out", str(out / "archive"), "--images", str(images)],
        ),
        ("prepare", [*python, "tools/prepare_data.py", str(out / "archive"), "--out", str(data)]),
        ("make a small base model, random weights", [*python, "tools/make_tiny_base.py", "--out", str(out / "base")]),
        (f"train on {PROCESSES} processes", [*train, *options]),
        (
            "convert to Hugging Face",
            [*python, "tools/convert_to_hf.py", CONFIG, str(run / "best.pth"), "--save-path", str(model)],
        ),
        (
            "tune a Frangi filter on the same images",
            [*python, "tools/baseline_frangi.py", "--data", str(data), "--out", str(out / "frangi")],
        ),
        (
            "score the filter",
            [*python, "tools/eval.py", str(out / "frangi"), *score, "--out", str(out / "eval_frangi")],
        ),
        ("score the model", [*python, "tools/eval.py", str(model), *score, "--out", str(out / "eval_model")]),
    ]
    return steps


def run_step(title: str, command: Sequence[str], log: Path) -> bool:
    """Run one command with its output in ``log``; prints time, and the end of the log when it fails."""
    print(f"{title:48}", end="", flush=True)
    started = time.perf_counter()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with log.open("w", encoding="utf-8") as file:
        file.write(" ".join(command) + "\n")
        file.flush()
        process = subprocess.run(
            command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, check=False
        )
    print(f"{time.perf_counter() - started:6.0f} s", flush=True)
    if process.returncode == 0:
        return True
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    print(f"error: this step ended with status {process.returncode}. Last lines of {log}:", file=sys.stderr)
    print("\n".join(f"    {line}" for line in lines[-SHOWN_LINES:]), file=sys.stderr)
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "work_dirs" / "demo", help="replaced if it exists")
    parser.add_argument("--images", type=int, default=120, help="synthetic images (default: 120)")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(main)
