"""Losses of transformers' Trainer (examples/hf_trainer.py) and of the main path, from the same weights.

usage: python benchmarks/trainer_curves.py --out DIR [--iterations 60] [--scratch DIR]

A small model is trained on synthetic angiograms from random weights and exported. Both continue from that folder with
the same adapters, order of images, questions, augmentation and learning rate, in float32 on the CPU. DIR gets
trainer_curves.json and .png. Exit status 1 where the losses differ by more than TOLERANCE. Takes three minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import OK, REPOSITORY, log_rows, train
from vesselseg.errors import UserError
from vesselseg.models.build import build_model
from vesselseg.models.lora import Lora, Trainable, attach_lora, checkpoint_state, set_trainable
from vesselseg.models.tiny_base import write_tiny_base
from vesselseg.run_tool import run_tool

CONFIG = REPOSITORY / "configs" / "tiny_cpu.py"
NAME = "trainer_curves"
TOLERANCE = 1e-3  # Trainer logs four decimals
RANK, RATE, BATCH, SEED = 8, 1e-3, 2, 0
PRETRAINING = 20  # iterations from random weights, before the export
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
QUIET = {
    "validation.interval": None,
    "checkpoint.interval": None,
    "logging.interval": 1,
    "logging.tensorboard": False,
}
# tiny_cpu.py trains from random weights; these are the values of the other configs.
FINE_TUNING = {
    **{f"model.sa2va.trainable.{part}": False for part in ("projector", "sam2_encoder", "vision")},
    "model.sa2va.trainable.llm": "lora",
    "train_dataset.augment.vertical_flip": 0.0,
    "train_dataset.augment.quarter_turns": False,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Pretrain, train both ways, write JSON and image. argv: of the command line, the default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--iterations", type=int, default=60, help="of each training (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / f"vesselseg_{NAME}",
                        help="data, weights and runs (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    shutil.rmtree(args.scratch, ignore_errors=True)
    folder, data = start(args.scratch)
    losses = {
        "tools/dist.sh train": main_path(folder, data, args.scratch, args.iterations),
        "transformers' Trainer": trainer(folder, data, args.scratch / "trainer", args.iterations),
    }
    ours, theirs = losses.values()
    difference = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    settings = {"iterations": args.iterations, "micro_batch": BATCH, "lr": RATE, "lora_rank": RANK, "seed": SEED}
    args.out.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "largest_difference": difference, "losses": losses}
    (args.out / f"{NAME}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(losses, args.out / f"{NAME}.png")
    first, last = (sum(part) / len(part) for part in (ours[:10], ours[-10:]))
    print(f"{args.iterations} iterations: losses differ by at most {difference:.1e}; ", end="")
    print(f"mean of the first and last ten: {first:.3f}, {last:.3f}")
    return 0 if difference <= TOLERANCE else 1


def start(scratch: Path) -> tuple[Path, Path]:
    """(exported folder of a briefly trained model, dataset folder)."""
    archive, data, folder, work_dir = (scratch / name for name in ("archive", "data", "model", "pretraining"))
    run("-m", "vesselseg", "synthetic", "--out", archive, "--count", 40)
    run("-m", "vesselseg", "prepare", archive, "--out", data, "--group-regex", "(p[0-9]+)_")
    write_tiny_base(scratch / "base")
    changes = {"data_root": data, "model.sa2va.base": scratch / "base", "schedule.max_iters": PRETRAINING}
    run_main_path(work_dir, {**changes, **QUIET, "checkpoint.interval": PRETRAINING})
    run(*("-m", "vesselseg", "convert", work_dir / "config.py", work_dir / f"iter_{PRETRAINING}.pth", "--out", folder))
    return folder, data


def main_path(folder: Path, data: Path, scratch: Path, iterations: int) -> list[float]:
    """Losses of a training through tools/dist.sh, started with the adapters that hf_trainer.py draws."""
    model = build_model(str(folder), trainable={"llm": "frozen"})
    torch.manual_seed(SEED)
    attach_lora(model, Lora(r=RANK, alpha=2 * RANK, dropout=0.0))
    set_trainable(model, Trainable())
    adapters = scratch / "adapters.pth"
    settings = {"base": str(folder)}
    torch.save({"state_dict": checkpoint_state(model), "model_config": settings, "threshold": 0.5}, adapters)
    changes = {
        "data_root": data,
        "model.sa2va.base": folder,
        "load_from": adapters,
        "model.sa2va.lora.r": RANK,
        "model.sa2va.lora.alpha": 2 * RANK,
        "schedule.lr": RATE,
        "schedule.micro_batch": BATCH,
        "schedule.max_iters": iterations,
        "seed": SEED,
        **FINE_TUNING,
        **QUIET,
    }
    run_main_path(scratch / "main_path", changes)
    return [float(row["loss"]) for row in log_rows(scratch / "main_path") if row["kind"] == "train"]


def trainer(folder: Path, data: Path, out: Path, iterations: int) -> list[float]:
    """Losses of examples/hf_trainer.py."""
    command: list[Any] = [REPOSITORY / "examples" / "hf_trainer.py", folder, "--data", data, "--out", out]
    command += ["--lr", RATE, "--batch", BATCH, "--accumulation", 1, "--max-iters", iterations, "--epochs", 40]
    run(*command, "--lora-rank", RANK, "--seed", SEED)
    rows = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [float(row["loss"]) for row in rows if "loss" in row]


def run_main_path(work_dir: Path, changes: Mapping[str, Any]) -> None:
    """One process of tools/dist.sh train; raises UserError where it fails."""
    outcome = train(CONFIG, 1, work_dir, changes, flags=("--skip-plan",), environment=ON_CPU)
    if outcome.status != OK:
        raise UserError(f"{work_dir}: {outcome.status}\n{outcome.message}")


def run(*command: Any) -> None:
    """Run a program of this repository without GPUs; raises UserError with its output where it fails."""
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=REPOSITORY, env={**os.environ, **ON_CPU}, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(words)} ended with status {done.returncode}\n{done.stderr[-3000:]}")


def draw(losses: Mapping[str, Sequence[float]], path: Path) -> None:
    """Both curves in one panel, their difference below."""
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(8, 5.5), sharex=True, height_ratios=[3, 1], constrained_layout=True
    )
    styles = ({"linewidth": 4, "alpha": 0.35}, {"linewidth": 1.2, "linestyle": "--", "color": "black"})
    for (name, values), style in zip(losses.items(), styles):
        upper.plot(range(1, len(values) + 1), values, label=name, **style)
    ours, theirs = losses.values()
    lower.bar(range(1, len(ours) + 1), [abs(one - other) for one, other in zip(ours, theirs)], color="grey")
    lower.axhline(TOLERANCE, color="C3", linewidth=1)
    upper.set(ylabel="training loss")
    lower.set(xlabel="iteration", ylabel="difference\n(logged to 1e-4)", yscale="log")
    for panel in (upper, lower):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    upper.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_tool(main)
